"""A feed whose soft targets come from the teacher itself at every step: what a cache is to be as good as."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from storage.encodings import DenseEncoding, Encoded
from student_train.feed import Feed
from student_train.loop import Run, train_student
from student_train.needs import Batch, Needs
from student_train.residency import FeedPool
from student_train.results import RunRecord
from student_train.train import Request, prepare
from teacher_cache.teachers import Teacher


class LiveFeed:
    """A feed that asks the teacher about every batch, and reads nothing of it from the cache."""

    def __init__(self, feed: Feed, name: str, teacher: Teacher):
        self._feed = feed
        self._name = name
        self._teacher = teacher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)

    def shuffled(self, *args: Any, **kwargs: Any) -> Iterator[Batch]:
        """Yield the batches of an epoch, with the teacher's words of this moment."""
        for batch in self._feed.shuffled(*args, **kwargs):
            with torch.inference_mode(False), torch.no_grad():
                logits, _ = self._teacher(batch.inputs)
            logits = logits.clone()  # made under inference_mode, which autograd refuses
            targets = {self._name: Encoded(DenseEncoding(statistics=False), logits.shape[-1], {"logits": logits})}
            yield replace(batch, targets=targets)


def train_live(request: Request, name: str, teacher: Teacher) -> list[RunRecord]:
    """Train every student of a request with the teacher of that name live, and return the records."""
    device = torch.device("cpu")
    pool = FeedPool(request.cache, device, place="device", window_shards=request.data.window_shards)
    records = []
    for student in prepare(request):
        if student.finished is not None:
            records.append(student.finished)
            continue
        Path(student.folder).mkdir(parents=True, exist_ok=True)
        run = Run(
            options=student.options,
            spec=student.spec,
            feature_shapes=student.feature_shapes,
            train=LiveFeed(pool.feed(student.train, replace(student.needs, soft=frozenset())), name, teacher),  # type: ignore[arg-type]
            held=pool.feed(student.held, Needs(labels=True)),
            folder=student.folder,
            identity=student.identity,
            device=device,
        )
        records.append(train_student(run, report=lambda event: None, stop=lambda: False))
    return records
