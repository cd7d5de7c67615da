"""What a cache costs, and from how many students on it is cheaper than asking the teacher live. No I/O.

Time is wall-clock, in seconds. With R rows in the job's datasets, V views of them to store (1: plain), W workers and E
epochs of each student:

    build     = V·R / W × (forward pass + encoding, of one row)     once, all workers together
    live      = E·R × forward pass of one row                       of each student, on one device, each epoch anew
    reading   = E·R × (unpacking + decoding, of one row)            of each student; less if its rows stay in memory

The cache pays from S students on, where build + S × reading ≤ S × live, so S = build / (live − reading), rounded up;
never, if reading takes as long as the teacher. What both sides do, a student's own step and the decoding of its inputs,
is left out. E counts all rows of the job, though a student may train on one split of them only: that changes `live` and
`reading` alike.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Pace(NamedTuple):
    """Seconds of one row (of a position, for tokens), in one process."""

    teach_s: float
    encode_s: float
    read_s: float


class Worth(NamedTuple):
    """What the whole dataset would cost.

    Attributes:
        bytes: all rows, all views, features too.
        build_s: with W workers.
        live_s, read_s: of one student.
        students: from which the cache is cheaper; None: never.
    """

    bytes: int
    build_s: float
    live_s: float
    read_s: float
    students: int | None


def weigh(pace: Pace, *, rows: int, stored_rows: int, bytes_per_row: float, workers: int, epochs: int) -> Worth:
    """Return what a cache is worth.

    Args:
        pace: measured.
        rows: R, of the job's datasets.
        stored_rows: V·R, in all views.
        bytes_per_row: of soft targets and features together, as stored.
        workers: W.
        epochs: E.

    A teacher takes 1 ms of a row, encoding and reading a tenth of that. Two workers build 1000 rows in 0.55 s; a
    student of ten epochs waits 10 s for the teacher live, and 1 s for the cache. With 64 views it takes 4 students:

    >>> weigh(Pace(1e-3, 1e-4, 1e-4), rows=1000, stored_rows=1000, bytes_per_row=12.5, workers=2, epochs=10)
    Worth(bytes=12500, build_s=0.55, live_s=10.0, read_s=1.0, students=1)
    >>> weigh(Pace(1e-3, 1e-4, 1e-4), rows=1000, stored_rows=64_000, bytes_per_row=12.5, workers=2, epochs=10).students
    4
    """
    build_s = stored_rows * (pace.teach_s + pace.encode_s) / workers
    live_s, read_s = epochs * rows * pace.teach_s, epochs * rows * pace.read_s
    # At least one: a build that costs nothing still has to be read by somebody.
    students = max(1, math.ceil(build_s / (live_s - read_s))) if live_s > read_s else None
    return Worth(round(stored_rows * bytes_per_row), build_s, live_s, read_s, students)
