"""A copy: of all blocks or some, as wide as they are or narrower. Weights are the teacher's own.

Source: Sanh et al. 2019 (DistilBERT), arXiv 1910.01108, section 3, for every second block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from storage.errors import BadRequest
from teacher_cache.making.subject import Subject
from teacher_cache.making.ways.blocks import find_blocks, without
from teacher_cache.making.ways.prune import narrower
from teacher_cache.making.ways.scores import By

if TYPE_CHECKING:
    from student_train.students import Student

Which = Literal["first", "strongest"]
STRONGEST: dict[Which, By] = {"first": "first", "strongest": "magnitude"}


class CopyOptions(NamedTuple):
    """What is copied.

    Attributes:
        every: of the blocks every n-th, from the first on; None: all.
        blocks: these alone, by name; None: all.
        width: share of the units of each layer; 1: all.
        units: which these are.
    """

    every: int | None
    blocks: tuple[str, ...] | None
    width: float
    units: Which


def copy_of(subject: Subject, options: CopyOptions) -> tuple[Student, list[str]]:
    """Return a copy of a teacher, and in words what it lacks.

    Raises:
        BadRequest: it has no such blocks, or no layer that could be narrower.
    """
    student, told = subject.student, []
    if options.every is not None or options.blocks is not None:
        blocks = find_blocks(subject)
        if unknown := [name for name in options.blocks or () if name not in blocks]:
            raise BadRequest(
                "this teacher has no such block",
                found=", ".join(unknown),
                expected=", ".join(blocks),
                do="--blocks names those that are kept",
            )
        kept = options.blocks if options.blocks is not None else blocks[:: options.every or 1]
        gone = [name for name in blocks if name not in kept]
        student = without(subject, gone)
        told.append(f"{len(kept)} of {len(blocks)} blocks: {', '.join(kept)}")
    if options.width < 1:
        student, left = narrower(subject._replace(student=student), options.width, STRONGEST[options.units])
        told += left
    return student, told
