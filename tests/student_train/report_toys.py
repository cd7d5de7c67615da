"""Folders of runs for the tests of the report: finished, stopped, failed and unfinished students of one cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from storage.cache import Cache
from storage.errors import Interrupted
from student_train.job_text import job_text
from student_train.latency import measure_latency
from student_train.needs import Needs
from student_train.predictions import held_table, write_predictions
from student_train.residency import FeedPool
from student_train.results import JOB_FILE, read_record, write_record
from student_train.selection import select_rows
from student_train.students import load_student
from student_train.train import Request, train_students
from tests.student_train.test_loop import stop_after
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
    cache = write_cache(folder, Recipe())
    cache.objects.put("toy/dataset.json", cache.dataset("toy").model_copy(update={"classes": HOSTILE}).to_json())
    return Cache.open(cache.url)


def train(request: Request, *, teacher: str | None = "sage") -> None:
    """Train students, and leave of each what the report reads."""
    train_students(request)
    selection = select_rows(request.cache, request.data.validation, Needs(), agree_with=teacher)
    of_tokens = request.cache.dataset(selection.dataset).vocabulary is not None
    feed = FeedPool(request.cache, torch.device("cpu"), resident=True, window_shards=2).feed(selection, Needs())
    for options in request.students:
        folder, record = request.runs / options.name, read_record(request.runs / options.name)
        assert record is not None
        (folder / JOB_FILE).write_text(job_text(request.cache.url, request.runs, request.data, [options]))
        figures = {}
        if record.status == "finished":
            trained = load_student(folder)
            taught = teacher if any(term.teacher_names for term in options.objective) or of_tokens else None
            held = held_table(request.cache, selection, taught)
            write_predictions(folder, trained, feed, held, batch_size=20)
            shape = request.cache.dataset(selection.dataset).input_shape
            figures = measure_latency(trained, shape)._asdict()
        write_record(folder, record.model_copy(update=figures | {"cache": request.cache.url}))


def all_kinds(cache: Cache, runs: Path) -> Path:
    """Return a folder of students `good`, `labels` and `small`, that are finished, and of one of every other kind."""
    good = student("good", objective=[KD], epochs=6)
    wild = student("wild", optimizer="sgd", learning_rate=1000.0, epochs=9)
    small = student("small", options={"hidden": [2]}, objective=[LABELS, KD])
    train(request_of(cache, runs, good, student("labels"), small, student("halted"), wild))
    with pytest.raises(Interrupted):
        train_students(request_of(cache, runs, student("unfinished")), stop=stop_after(10 + 6 + 2 + 3))
    halted = read_record(runs / "halted")
    assert halted is not None
    write_record(runs / "halted", halted.model_copy(update={"status": "stopped", "error": REASON}))
    return runs
