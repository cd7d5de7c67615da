"""A forward pass as the job wants it: as it is, or compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._functorch import config as functorch_config


def compiled(function: Callable[..., Any], wanted: bool) -> Callable[..., Any]:
    """Return a function that gives the same, perhaps faster after its first calls.

    Compiled, what it saves for the backward pass is kept for further ones: in this whole process, torch knows no less.
    """
    if not wanted:
        return function
    # Shares of terms take a backward pass for each; torch asks this when they are run, not only when it compiles.
    functorch_config.donated_buffer = False
    return torch.compile(function)
