"""Which tars a path of a job means: one, those of a folder, or those that a pattern stands for."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import islice, product
from pathlib import Path

from storage.datasets.base import LocalFile
from storage.datasets.listing import lacking, list_files, passed_over, told
from storage.errors import BadRequest, MissingSource

PACKED_TARS = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST_TARS = 1_000_000


def root_of(path: Path) -> Path:
    """Return the folder below which the tars of a path lie. Raises MissingSource: there is no such thing."""
    return _parts(path)[0]


def find_tars(path: Path, recorded: Collection[str]) -> tuple[Path, list[str]]:
    """Return a folder, and the names of the tars below it, in order.

    Args:
        path: a tar; a folder of them, to any depth; or a pattern such as `shard-{000000..000012}.tar`.
        recorded: names that a cache knows, which stay as long as they are there.

    Raises:
        MissingSource: some are not there.
    """
    root, pattern = _parts(path)
    if pattern is not None:
        names = _expanded(pattern)
        if gone := [name for name in names if not (root / name).is_file()]:
            raise MissingSource(
                f"there is no {root / gone[0]}",
                found=f"{len(gone)} of {len(names)} of {pattern} are not there: {', '.join(gone[:3])}",
                expected="all of them; or a narrower pattern",
            )
        return root, names
    listing = list_files(root, (".tar",))
    if not listing.files:
        packed = list_files(root, PACKED_TARS).files
        raise MissingSource(
            f"{root} holds no *.tar file",
            found=told(listing.passed_over) or "an empty folder",
            do="unpack them, of which none can be entered in the middle: gunzip *.tar.gz" if packed else None,
        )
    known = {name for name in recorded if (root / name).is_file()}  # a row stays a row
    return root, sorted({*(file.relative_to(root).as_posix() for file in listing.files), *known})


def left_out(path: Path, recorded: Collection[str]) -> list[str]:
    """Return notes on what lies beside the tars of a folder, and on those that others count in their names."""
    root, names = find_tars(path, recorded)
    return [*passed_over(path, (".tar",), deep=True), *lacking(path, [root / name for name in names])]


def _parts(path: Path) -> tuple[Path, str | None]:
    """Return the folder of a path, and the name or pattern below it; None: it is the folder itself.

    Raises:
        MissingSource: there is no such thing.
    """
    if any(part.endswith(":") or part.startswith("pipe:") for part in path.parts):
        raise MissingSource(
            f"tars are read from a disk, and {path.name} is elsewhere",
            found=str(path),
            expected="a folder, or a path",
            do="copy them here, or mount what they are in",
        )
    if path.is_dir():
        return path, None
    if path.is_file() or not BRACES.search(str(path)):
        LocalFile.of(path)  # raises if there is none
        return path.parent, path.name
    fixed = next(number for number, part in enumerate(path.parts) if "{" in part)
    return Path(*path.parts[:fixed]), "/".join(path.parts[fixed:])


def _expanded(pattern: str) -> list[str]:
    """Return the names that a pattern stands for. Raises BadRequest: it stands for none, or for very many.

    >>> _expanded("a-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    >>> _expanded("{train,more}/{0..1}.tar")
    ['train/0.tar', 'train/1.tar', 'more/0.tar', 'more/1.tar']
    """
    pieces = BRACES.split(pattern)
    options: list[list[str]] = []
    for between, piece in enumerate(pieces):
        found = RANGE.fullmatch(piece) if between % 2 else None
        if found is not None:
            first, last = found.groups()
            if not 0 <= int(last) - int(first) < MOST_TARS:
                raise BadRequest(f"{{{piece}}} is no range of tars", expected="{000000..000012}, the smaller first")
            width = len(first) if first.startswith("0") or len(first) == len(last) else 0
            options.append([f"{number:0{width}d}" for number in range(int(first), int(last) + 1)])
        else:
            options.append(piece.split(",") if between % 2 else [piece])
    return ["".join(chosen) for chosen in islice(product(*options), MOST_TARS)]
