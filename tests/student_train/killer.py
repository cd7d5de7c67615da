"""Trains that die: `python -m tests.student_train.killer CACHE RUNS STUDENTS_JSON EVERY FOLDERS [DATASET [FLEET]]`.

This process imports everything and starts no thread, so that each training is a fork of it and takes no time to start.
Each is killed (SIGKILL) at its n-th system call that writes, n growing by EVERY, in the folder RUNS/<n>; or, with
FOLDERS "one", always at its EVERY-th, in RUNS; or, where EVERY is a JSON list, in RUNS so many seconds after its first
student has started, the last of them not at all. Ends when a training came to its end; prints how many were killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from storage.cache import Cache
from student_train.options.sections import DataOptions, FleetOptions, StudentOptions
from student_train.preparing.request import Request
from student_train.running.events import Event, StudentStarted
from student_train.running.train import train_students


def main(
    cache: str, runs: str, students: str, every: int, folders: str, dataset: str = "toy", fleet: str = "{}"
) -> None:
    """Kill trainings until one is not killed."""
    kills = 0
    while True:
        moment, folder = (every, Path(runs)) if folders == "one" else (kills * every, Path(runs) / str(kills * every))
        child = os.fork()
        if child == 0:
            train_until(moment, cache, folder, students, dataset, fleet)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        kills += 1
    sys.stdout.write(f"{kills}\n")


def kill_later(cache: str, runs: str, students: str, delays_s: list[float], dataset: str = "toy") -> None:
    """Kill trainings so long after they have started, one after another; let the last come to its end."""
    kills = 0
    for delay_s in (*delays_s, None):
        begun, told = os.pipe()
        child = os.fork()
        if child == 0:
            train_until(sys.maxsize, cache, Path(runs), students, dataset, "{}", tell_start_to=told)
        os.close(told)
        os.read(begun, 1)
        if delay_s is not None:
            time.sleep(delay_s)
            os.kill(child, signal.SIGKILL)
        os.close(begun)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), status
        kills += status != 0
    sys.stdout.write(f"{kills}\n")


def train_until(
    moment: int, cache: str, runs: Path, students: str, dataset: str, fleet: str, tell_start_to: int | None = None
) -> None:
    """Train and exit, or be killed."""
    left = moment

    def report(event: Event) -> None:
        if isinstance(event, StudentStarted) and tell_start_to is not None:
            os.write(tell_start_to, b".")

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counting

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]
    torch.set_num_threads(1)
    try:
        rows = DataOptions(train=f"{dataset}/train", validation=f"{dataset}/validation")
        sections = json.loads(students)
        options = tuple(map(StudentOptions.model_validate, sections if isinstance(sections, list) else [sections]))
        how = FleetOptions.model_validate_json(fleet)
        train_students(Request(Cache.open(cache), runs, rows, options, "cpu", how), report=report)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    when = json.loads(sys.argv[4])
    if isinstance(when, list):
        kill_later(*sys.argv[1:4], when)
    else:
        main(sys.argv[1], sys.argv[2], sys.argv[3], when, *sys.argv[5:])
