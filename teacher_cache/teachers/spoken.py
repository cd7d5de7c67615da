"""Which tokenizer a teacher speaks, and who says so; and what the job says of it where its files say nothing.

A kind takes from here what its own file does not have, so that each kind's file tells what is its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from storage.language.tokenizer import TokenizerFile, read_tokenizer

if TYPE_CHECKING:
    from storage.format.specs import DatasetSpec
    from teacher_cache.teachers.options import TeacherOptions


class Spoken(NamedTuple):
    """A teacher's tokenizer.

    Attributes:
        fingerprint: of it; None: it has none, or nobody knows.
        said_by: the file that says so, or why there is none.
        file: its content, where it is at hand.
    """

    fingerprint: str | None
    said_by: str
    file: TokenizerFile | None = None


def spoken_by(path: Path) -> Spoken:
    """Return what a `tokenizer.json` says, or that in a folder. Raises MissingSource."""
    file = read_tokenizer(path)
    return Spoken(file.fingerprint, str(path), file)


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
