"""What no reader may do, whatever it reads: noticed by Python's own audit events, and by what the process takes."""

from __future__ import annotations

import contextlib
import resource
import signal
import site
import sys
import sysconfig
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

MOST_CPU_S = 10.0  # of one case; ours take milliseconds
MOST_WAIT_S = 120  # on a machine that does other work
MOST_BYTES = 512 * 2**20  # by which one case may make the process larger
CODE = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "ctypes.dlopen")
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree")
OF_PYTHON = tuple(
    {
        *("/proc/", "/sys/", "/dev/null", "/usr/share/zoneinfo", "<"),
        *(str(Path(path).resolve()) for path in (sys.prefix, sys.base_prefix, *site.getsitepackages())),
        *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib")),
        *(str(path) for path in Path(torch.__file__).resolve().parents[1:2]),
        str(Path(__file__).parents[2]),
    }
)


class Harm(BaseException):
    """A reader did what none may; no reader can take it for an error of a file."""


class _Watch:
    def __init__(self) -> None:
        self.folder: str | None = None  # what may be opened; None: nobody is watched
        self.found: str | None = None

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None or self.found is not None:  # the first is told
            return
        if event in CODE or event in NETWORK:
            self.found = f"{event} {arguments!r}"[:300]
        elif event == "import" and arguments[0] in ("evil", "antigravity"):
            self.found = f"import {arguments[0]}"
        elif event == "exec" and not self._is_own(getattr(arguments[0], "co_filename", "<")):
            self.found = f"code of {arguments[0].co_filename}"
        elif event == "open" or event in CHANGES:
            path = arguments[0]
            if isinstance(path, str | bytes) and not self._is_own(path.decode() if isinstance(path, bytes) else path):
                self.found = f"{event} {path!r}"[:300]

    def _is_own(self, path: str) -> bool:
        if path.startswith("<"):
            return True
        whole = str(Path(path).absolute()) if "\0" not in path else path
        inside = whole.startswith(f"{self.folder}/") and ".." not in whole and not whole.endswith("evil.py")
        return inside or whole == self.folder or whole.startswith(OF_PYTHON)


_watch = _Watch()


@cache
def _hook() -> None:
    """Begin to hear; an audit hook stays for the life of a process, so there is one."""
    sys.addaudithook(_watch.hear)


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Raise Harm if what is done within leaves a folder, runs code, asks the network, or takes too long or too much."""
    _hook()
    before_bytes, before_s = _peak_bytes(), time.process_time()
    previous = signal.signal(signal.SIGALRM, _late)
    signal.alarm(MOST_WAIT_S)
    _watch.folder, _watch.found = str(folder), None
    try:
        yield
    finally:  # whether it ended with an error or not
        _watch.folder = None
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        _look(before_bytes, before_s)


def _look(before_bytes: int, before_s: float) -> None:
    if _watch.found is not None:
        raise Harm(_watch.found)
    if (taken_s := time.process_time() - before_s) > MOST_CPU_S:
        raise Harm(f"{taken_s:.1f} s")
    if (taken := _peak_bytes() - before_bytes) > MOST_BYTES:
        raise Harm(f"{taken / 2**20:.0f} MiB")


def _late(*_: object) -> None:
    raise Harm(f"no end within {MOST_WAIT_S} s")
