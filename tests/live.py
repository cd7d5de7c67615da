"""A feed whose soft targets come from the teacher itself at every step: what a cache is to be as good as."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

from storage.encodings import DenseEncoding, Encoded
from student_train.feed.batches import Batch, Needs
from student_train.feed.feed import Feed
from student_train.feed.residency import FeedPool
from student_train.feed.selection import Selection
from student_train.preparing.request import Request
from student_train.run_files.records import RunRecord
from student_train.running import train
from teacher_cache.teachers.model import Teacher


class LiveFeed:
    """A feed that asks the teacher about every batch, and reads nothing of it from the cache."""

    def __init__(self, feed: Feed, name: str, teacher: Teacher):
        self._feed = feed
        self._name = name
        self._teacher = teacher
        self._dataset = feed.selection.spec

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)

    def shared(self, *args: Any, **kwargs: Any) -> Iterator[tuple[int, int, Batch]]:
        """Yield the batches of an epoch, with the teacher's words of this moment."""
        for cut, step, batch in self._feed.shared(*args, **kwargs):
            with torch.inference_mode(False), torch.no_grad():
                logits, _ = self._teacher(batch.shown, self._dataset)
            logits = logits.clone()  # made under inference_mode, which autograd refuses
            targets = {self._name: Encoded(DenseEncoding(statistics=False), logits.shape[-1], {"logits": logits})}
            yield cut, step, replace(batch, targets=targets)


def train_live(request: Request, name: str, teacher: Teacher) -> list[RunRecord]:
    """Train the students of a request, as `train_students` does, with the teacher of that name live."""

    class LivePool(FeedPool):
        def feed(self, selection: Selection, needs: Needs, *rest: Any) -> Any:
            feed = super().feed(selection, replace(needs, soft=frozenset()), *rest)
            return LiveFeed(feed, name, teacher) if needs.soft else feed

    with patch.object(train, "FeedPool", LivePool):
        summary = train.train_students(request)
    assert summary.exit_code == 0, summary.errors
    return list(summary.records)
