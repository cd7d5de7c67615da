"""Where an export lies: written beside its place, and renamed to it when it is whole.

`stillroom.json` in it says of which student it is, so that the same export again does nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.digests import digest, file_digest
from storage.errors import BadRequest, CorruptObject, StorageFailure

MARK = "stillroom.json"


@dataclass(frozen=True)
class Exported:
    """An exported student.

    Attributes:
        folder: where it lies.
        kind: class that loads it.
        difference, largest: of the compared logits; None: nothing was done.
        told: what was compared, and what lies beside the model.
        done_before: whether it lay there already.
    """

    folder: Path
    kind: str
    difference: float | None
    largest: float | None
    told: tuple[str, ...]
    done_before: bool = False


def done_before(out: Path, about: dict[str, Any], files: Mapping[str, bytes]) -> Exported | None:
    """Return what lies at a place if it is this very export.

    Args:
        out: the place.
        about: what the export is of.
        files: by name, that it must have.

    Raises:
        BadRequest: it is something else.
        CorruptObject: it was this export, and has changed.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        mark = json.loads((out / MARK).read_bytes())
        same = {key: mark.get(key) for key in about} == about
        exported = dict(mark["files"])
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        same, mark, exported = False, {}, {}
    others = [name for name, data in files.items() if exported.get(name) != digest(data)]
    if not same or others:
        of_other_files = f"the same export with another {', '.join(others)}" if same else "another export"
        raise BadRequest(
            f"{out} is there already",
            found=of_other_files if mark else "something that is no export",
            expected="no folder, an empty one, or the same export",
            do="name another folder",
        )
    for name, expected in exported.items():
        if not (out / name).exists() or file_digest(out / name) != expected:
            raise CorruptObject(
                f"{out / name} is not what was exported",
                found="another digest" if (out / name).exists() else "no such file",
                expected=f"digest {expected}  ({MARK})",
                do=f"rm -r {out}    # then export it again",
            )
    return Exported(out, mark["kind"], None, None, (), done_before=True)


class part_of:  # noqa: N801 - used as a function
    """A folder beside its place, renamed to it when all went well and deleted when not."""

    def __init__(self, out: Path):
        self._out = out
        self._part = out.with_name(f".{out.name}.part")

    def __enter__(self) -> Path:
        shutil.rmtree(self._part, ignore_errors=True)  # of a command that was killed
        try:
            self._part.mkdir(parents=True)
        except OSError as error:
            raise StorageFailure(f"cannot write {self._part}", found=error.strerror) from None
        return self._part

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self._part, ignore_errors=True)
            return
        if self._out.exists():
            self._out.rmdir()  # empty
        self._part.rename(self._out)


def seal(folder: Path, about: dict[str, Any], kind: str) -> None:
    """Write the mark of an export, with the digests of all of its files."""
    files = {str(path.relative_to(folder)): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / MARK).write_text(json.dumps({**about, "kind": kind, "files": files}, indent=2) + "\n")
