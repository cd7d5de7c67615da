"""Where an export lies: written beside its place, and renamed to it when it is whole.

`stillroom.json` in it says of which student it is, so that the same export again does nothing.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from storage.digests import digest, file_digest
from storage.errors import BadRequest, CorruptObject, TryAgain
from storage.format.filesystems import check_place, hold_file, storage_failure

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
        BadRequest: it is something else, or nothing can be made there.
        CorruptObject: it was this export, and has changed.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        check_place(out)
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


@contextlib.contextmanager
def part_of(out: Path) -> Iterator[Path]:
    """Yield a folder beside a place, renamed to it when all went well and deleted when not.

    Raises:
        TryAgain: another command writes there.
        StorageFailure: the disk refuses.
    """
    part, mine = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.lock")
    with contextlib.ExitStack() as held:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(hold_file(mine))
            shutil.rmtree(part, ignore_errors=True)  # of a command that was killed
            part.mkdir()
        except BlockingIOError:
            raise TryAgain(
                f"another command exports to {out}", do="wait for it; the same again then says what it did"
            ) from None
        except OSError as error:
            raise storage_failure("write", str(part), error) from None
        try:
            yield part
            if out.exists():
                out.rmdir()  # empty
            part.rename(out)
        except OSError as error:
            raise storage_failure("write", str(part), error) from error
        except SafetensorError as error:  # of transformers, which writes weights by it
            raise storage_failure("write", str(part), OSError(str(error))) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
            mine.unlink(missing_ok=True)


def seal(folder: Path, about: dict[str, Any], kind: str) -> None:
    """Write the mark of an export, with the digests of all of its files."""
    files = {str(path.relative_to(folder)): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / MARK).write_text(json.dumps({**about, "kind": kind, "files": files}, indent=2) + "\n")
