"""Which files of a folder are samples: one rule for every kind of dataset, and a count of what it passes over.

What programs leave behind is no sample, wherever it lies: names that begin with a dot (`._a.png`,
`.ipynb_checkpoints`), `@eaDir`, `__MACOSX`, `Thumbs.db`. Links are followed, each folder once. All else is a sample if
its suffix is asked for, in any case of letters; if not, it is passed over, and the build says so (invariant 12).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# lower-case; of Synology, macOS and Windows
LEFT_BEHIND = frozenset({"@eadir", "__macosx", "thumbs.db", "desktop.ini"})
# as the Hub and TensorFlow call the files of one data set: train-00000-of-00002.parquet, -0a1b2c3d4e5f6a7b behind it
COUNTED = re.compile(r"(?P<of>.+)-(?P<number>\d{4,6})-of-(?P<all>\d{4,6})(-[0-9a-f]{16})?(?P<end>\..+)")
SHOWN = 6  # kinds of what was passed over, in a note


@dataclass(frozen=True)
class Listing:
    """The samples among the files of a folder.

    Attributes:
        files: sorted by the parts of their paths.
        passed_over: kind → number of files: a suffix such as "*.heic", or the name of what a program left behind.
    """

    files: tuple[Path, ...]
    passed_over: Counter[str]

    def __add__(self, other: Listing) -> Listing:
        return Listing((*self.files, *other.files), self.passed_over + other.passed_over)


def is_left_behind(name: str) -> bool:
    """Return whether a file or folder of this name is none of the user's own."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def list_files(folder: Path, suffixes: Collection[str], *, deep: bool = True) -> Listing:
    """Return the samples of a folder.

    Args:
        folder: where they lie.
        suffixes: of samples, lower-case, with their dots; of compressed ones both, as in ".csv.gz".
        deep: whether folders below are looked into, to any depth.
    """
    found: list[Path] = []
    passed_over: Counter[str] = Counter()
    ends = tuple(suffixes)
    for path in _walk(folder, passed_over, deep=deep):
        if not path.name.lower().endswith(ends):
            passed_over[f"*{path.suffix}" if path.suffix else "files without a suffix"] += 1
        elif path.is_file():
            found.append(path)
        else:
            passed_over["links that lead nowhere" if path.is_symlink() else "what is no regular file"] += 1
    return Listing(tuple(sorted(found)), passed_over)


def passed_over(path: Path, suffixes: Collection[str], *, deep: bool = False) -> list[str]:
    """Return a note on what was passed over in a folder of files of these suffixes; none if nothing was."""
    passed = told(list_files(path, suffixes, deep=deep).passed_over) if path.is_dir() else None
    return [] if passed is None else [f"passed over: {passed}"]


def lacking(path: Path, files: Iterable[Path]) -> list[str]:
    """Return a note on files that those of a folder count in their names, and that are not there; none if all are.

    Args:
        path: of the dataset; a single file is what somebody chose.
        files: that are read.
    """
    counted: dict[tuple[Path, str, str, str], set[int]] = {}
    for file in files if path.is_dir() else ():
        if (named := COUNTED.fullmatch(file.name)) is not None:
            counted.setdefault((file.parent, named["of"], named["all"], named["end"]), set()).add(int(named["number"]))
    gone = [
        f"{of}-{number:0{len(all_of)}d}-of-{all_of}{end}"
        for (_, of, all_of, end), numbers in sorted(counted.items())
        for number in sorted({*range(int(all_of))} - numbers)
    ]
    if not gone:
        return []
    more = f" and {len(gone) - SHOWN} more" if len(gone) > SHOWN else ""
    return [f"files that others count in their names are not there: {', '.join(gone[:SHOWN])}{more}"]


def told(counts: Counter[str]) -> str | None:
    """Return kinds of files as a sentence's object, the most first; None: there are none.

    >>> told(Counter({"*.heic": 20, "*.txt": 1}))
    '20 × *.heic, 1 × *.txt'
    """
    kinds = (+counts).most_common()  # the plus drops kinds that were counted to 0
    more = sum(count for _, count in kinds[SHOWN:])
    shown = [f"{count} × {kind}" for kind, count in kinds[:SHOWN]]
    return ", ".join([*shown, *([f"{more} of other kinds"] if more else [])]) or None


def _walk(folder: Path, passed_over: Counter[str], *, deep: bool) -> Iterator[Path]:
    """Yield what is no folder, links to folders followed; count what programs left behind."""
    seen: set[tuple[int, int]] = set()  # folders on disk: a link may lead back up
    for at, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(at)
        place = (status.st_dev, status.st_ino)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        for name in sorted(name for name in folders if not deep or is_left_behind(name)):
            passed_over[f"{name}/"] += sum(len(inner) for _, _, inner in os.walk(Path(at) / name))
        # in place: os.walk goes down what is left here
        folders[:] = sorted(name for name in folders if deep and not is_left_behind(name))
        for name in names:
            if is_left_behind(name):
                # a kind, not each name: macOS leaves one beside every file
                passed_over["._*" if name.startswith("._") else ".*" if name.startswith(".") else name] += 1
            else:
                yield Path(at) / name
