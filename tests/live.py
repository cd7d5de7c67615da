"""A feed whose soft targets come from the teacher itself at every step: what a cache is to be as good as."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from storage.encodings import DenseEncoding, Encoded
from student_train.feed import Fed, Feed
from student_train.loop import train_together
from student_train.needs import Needs
from student_train.predictions import held_table
from student_train.prepare import Prepared, Request, prepare
from student_train.residency import FeedPool
from student_train.results import RunRecord
from student_train.trainee import Run, Trainee
from teacher_cache.teachers import Teacher


class LiveFeed:
    """A feed that asks the teacher about every batch, and reads nothing of it from the cache."""

    def __init__(self, feed: Feed, name: str, teacher: Teacher):
        self._feed = feed
        self._name = name
        self._teacher = teacher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)

    def shared(self, *args: Any, **kwargs: Any) -> Iterator[Fed]:
        """Yield the batches of an epoch, with the teacher's words of this moment."""
        for cut, step, batch in self._feed.shared(*args, **kwargs):
            with torch.inference_mode(False), torch.no_grad():
                logits, _ = self._teacher(batch.inputs)
            logits = logits.clone()  # made under inference_mode, which autograd refuses
            targets = {self._name: Encoded(DenseEncoding(statistics=False), logits.shape[-1], {"logits": logits})}
            yield Fed(cut, step, replace(batch, targets=targets))


def train_live(request: Request, name: str, teacher: Teacher) -> list[RunRecord]:
    """Train every student of a request with the teacher of that name live, and return the records."""
    pool = FeedPool(request.cache, torch.device("cpu"), place="device", window_shards=request.data.window_shards)
    students = prepare(request)
    records = {s.options.name: s.finished for s in students if s.finished is not None}
    for student in students:
        if student.options.name not in records:
            records |= _train(student, request, pool, name, teacher)
    return [records[student.options.name] for student in students]


def _train(student: Prepared, request: Request, pool: FeedPool, name: str, teacher: Teacher) -> dict[str, RunRecord]:
    Path(student.folder).mkdir(parents=True, exist_ok=True)
    run = Run(
        options=student.options,
        spec=student.spec,
        encodings=student.encodings,
        feature_shapes=student.feature_shapes,
        folder=student.folder,
        identity=student.identity,
        device=torch.device("cpu"),
        held=held_table(request.cache, student.held, None),
        cache=request.cache.url,
        job="",
    )
    live = LiveFeed(pool.feed(student.train, replace(student.needs, soft=frozenset())), name, teacher)
    outcome = train_together(
        [Trainee(run, student.train.num_rows)],
        live,  # type: ignore[arg-type]
        pool.feed(student.held, Needs(labels=True)),
        seed=request.data.order_seed,
        stacking="never",
        halving=None,
        report=lambda event: None,
        stop=lambda: False,
    )
    for error in outcome.errors.values():
        raise error
    return outcome.records
