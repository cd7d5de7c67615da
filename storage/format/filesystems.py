"""What a file system may lack, and what is done then: without it where nothing is lost, else named with what helps.

| asked for | lacking on | then |
| --- | --- | --- |
| a hard link, so that a name is created once | gcsfuse, FAT, some network shares | a rename that replaces nothing |
| that too | gcsfuse | refused: two builders could overwrite each other |
| fsync of a folder | CIFS, shared folders of virtual machines | left out: the file itself is synced |
| flock, so that one command trains a student | NFS without its lock daemon, some clusters' disks | a POSIX lock |
| that too | the same, without any | left out, and told |

And what may lie there that is no file to be read: a device, a pipe, more bytes than anything of ours has.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import IO, Any

from storage.errors import BadRequest, StorageFailure

# Of what is read whole, by the end of its name: promises; commits, plans and the ledger; arrays of format 2.
MOST_BYTES = {".json": 2**28, ".parquet": 2**31, "": 2**34}
# file systems disagree on how to say it
LACKING = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL})
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # of Linux's fcntl.h and fs.h


REMEDIES: dict[int | None, str] = {
    errno.ENOSPC: "free space on that disk, then run the same command again; what is committed stays",
    errno.EDQUOT: "free space in your quota, then run the same command again; what is committed stays",
    errno.EEXIST: "name a folder: a file lies there",
    errno.ENOTDIR: "name a folder: a file lies there",
    errno.EISDIR: "look at what is in the folder of that name and delete it; then run the same command again",
    errno.EACCES: "make the folder writable for this user, or name another",
    errno.EPERM: "make the folder writable for this user, or name one on a disk that has hard links",
    errno.ENOTSUP: "name a folder on a disk that has hard links; of a bucket mounted as a folder, its own s3:// or gs://",
    errno.EROFS: "name a folder that is not on a read-only disk",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), then run the same command again; what is committed stays",
    errno.EXDEV: "look at the link and at what is behind it, and delete it by hand",
    errno.ENOENT: "name another folder: in this one nothing can be made",
    errno.ENAMETOOLONG: "name a shorter one",
}
OTHERWISE = "look at that disk, or name a place on another, then run the same command again"
UNREADABLE = "let this user read it, then run the same command again"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# as long as a command names this place; anything else, as a disk that does not answer, may pass
NO_PLACE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR),
    *(errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP),
)


def check_size(path: str, size_bytes: int, most_bytes: int | None = None) -> None:
    """Check what is to be read whole, before memory is taken for it.

    Args:
        path: of the file or object.
        size_bytes: what its disk or store says.
        most_bytes: that there may be; None: as of everything of such a name.

    Raises:
        ValueError: it is larger.
    """
    most = next(size for suffix, size in MOST_BYTES.items() if path.endswith(suffix))
    most = most if most_bytes is None else most_bytes
    if size_bytes > most:
        raise ValueError(f"{size_bytes:,} bytes, and there may be {most:,}")


def read_file(path: Path, most_bytes: int | None = None) -> bytes:
    """Return the bytes of a file that may be anything: a link to a device, a pipe, a file of nothing but holes.

    Raises:
        ValueError: it is no regular file, or it is larger than `check_size` allows.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        check_size(path.name, size_bytes, most_bytes)
        return read_span(file.fileno(), 0, size_bytes)


def open_regular(path: Path) -> FileIO:
    """Return an open file. Raises ValueError, OSError: as `read_file`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # of a pipe nobody waits for a writer
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ELOOP):  # a socket; links in a circle
            raise ValueError("it is no regular file") from None
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        raise ValueError("it is no regular file")
    return open(descriptor, "rb", buffering=0)


def look_at(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Return what lies behind an entry of a folder; of links in a circle, the link; None if it is gone by now.

    Raises:
        OSError: it cannot be looked at.
    """
    try:  # not `contextlib.suppress`, which costs as much as the look itself
        return entry.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return entry.stat(follow_symlinks=False)


