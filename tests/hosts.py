"""Several hosts on one machine: network namespaces of their own, and a switch between them whose links can be drawn.

They share this machine's files, as hosts do that have a network file system. Nothing of them is seen outside, and
nothing is left: a namespace goes with its last process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

NEEDED = ("ip", "nsenter", "unshare")
NETWORK = "198.18.0"  # of benchmarks (RFC 2544): no other host has it
HOLD = "echo; exec sleep infinity"  # a line once there is a namespace


class Host(NamedTuple):
    """One of them.

    Attributes:
        address: its IP.
        inside: what stands before a command that is to run there.
        link: what stands before `up` and `down`, which draw its cable and plug it in again.
    """

    address: str
    inside: tuple[str, ...]
    link: tuple[str, ...]

    def program(self, name: str, *arguments: object) -> list[str]:
        """Return a command that runs a program of this Python's there."""
        return [*self.inside, str(Path(sys.executable).with_name(name)), *map(str, arguments)]

    def plug(self, state: str) -> None:
        """Let the link be "up" or "down"."""
        _run(*self.link, state)


def why_not() -> str | None:
    """Return why there can be no such hosts here; None if there can."""
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        return f"network namespaces need iproute2 and util-linux: no {', '.join(missing)}"
    probe = [*_apart(), "ip", "link", "add", "switch", "type", "bridge"]
    tried = subprocess.run(probe, check=False, capture_output=True, text=True)
    return f"network namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else None


@contextlib.contextmanager
def private_hosts(count: int) -> Iterator[list[Host]]:
    """Yield hosts that hear each other and nobody else, for as long as the block."""
    with contextlib.ExitStack() as stack:
        within = _within(stack.enter_context(_held(_apart())))
        _run(*within, "ip", "link", "add", "switch", "type", "bridge")
        _run(*within, "ip", "link", "set", "switch", "up")
        hosts = []
        for number in range(1, count + 1):
            process_id = stack.enter_context(_held([*within, "unshare", "--net"]))
            inside, port, address = _within(process_id), f"port{number}", f"{NETWORK}.{number}"
            of_the_other_end = ("peer", "name", "eth0", "netns", str(process_id))
            _run(*within, "ip", "link", "add", port, "type", "veth", *of_the_other_end)
            _run(*within, "ip", "link", "set", port, "master", "switch", "up")
            _run(*inside, "ip", "link", "set", "lo", "up")
            _run(*inside, "ip", "address", "add", f"{address}/24", "dev", "eth0")
            _run(*inside, "ip", "link", "set", "eth0", "up")
            _run(*inside, "ip", "route", "add", "default", "dev", "eth0")
            hosts.append(Host(address, inside, (*within, "ip", "link", "set", port)))
        yield hosts


def _apart() -> tuple[str, ...]:
    """Return what stands before a command that is to have a network of its own: whoever is not root is one there."""
    return ("unshare", "--net") if os.geteuid() == 0 else ("unshare", "--map-root-user", "--net")


def _within(process_id: int) -> tuple[str, ...]:
    """Return what stands before a command that is to run in the namespace of a process."""
    user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
    return ("nsenter", "--target", str(process_id), *user, "--net")


@contextlib.contextmanager
def _held(apart: Sequence[str]) -> Iterator[int]:
    """Yield the process that holds a new namespace."""
    command = [*apart, "sh", "-c", HOLD]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            yield holder.pid
        finally:
            holder.kill()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60)
