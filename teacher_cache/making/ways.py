"""The ways to make a student, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from teacher_cache.making.copying import copy_of
from teacher_cache.making.lowrank import lowrank
from teacher_cache.making.prune import prune
from teacher_cache.making.quantize import quantize
from teacher_cache.making.subject import Subject

if TYPE_CHECKING:
    from student_train.students import Student

WAYS: dict[str, Callable[[Subject, Any], tuple[Student, list[str]]]] = {
    "copy": copy_of,
    "prune": prune,
    "lowrank": lowrank,
    "quantize": quantize,
}
"""What each makes of a teacher as it is: a student, and in words what is to be told of it."""
