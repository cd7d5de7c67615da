"""A student job in a process of its own: `python -m tests.student_train.trainer CACHE RUNS STUDENTS_JSON [DATA_JSON]`.

Prints a line for each event, and at the end what the tests ask of a process: its imports, its files, its memory.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

OPENED: list[str] = []


def main(cache: str, runs: str, students: str, data: str = "{}", first_import: str = "") -> None:
    """Train, and print JSON with `modules`, `opened` and `peak_bytes` on the last line."""
    sys.addaudithook(lambda event, args: OPENED.append(str(args[0])) if event == "open" else None)
    ctypes.CDLL(None).mallopt(-8, 2)  # two heaps for all threads, as the program has (jobs/cluster/heaps.py)
    if first_import:
        __import__(first_import)
    import torch

    from storage.cache import Cache
    from student_train.options.sections import DataOptions, StudentOptions
    from student_train.preparing.request import Request
    from student_train.running.train import train_students

    torch.set_num_threads(1)
    options = tuple(StudentOptions.model_validate(student) for student in json.loads(students))
    rows = DataOptions.model_validate({"train": "toy/train", "validation": "toy/validation"} | json.loads(data))
    request = Request(Cache.open(cache), Path(runs), rows, options, "cpu")
    summary = train_students(request, report=lambda event: say(type(event).__name__))
    # Not ru_maxrss, which begins at what the parent held when it started this process.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    peak_bytes = int(peak.split()[1]) * 1024
    say(json.dumps({"modules": sorted(sys.modules), "opened": OPENED, "peak_bytes": peak_bytes}))
    sys.exit(summary.exit_code)


def say(line: str) -> None:
    """Write a line that the parent sees at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
