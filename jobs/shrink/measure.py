"""What a student is before and after training: its accuracy on held rows, its size, its time."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from storage.cache import Cache
from storage.errors import BadRequest
from storage.format.shards import ShardKey
from storage.inputs import inputs_of
from storage.views import PLAIN
from storage.views.check import readable_rows

if TYPE_CHECKING:
    from student_train.students import Student

ROWS = 64  # at a time, and the larger batch that is timed
REPEATS = 9


def accuracy(student: Student, cache: Cache, rows: tuple[str, ...]) -> float:
    """Return how often a student's top class is the label, over rows of a cache such as "digits/validation".

    Raises:
        BadRequest: none of them has a label.
    """
    import torch

    from teacher_cache.work.rows import labels_of

    right = count = 0
    for dataset, _, split in (each.partition("/") for each in rows):
        kind = inputs_of(cache.dataset(dataset))
        for shard in sorted(cache.committed(dataset)):
            key = ShardKey(dataset, None, PLAIN, shard)
            ingest = cache.commit(key, with_table=True)
            readable = readable_rows(ingest.table)
            wanted = readable.splits_B == split if split else np.ones(len(readable.splits_B), np.bool_)
            numbers = np.flatnonzero(readable.mask_S)[wanted]
            shown_B = kind.shown(cache.read_rows(dataset, shard), numbers)
            labels_B = labels_of(cache, key, ingest, numbers)
            with torch.inference_mode():
                for shown, labels in zip(shown_B.split(ROWS), labels_B.split(ROWS), strict=True):
                    said = student(kind.arguments(shown)).argmax(-1)
                    right += int(((said == labels) & (labels >= 0)).sum())
                    count += int((labels >= 0).sum())
    if not count:
        raise BadRequest("students cannot be compared without labels", found=f"none in {', '.join(rows)}")
    return right / count


def milliseconds(student: Student, rows: int) -> float:
    """Return the median time of a pass over so many rows of nothing, here."""
    import torch

    times = []
    with torch.inference_mode():
        inputs = student.blank(rows, student.blueprint.input_shape)
        for _ in range(REPEATS + 1):
            started = time.perf_counter()
            student(inputs)
            times.append(time.perf_counter() - started)
    return 1e3 * median(times[1:])  # the first allocates
