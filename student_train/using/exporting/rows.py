"""Rows on which an exported student is compared with what it was made from: held ones, or drawn ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from storage.cache import Cache, Samples
from storage.errors import StillroomError
from student_train.feed.batches import Needs
from student_train.feed.residency import FeedPool
from student_train.feed.selection import select_rows
from student_train.options.sections import listed
from student_train.run_files.records import RunRecord
from student_train.students import Student
from student_train.students.blueprint import decoded_at

ROWS = 100


@dataclass(frozen=True)
class ComparedRows:
    """Some rows.

    Attributes:
        inputs: as a student is given them, one row at a time.
        told: what they are, in words.
    """

    inputs: list[Tensor]
    told: str


def apart(own: Tensor, other: Tensor) -> tuple[float, float]:
    """Return the largest difference of two students' logits, and the largest of the first's that is finite.

    Where one of them is NaN, or infinite alone, they are infinitely far apart.

    >>> apart(torch.tensor([1.0, -torch.inf]), torch.tensor([1.5, -torch.inf]))
    (0.5, 1.0)
    >>> apart(torch.tensor([1.0]), torch.tensor([torch.nan]))
    (inf, 1.0)
    """
    difference = (own.float() - other.float()).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    largest = own.float().nan_to_num(0.0, 0.0, 0.0).abs().max()
    return float(torch.where(own == other, 0.0, difference).max()), float(largest)


def rows_to_compare(student: Student, record: RunRecord, cache: str | None) -> ComparedRows:
    """Return held rows of a run, or drawn ones where its cache is not at hand.

    Args:
        student: that is compared.
        record: of its run.
        cache: where it lies; None: where it did.
    """
    url, held = cache or record.cache, record.identity.get("data", {}).get("validation")
    if url is not None and held is not None:
        rows = listed(held)[0]  # of several datasets those of the first: they are alike
        try:
            found = list(_held(url, rows, student))
            return ComparedRows(found, f"{len(found)} held rows of {rows}")
        except (StillroomError, OSError) as error:
            if cache is not None:  # which was asked for
                raise
            why = getattr(error, "what", str(error))
            return ComparedRows(_drawn(student), f"{ROWS} drawn rows, for the held ones cannot be had ({why})")
    return ComparedRows(_drawn(student), f"{ROWS} drawn rows, for nobody knows where its cache is")


def _held(url: str, rows: str, student: Student) -> Iterator[Tensor]:
    cache = Cache.open(url)
    dataset = rows.partition("/")[0]
    catalogue = cache.catalogue({dataset}, set())
    selection = select_rows(Samples(catalogue), rows, Needs(), allow_partial=True)
    selection = replace(selection, own=decoded_at(student.blueprint, catalogue.dataset(dataset)))
    feed = FeedPool(cache, torch.device("cpu"), place="stream", window_shards=1).feed(selection, Needs())
    for number, batch in enumerate(feed.in_order(1)):
        if number == ROWS:
            return
        yield batch.inputs


def _drawn(student: Student) -> list[Tensor]:
    blueprint = student.blueprint
    draw = torch.Generator().manual_seed(0)
    shape = (1, *blueprint.input_shape)
    if blueprint.made_of.scaled:  # as pictures are: a byte each
        return [torch.randint(256, shape, generator=draw) / 255 for _ in range(ROWS)]
    if not blueprint.made_of.tokenised:
        return [torch.rand(shape, generator=draw) for _ in range(ROWS)]
    ids = blueprint.vocabulary or blueprint.num_classes
    return [torch.randint(ids, shape, generator=draw) for _ in range(ROWS)]
