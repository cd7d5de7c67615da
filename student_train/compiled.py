"""A forward pass as the job wants it: as it is, compiled, or compiled and recorded as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch._functorch import config as functorch_config

from storage.errors import BadRequest

Compile = bool | Literal["cuda_graphs"]


def check_compile(student: str, how: Compile, device: torch.device) -> None:
    """Raise BadRequest if CUDA graphs are wanted where there is no GPU to record them."""
    if how == "cuda_graphs" and device.type != "cuda":
        raise BadRequest(
            f'student {student} has compile = "cuda_graphs", which replays what a GPU was told to do',
            found=f"device {device}",
            do="compile = true, or false",
        )


def compiled(function: Callable[..., Any], how: Compile) -> Callable[..., Any]:
    """Return a function that gives the same, perhaps faster after its first calls.

    Compiled, what it saves for the backward pass is kept for further ones: in this whole process, torch knows no less.
    """
    if not how:
        return function
    # Shares of terms take a backward pass for each; torch asks this when they are run, not only when it compiles.
    functorch_config.donated_buffer = False
    return torch.compile(function, mode="reduce-overhead" if how == "cuda_graphs" else None)
