"""Which tokenizer a teacher speaks, and who says so."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from storage.language.tokenizer import TokenizerFile, read_tokenizer


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
