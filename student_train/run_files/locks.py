"""Who trains: locks of files, which go with the process that holds them, after a kill too."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from storage.cache.lease import RENEW_S, Holder
from storage.digests import fingerprint
from storage.errors import BadRequest, Interrupted, StillroomError, TryAgain
from storage.format.filesystems import check_place, hold_file, storage_failure
from student_train.run_files.records import read_record

LOOK_EVERY_S = 1.0
MOST_BYTES = 1000  # of what a lock says


@contextlib.contextmanager
def locked(path: Path, what: str, do: str = "wait for it to end") -> Iterator[bool]:
    """Hold a file, made if it is not there; False: its disk has no locks.

    Args:
        path: of the file, which says who holds it.
        what: another process is at, for a refusal.
        do: about it.

    Raises:
        TryAgain: another process holds it.
        BadRequest: its folder is none, or nothing can be made there.
        StorageFailure: it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file, held = stack.enter_context(hold_file(path))
        except BlockingIOError:
            raise TryAgain(f"another process is training {what}", found=_said(path), do=do) from None
        except (FileExistsError, NotADirectoryError):
            raise no_folder(path.parent) from None
        except OSError as error:
            check_place(path.parent, within=True)
            raise storage_failure("write", str(path.parent), error) from None
        _say(file)
        yield held


@contextlib.contextmanager
def job_locked(
    runs: Path, students: Sequence[str], *, wait: bool, note: Callable[[str], None], stop: Callable[[], bool]
) -> Iterator[None]:
    """Let one command at a time train these students of a folder, all of them; nothing is held if all are finished.

    Args:
        runs: folder of the runs.
        students: of the job, by name.
        wait: for another command to end.
        note: is told who is waited for.
        stop: asked while that lasts.

    Raises:
        TryAgain: another command trains them.
        Interrupted: `stop` said so.
    """
    if all(_is_finished(runs / name) for name in students):
        yield  # as far as is known here; if not, each student still has a lock of its own
        return
    path, told = runs / f".lock-{fingerprint(sorted(students))[:8]}", False
    what = f"{students[0]}{f' and {len(students) - 1} more' if students[1:] else ''} of {runs}"
    do = "wait for it to end, or let this command wait (--wait)"
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(path, what, do))
            except TryAgain as error:
                if not wait:
                    raise
                if not told:
                    note(f"waiting for its end: {error.found} trains {what}")
                    told = True
            else:
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)  # while it is held: whoever opened it meanwhile sees that it is gone
                return
        if stop():
            raise Interrupted("stopped while another command trained these students")
        time.sleep(LOOK_EVERY_S)


def no_folder(runs: Path) -> BadRequest:
    """Return what to raise where a folder of runs cannot be one."""
    expected, do = "a folder of runs, or nothing", "name one in `runs`"
    return BadRequest(f"{runs} is no folder", found="a file, there or above it", expected=expected, do=do)


def _is_finished(folder: Path) -> bool:
    try:
        record = read_record(folder)
    except StillroomError:  # told by whoever prepares it
        return False
    return record is not None and record.status == "finished"


def _say(file: IO[str]) -> None:
    """Write into a file that is held who holds it."""
    with contextlib.suppress(OSError):  # a full disk; the lock is held all the same
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), Holder.here(RENEW_S).told.encode())  # no buffer, which would fail again at its end


def _said(path: Path) -> str:
    """Return who holds a file, as far as it says."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        if said := file.read(MOST_BYTES).strip():
            return said
    return f"{path} is held"
