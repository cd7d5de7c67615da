"""What is particular to a kind of student as a folder of transformers: what is written, and how that is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from student_train.using.exporting.hub.beside import Beside

WHAT = "student export --format transformers"
LOADED_AS = {"local_files_only": True, "trust_remote_code": False}  # whatever a library loads of what was written


def nothing_else(rows: Sequence[Tensor], folder: Path) -> str | None:
    """Return None: there is nothing to compare but answers."""
    return None


@dataclass(frozen=True)
class Form:
    """A student as transformers has it.

    Attributes:
        kind: the class that loads it.
        write: writes the model into a folder.
        answers: a written folder to what it answers: from inputs as a student is given them to the same as a student's.
        beside: files that go with the model, and what is told of them.
        library: that loads the folder, as the Hub calls it.
        use: how, as Markdown; empty: as any model of transformers.
        check: compares what else a user of the folder goes through, of some rows; returns what is told of that. Raises
            BadRequest: it is another than the student's.
        base: of an adapter, the folder of what it is on top of.
    """

    kind: str
    write: Callable[[Path], None]
    answers: Callable[[Path], Callable[[Tensor], Tensor]]
    beside: Beside
    library: str = "transformers"
    use: str = ""
    check: Callable[[Sequence[Tensor], Path], str | None] = nothing_else
    base: Path | None = None
