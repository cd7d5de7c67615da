"""Load a teacher as a job names it; on a worker, once for all its shards."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
from functools import lru_cache
from typing import TYPE_CHECKING

from storage.errors import BadRequest, StaleCache
from storage.format.specs import TeacherSpec
from teacher_cache.teachers.kinds import KINDS
from teacher_cache.teachers.model import Teacher
from teacher_cache.teachers.options import TeacherOptions

if TYPE_CHECKING:
    import torch

KEPT = 2**27  # bytes at the end of the C library's heap that are not given back
MAPPED = 2**25  # bytes from which on a piece is no part of it, and is given back at once: glibc's own bound
DASK_KEEPS = "65536"  # of its workers, by the variable that anybody may set for them
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def load_teacher(options: TeacherOptions, device: torch.device) -> Teacher:
    """Return a teacher ready to run; on a processor, in a process that keeps what it frees.

    Raises:
        BadWeights: the weights cannot be read, or do not fit the model.
        BadTeacher: the factory failed, or a named layer does not exist.
    """
    if device.type == "cpu":
        keep_freed()
    return Teacher(options, KINDS[options.origin].load(options), device)


def keep_freed() -> None:
    """Let this process keep what a batch took for the next one, unless its environment says how much, on glibc.

    Pages that are given back come again cleared, a third of a convolutional network's time (docs/log.md).
    """
    if os.environ.get("MALLOC_TRIM_THRESHOLD_", DASK_KEEPS) == DASK_KEEPS:
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            library.mallopt(_M_TRIM_THRESHOLD, KEPT)
            library.mallopt(_M_MMAP_THRESHOLD, MAPPED)


def pick_device(asked: str) -> str:
    """Return "cpu" or "cuda" for "auto", "cpu" or "cuda". Raises BadRequest: there is no CUDA device."""
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise BadRequest(
            "no CUDA device can be used here", found="torch.cuda.is_available() is false", do="--device cpu"
        )
    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


@lru_cache(maxsize=1)  # one worker, one teacher: the next one takes its place
def cached_teacher(options_json: str, promise: str, device: str) -> Teacher:
    """Return the teacher of a piece of work, loaded for the first one of each process.

    Args:
        options_json: TeacherOptions as JSON.
        promise: its TeacherSpec in the cache, as JSON.
        device: a torch device.

    Raises:
        StaleCache: its code or weights, as this process sees them, are not those of the promise.
    """
    import torch

    options = TeacherOptions.model_validate(json.loads(options_json))
    teacher = load_teacher(options, torch.device(device))
    promised = TeacherSpec.model_validate_json(promise)
    # after loading: what was read is what is compared
    found = options.promise(promised.num_classes, promised.uses).fingerprint
    if found != promised.fingerprint:
        raise StaleCache(
            f"teacher {options.name} is not the one that the cache was promised",
            found=f"fingerprint {found}, from its files as {socket.gethostname()} sees them",
            expected=f"fingerprint {promised.fingerprint}",
            do="leave a teacher's files alone while it runs; keep them on a disk that every worker sees",
        )
    return teacher
