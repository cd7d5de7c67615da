"""One group of students on one worker: what it is sent, what it does there, what it tells, and what comes back.

Weights and rows never pass through the scheduler: a worker reads the cache, and leaves its students in the runs folder.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.cluster.batch.leaving import leave, left_s
from jobs.cluster.flight import Left
from jobs.files.cluster_options import num_processors
from jobs.files.student_job import StudentJob
from jobs.show.train_progress import TrainProgress
from storage.errors import BadRequest, Interrupted, StillroomError
from student_train.running import events

if TYPE_CHECKING:
    from distributed import Worker

    from student_train.feed.devices import Device

TELL_EVERY_S = 1.0

_stopped: set[str] = set()  # commands that have been told to stop


class GroupWork(NamedTuple):
    """A group of students as it travels.

    Attributes:
        key: what it is called in messages.
        job: JSON of the job with these students alone.
        device: auto, cpu, cuda.
        threads: of torch; None: all processors that the worker may use.
        command: id of the command that sends it, and the topic of what it is told.
        steps: name → steps done and steps in all, of each student, as the command found them.
    """

    key: str
    job: str
    device: Device
    threads: int | None
    command: str
    steps: dict[str, tuple[int, int]]


class GroupDone(NamedTuple):
    """What became of a group; its students' records are in the runs folder.

    Attributes:
        statuses: name → finished or stopped.
        errors: name → why it failed.
        told: what was not told yet.
    """

    statuses: dict[str, str]
    errors: dict[str, StillroomError]
    told: dict[str, Any]


def as_json(job: StudentJob) -> str:
    """Return a job as it travels, without where it runs, which is decided.

    A user's own options may be infinite, which pydantic's own JSON turns into null.
    """
    return json.dumps(job.model_dump(exclude={"cluster"}), default=str)


def train_group(work: GroupWork) -> GroupDone:
    """Train a group of students on this worker's device.

    Raises:
        BadRequest: of some kind; no student was started.
        Interrupted: the command was told to stop; every student has a checkpoint.
        Left: the worker goes; that is no fact about the students, who go on from their checkpoints elsewhere.
    """
    import torch
    from distributed import get_worker

    from student_train.running.train import train_students
    from student_train.stepping.parallel import ALONE

    worker: Worker = get_worker()
    job = StudentJob.model_validate_json(work.job)
    _check_shared(job.runs, work.command)
    torch.set_num_threads(work.threads or num_processors())
    relay = Relay(work.key, work.steps, partial(worker.log_event, work.command))
    try:
        summary = train_students(
            job.request(work.device, ALONE),
            report=relay.report,
            stop=lambda: work.command in _stopped or _is_closing(worker) or left_s() <= 0,
        )
    except Interrupted:
        if work.command in _stopped:
            raise
        if left_s() <= 0:
            leave(worker)
        raise Left("the worker was closed, or its job is about to end") from None
    finally:
        torch.cuda.empty_cache()  # for the next group; does nothing where there is no GPU in use
    statuses: dict[str, str] = {record.student: record.status for record in summary.records}
    return GroupDone(statuses, summary.errors, relay.message())


def stop_groups(command: str) -> None:
    """Let this worker's students of a command write their checkpoints and stop after their next step."""
    _stopped.add(command)


def beacon(runs: Path, command: str) -> Path:
    """Return the file by which a worker knows that it sees the very runs folder of the command."""
    return runs / f".cluster-{command}"


class Relay:
    """Sends what happens in a group to the command, about once a second. Also a `Watcher`.

    Args:
        key: of the group.
        steps: as in GroupWork.
        send: takes a message, of numbers and strings.
    """

    def __init__(self, key: str, steps: Mapping[str, tuple[int, int]], send: Callable[[dict[str, Any]], None]):
        self._key, self._send = key, send
        self._waiting = dict(steps)  # of students whose pass has not begun
        # Steps of passes that have ended; of the one that runs, and its total.
        self._ended = self._now = self._total = 0
        self._detail = ""
        self._notes: list[str] = []
        self._sent_s = time.monotonic()
        self._progress = TrainProgress(self)

    def report(self, event: events.Event) -> None:
        """Take an event, and send what has come together if it is time."""
        if isinstance(event, events.StudentSkipped) and event.record.student not in self._waiting:
            return  # the command has told that
        self._count(event)
        self._progress.report(event)
        if time.monotonic() - self._sent_s >= TELL_EVERY_S:
            self._send(self.message())
            self._sent_s = time.monotonic()

    def message(self) -> dict[str, Any]:
        """Return how far all are, and what is not told yet."""
        notes, self._notes = self._notes, []
        done = self._ended + self._now + sum(done for done, _ in self._waiting.values())
        return {"group": self._key, "done": done, "detail": self._detail, "notes": notes}

    def _count(self, event: events.Event) -> None:
        match event:
            case events.StudentSkipped():
                self._ended += self._waiting.pop(event.record.student, (0, 0))[1]
            case events.StudentFailed():  # of one whose pass has begun, the pass's own count has it
                self._ended += self._waiting.pop(event.student, (0, 0))[1]
            case events.StudentStarted():
                self._waiting.pop(event.student, None)
            case events.PassStarted() | events.Progress():
                self._now, self._total = event.done_steps, event.total_steps
            case events.PassDone():
                self._ended, self._now = self._ended + self._total, 0

    def begin(self, name: str, total: int | None, done: int = 0, unit: str | None = None) -> None:
        self._detail = ""

    def advance(self, count: int, detail: str = "") -> None:
        self._detail = detail or self._detail

    def detail(self, text: str) -> None:
        self._detail = text

    def complete(self) -> None:
        pass

    def note(self, text: str) -> None:
        self._notes.append(text)


def _is_closing(worker: Worker) -> bool:
    """Whether a worker is on its way out: told so, preempted, or without a scheduler."""
    from distributed.core import Status

    return worker.status in (Status.closing, Status.closing_gracefully, Status.closed)


def _check_shared(runs: Path, command: str) -> None:
    """Raise BadRequest unless the runs folder is that of the command."""
    if not beacon(runs, command).exists():
        raise BadRequest(
            f"a worker on {socket.gethostname()} does not see the runs folder of the command",
            found=f"another {runs}, or none",
            expected="a folder that the command and all workers share",
            do="name one in `runs`, on a network file system",
        )
