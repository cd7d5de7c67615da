"""Devices: which one is asked for, and how much of its memory is free."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from storage.errors import BadRequest

Device = Literal["auto", "cpu", "cuda"]


def find_device(device: Device) -> torch.device:
    """Return the device that is asked for; "auto" is a GPU where there is one.

    Raises:
        BadRequest: a GPU is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise BadRequest("there is no CUDA device", found=f"torch {torch.__version__}", do="--device cpu, or auto")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """Return what a device is called, of a processor the instructions that torch uses: rounding depends on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.backends.cpu.get_cpu_capability()})"


def free_bytes(device: torch.device) -> int:
    """Return the memory that a new allocation may take on a device, within the limit of a container if there is one."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024  # kB
    except OSError:
        available //= 2  # no such file: not Linux; half of all there is
    return min(available, _container_free_bytes(available))


def _container_free_bytes(otherwise: int) -> int:
    """Return what a control group of this process still allows; page cache counts as free."""
    folder = Path("/sys/fs/cgroup")  # of control groups, version 2
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        for line in (folder / "memory.stat").read_text().splitlines():
            if line.startswith("inactive_file "):
                used -= int(line.split()[1])
        return max(0, int(limit) - used) if limit != "max" else otherwise
    except (OSError, ValueError):
        return otherwise  # there is no such group
