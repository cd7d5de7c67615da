"""The ways to make a student, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from teacher_cache.making.prune import prune
from teacher_cache.making.subject import Subject

if TYPE_CHECKING:
    from student_train.students import Student

WAYS: dict[str, Callable[[Subject, Any], tuple[Student, list[str]]]] = {"prune": prune}
"""What each makes of a teacher as it is: a student, and in words what is to be told of it."""
