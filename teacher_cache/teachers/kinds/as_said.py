"""What a kind says whose files say nothing: what the job does, or that nobody knows.

A kind takes from here what its own file does not have, so that each kind's file tells what is its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from teacher_cache.teachers.spoken import Spoken, spoken_by

if TYPE_CHECKING:
    from storage.format.specs import DatasetSpec
    from teacher_cache.teachers.options import TeacherOptions


def spoken(options: TeacherOptions) -> Spoken:
    """Return the tokenizer that the job names for it."""
    return Spoken(None, "the job names none") if options.tokenizer is None else spoken_by(options.tokenizer)


def classes(options: TeacherOptions) -> list[str] | None:
    """Return the names that the job gives its scores."""
    return options.classes


def dimension(options: TeacherOptions) -> int | None:
    """Return how wide the job says that its vectors are."""
    return options.dimension


def wants_around(options: TeacherOptions) -> bool:
    """Return False: what it expects around a text, the job knows."""
    return False


def longest(options: TeacherOptions) -> int | None:
    """Return None: it does not say how much of a text it reads."""
    return None


def notes(options: TeacherOptions) -> list[str]:
    """Return nothing."""
    return []


def check_files(options: TeacherOptions, dataset: DatasetSpec) -> None:
    """Do nothing."""
