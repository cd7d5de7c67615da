"""A reader, a whole file for it, and the one question: what was there, or an error of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from storage.errors import StillroomError
from tests.fuzz import changes
from tests.fuzz.changes import Change
from tests.fuzz.watch import Harm, watched


@dataclass(frozen=True)
class Reader:
    """A reader, and a file for it.

    Attributes:
        name: of what is read.
        folder: which it may not leave.
        whole: the file as it should be.
        write: puts another in its place.
        read: returns what it says, as something that can be compared.
        seals: changes after which nothing but the same, or an error, may come out.
        forges: changes whose digests are right, or that nothing proves: what comes out may be another.
        weight: share of the cases; less of what takes long.
    """

    name: str
    folder: Path
    whole: bytes
    write: Callable[[bytes], object]
    read: Callable[[], object]
    seals: tuple[Change, ...] = ()
    forges: tuple[Change, ...] = ()
    weight: float = 1.0

    def check(self, random: Random) -> bool:
        """Read a changed file; return whether it was refused. Raises AssertionError with what is wrong."""
        change = random.choice((*self.seals, *self.forges))
        changed = change(random, self.whole)
        told = f"by {change.__name__}: {changed[:1500]!r}"
        try:
            found = self.take(changed, told)
        except StillroomError:
            return True
        if change in self.seals:
            assert found == self.expected, f"{self.name}: another value, unnoticed; {told}"
        return False

    def take(self, changed: bytes, told: str) -> object:
        """Return what is read of other bytes.

        Raises:
            StillroomError: they are refused.
            AssertionError: harm, or an error that is not ours.
        """
        self.write(changed)
        try:
            with watched(self.folder):
                return self.read()
        except StillroomError:
            raise
        except Harm as harm:
            raise AssertionError(f"{self.name}: {harm}; {told}") from None
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise AssertionError(f"{self.name}: {type(error).__name__}: {str(error)[:300]}; {told}") from error
        finally:
            self.write(self.whole)

    @property
    def expected(self) -> object:
        """What is read of the whole file."""
        return _expected(self)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


@cache
def _expected(reader: Reader) -> object:
    return reader.read()


def whole_file(folder: Path, path: Path, read: Callable[[], object], name: str = "", **options: Any) -> Reader:
    """Return the reader of a file that is there."""
    return Reader(name or path.name, folder, path.read_bytes(), path.write_bytes, read, **options)


def safetensors_header(random: Random, data: bytes) -> bytes:
    """Change what the header of a safetensors file says, and at times how long it is."""
    length = int.from_bytes(data[:8], "little")
    header = changes.plain_json(random, data[8 : 8 + length])
    said = len(header) if random.random() < 0.9 else random.choice((0, 2**63, 2**31, len(header) + 1))
    return said.to_bytes(8, "little") + header + data[8 + length :]
