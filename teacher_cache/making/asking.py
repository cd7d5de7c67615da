"""Rows at hand as a student is given them, some at a time, and what its layers make of them. B rows of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from teacher_cache.making.subject import Subject

BATCH_ROWS = 32


def batches(subject: Subject) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and labels, (B, …) and int64 (B, *sites)."""
    kind = subject.blueprint.made_of
    rows = subject.rows
    for shown_B, labels_B in zip(rows.shown_B.split(BATCH_ROWS), rows.labels_B.split(BATCH_ROWS), strict=True):
        yield kind.arguments(kind.trimmed(shown_B)), labels_B


def watch(
    subject: Subject,
    *,
    before: Mapping[nn.Module, Callable[..., None]] | None = None,
    behind: Mapping[nn.Module, Callable[..., None]] | None = None,
) -> None:
    """Run the student over all rows at hand; its hooks, before some layers and behind others, are gone afterwards."""
    import torch

    hooks: list[Any] = [layer.register_forward_pre_hook(hook) for layer, hook in (before or {}).items()]
    hooks += [layer.register_forward_hook(hook) for layer, hook in (behind or {}).items()]
    try:
        with torch.no_grad():
            for inputs_B, _ in batches(subject):
                subject.student(inputs_B)
    finally:
        for hook in hooks:
            hook.remove()
