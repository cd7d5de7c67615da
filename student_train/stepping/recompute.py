"""Blocks whose activations are not kept for the backward pass: that runs each block once more, to have them again.

Of a deep network only what goes from block to block is kept, and what one block keeps: less memory, a third more time,
the very same weights. What dropout drew is drawn again, and batch norm's statistics see each batch once.

Source: Chen et al. 2016, arXiv 1604.06174; torch.utils.checkpoint, without re-entry.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from storage.errors import BadRequest
from student_train.students import Student


def recomputed_blocks(student: Student) -> list[nn.Module]:
    """Return the blocks of a student: those that say so (`is_block`), and layers of transformers that it may recompute.

    Raises:
        BadRequest: there are none.
    """
    library = sys.modules.get("transformers.modeling_layers")  # imported, if the student is one of its models
    layer = getattr(library, "GradientCheckpointingLayer", ())
    found = [m for m in student.network.modules() if getattr(m, "is_block", False) or isinstance(m, layer)]
    if not found:
        architecture = student.blueprint.architecture
        raise BadRequest(
            f"recompute = true would do nothing: architecture {architecture!r} has no blocks to run again",
            expected="gpt, encoder, resnet, transformers; or modules whose class has is_block = True",
            do="no recompute",
        )
    return found


def recompute_blocks(student: Student) -> None:
    """Have each of a student's blocks run again in the backward pass, from now on. Raises BadRequest."""
    for block in recomputed_blocks(student):
        block.forward = Recompute(block)


class Recompute:
    """The forward pass of a block while it is trained; copied with it."""

    def __init__(self, block: nn.Module):
        self._block = block

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        forward = partial(type(self._block).forward, self._block)
        if not (self._block.training and torch.is_grad_enabled()):
            return forward(*inputs, **named)
        norms = [m for m in self._block.modules() if isinstance(m, _BatchNorm)]
        about: dict[str, Any] = {}
        if norms:
            about["context_fn"] = lambda: (contextlib.nullcontext(), _counted_once(norms))
        return checkpoint(forward, *inputs, use_reentrant=False, **about, **named)


@contextlib.contextmanager
def _counted_once(norms: list[_BatchNorm]) -> Iterator[None]:
    """Let batch norms forget what they add to their statistics: the first run has added it."""
    kept = [dict(norm._buffers) for norm in norms]  # noqa: SLF001 - a setter would copy
    for norm, buffers in zip(norms, kept, strict=True):
        norm._buffers.update({k: None if v is None else v.clone() for k, v in buffers.items()})  # noqa: SLF001
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)  # noqa: SLF001