def read_span(descriptor: int, start: int, stop: int) -> bytes:
    """Return bytes [start, stop) of an open file, as far as it goes."""
    at, stop = start, min(stop, os.fstat(descriptor).st_size)  # a forged span may be of any size
    parts = []
    while at < stop and (part := os.pread(descriptor, stop - at, at)):  # one call reads at most 2 GB
        parts.append(part)
        at += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def open_new(path: Path) -> FileIO:
    """Return a file that was not there, open to be written, in folders that may be made for it. Raises OSError."""
    for _ in range(32):
        # Another process may delete a folder as empty, and even between two looks of mkdir's own.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            make_folder(path.parent)
            return open(path, "xb", buffering=0)
    # what it says now is the error
    make_folder(path.parent)
    return open(path, "xb", buffering=0)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, each synced into its own parent."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def name_once(temporary: Path, path: Path) -> bool:
    """Give a file its final name unless that is taken; return whether it is ours. Of concurrent calls one succeeds.

    Raises:
        OSError: the disk refused; ENOTSUP, if it can neither link nor rename without replacing; the name is taken by
            what is no file, and never will be one.
    """
    try:
        os.link(temporary, path)  # atomic, and fails if the name is taken
        ours = True
    except FileExistsError:
        # NFS may repeat a link whose first answer was lost; a second name on our own file means it is ours.
        ours = os.stat(temporary).st_nlink > 1
    except OSError as error:
        if error.errno not in LACKING:
            raise
        ours = _rename_once(temporary, path)
    if not ours and path.is_dir():
        raise OSError(errno.EISDIR, "a folder has this name")
    if not ours and path.is_symlink() and not path.exists():
        raise OSError(errno.EXDEV, "a link to nothing has this name")
    return ours


def storage_failure(verb: str, path: str, error: OSError) -> StorageFailure:
    """Return the error of a disk that refused, with what helps; libraries say its number in a text of their own."""
    told = error.strerror or str(error)
    said = re.search(r"(?:errno|os error) (\d+)", told)
    code = int(said[1]) if said and error.errno is None else error.errno
    do = REMEDIES.get(code, OTHERWISE)
    if verb in ("read", "list") and code in (errno.EACCES, errno.EPERM):
        do = UNREADABLE
    found = os.strerror(code) if said and code is not None else told
    return StorageFailure(f"cannot {verb} {path}", found=found, do=do)


def check_place(path: Path, *, within: bool = False) -> None:
    """Check that a file or folder can be made at a place, before anything is spent on what is to lie there.

    Whether there will be room for it nobody knows yet.

    Args:
        path: of what is to be made.
        within: it is a folder that may be there, and others are to be made in it.

    Raises:
        BadRequest: its disk is read-only, a file is where a folder should be, or this user may not write there.
        StorageFailure: its disk fails.
    """
    above = path.absolute() if within else path.absolute().parent
    try:
        while not above.exists() and above != above.parent:
            above = above.parent
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        if error.errno in NO_PLACE:
            raise BadRequest(
                f"{path} cannot be written",
                found=f"nothing can be made in {above}: {error.strerror}",
                do=REMEDIES.get(error.errno, OTHERWISE),
            ) from None
        if error.errno not in NO_ROOM:
            raise storage_failure("write", str(path), error) from None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in LACKING:
            raise
    finally:
        os.close(descriptor)


def lock(file: IO[Any]) -> bool:
    """Hold a file until it is closed; return False where its file system has no locks.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # before OSError, of which it is a kind
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    else:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:  # what some systems say in place of "held by another"
        raise BlockingIOError(*error.args) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


@contextlib.contextmanager
def hold_file(path: Path) -> Iterator[tuple[IO[str], bool]]:
    """Hold a file for as long as the block, made if it is not there; whoever holds it may delete it within.

    Yields:
        The file, and whether its file system has locks.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be opened.
    """
    while True:
        with open(path, "a+", encoding="utf-8", errors="replace") as file:
            held = lock(file)
            if _is_at(file, path):
                yield file, held
                return


def _is_at(file: IO[str], path: Path) -> bool:
    """Return whether an open file is the one that others would open: its last holder may just have deleted it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _rename_once(temporary: Path, path: Path) -> bool:
    """Rename a file unless the new name is taken, by Linux's renameat2; Python has no call for it."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # not every C library has it
    if rename is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    names = os.fsencode(temporary), os.fsencode(path)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE) == 0:
        return True
    if (code := ctypes.get_errno()) == errno.EEXIST:
        return False
    raise OSError(errno.ENOTSUP if code in LACKING else code, os.strerror(code))
