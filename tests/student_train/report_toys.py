"""Folders of runs for the tests of the report: finished, stopped, failed and unfinished students of one cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.cache import Cache
from storage.errors import Interrupted
from student_train.run_files.records import read_record, write_record
from student_train.running.train import train_students
from tests.student_train.running.test_loop import stop_after
from tests.student_train.toys import KD, LABELS, Recipe, request_of, student, write_cache

HOSTILE = [
    "<script>alert('class')</script>",
    "\"><img src='http://nowhere.invalid/x.png' onerror=alert(2)>",
    "$\\frac{{{ 7 * 7 }}",
    "猫 \x01\n\u202e{% include '/etc/passwd' %}",
]
REASON = "<b onclick=alert(3)>others did better</b>"


def hostile_cache(folder: Path) -> Cache:
    """Return the toy cache with names of classes that nobody should have."""
    return write_cache(folder, Recipe(class_names=tuple(HOSTILE)))


def all_kinds(cache: Cache, runs: Path) -> Path:
    """Return a folder of students `good`, `labels` and `small`, that are finished, and of one of every other kind."""
    good = student("good", objective=[KD], epochs=6)
    wild = student("wild", optimizer="sgd", learning_rate=1000.0, epochs=9)
    small = student("small", options={"hidden": [2]}, objective=[LABELS, KD])
    train_students(request_of(cache, runs, good, student("labels"), small, student("halted"), wild))
    with pytest.raises(Interrupted):
        train_students(request_of(cache, runs, student("unfinished")), stop=stop_after(10 + 6 + 2 + 3))
    halted = read_record(runs / "halted")
    assert halted is not None
    write_record(runs / "halted", halted.model_copy(update={"status": "stopped", "error": REASON}))
    return runs
