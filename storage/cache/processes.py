"""Which process a number means: of which machine, and begun when."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def place() -> str | None:
    """Return where a number of a process means this very process; None where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"[:512]
    except (OSError, ValueError):
        return None


def born(pid: int) -> int | None:
    """Return when a process of this place began, in ticks since its machine did; None: there is none that lives."""
    try:
        state, *fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        return None if state in "ZX" else int(fields[18])
    except (OSError, ValueError, IndexError):
        return None
