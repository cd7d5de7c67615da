"""Rows at hand as a student is given them, some at a time, and what its layers make of them. B rows of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from student_train.students import Student
    from teacher_cache.making.subject import Subject

BATCH_ROWS = 32


def batches(subject: Subject) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and labels, (B, …) and int64 (B, *sites)."""
    kind = subject.blueprint.made_of
    rows = subject.rows
    for shown_B, labels_B in zip(rows.shown_B.split(BATCH_ROWS), rows.labels_B.split(BATCH_ROWS), strict=True):
        trimmed_B = kind.trimmed(shown_B)
        by_place = trimmed_B.shape[1] < shown_B.shape[1] and labels_B.ndim > 1  # sites are counted through
        yield kind.arguments(trimmed_B), labels_B[:, : trimmed_B.shape[1]] if by_place else labels_B


def watch(
    subject: Subject,
    *,
    before: Mapping[nn.Module, Callable[..., None]] | None = None,
    behind: Mapping[nn.Module, Callable[..., None]] | None = None,
    inside: Callable[[Tensor | None], None] | None = None,
) -> None:
    """Run the student over all rows at hand; its hooks, before some layers and behind others, are gone afterwards.

    Args:
        subject: the student, and the rows.
        before: what is called with a layer and what it is given.
        behind: what is called with a layer, what it is given, and what it answers.
        inside: what is told, ahead of each batch, which positions are of a row, (B, L) bool; None: all.
    """
    import torch

    hooks: list[Any] = [layer.register_forward_pre_hook(hook) for layer, hook in (before or {}).items()]
    hooks += [layer.register_forward_hook(hook) for layer, hook in (behind or {}).items()]
    try:
        with torch.no_grad():
            for inputs_B, _ in batches(subject):
                if inside is not None:
                    inside(subject.blueprint.made_of.inside(inputs_B))
                subject.student(inputs_B)
    finally:
        for hook in hooks:
            hook.remove()


def read_otherwise(subject: Subject, names: Sequence[str]) -> list[str]:
    """Return the layers whose weights a network reads itself, besides calling them or without: they stay as they are.

    Each is tried as one whose weights are nowhere but in what takes its place.
    """
    import copy

    import torch
    from torch import nn

    network, found = subject.student.network, []
    inputs_B = next(iter(batches(subject)))[0][:1]
    for name in names:
        parent, _, own = name.rpartition(".")
        layer = network.get_submodule(name)
        if "weight" not in layer._parameters:  # noqa: SLF001 - made of others, as by a parametrisation
            continue
        setattr(network.get_submodule(parent), own, nn.Sequential(copy.deepcopy(layer)))
        own_parameters = layer._parameters  # noqa: SLF001 - of whoever else holds the layer
        layer._parameters = {key: value for key, value in own_parameters.items() if key != "weight"}  # noqa: SLF001
        try:
            with torch.inference_mode():
                subject.student(inputs_B)
        except AttributeError:
            found.append(name)
        finally:
            layer._parameters = own_parameters  # noqa: SLF001
            setattr(network.get_submodule(parent), own, layer)
    return found


def retake(student: Student, subject: Subject) -> list[str]:
    """Set each batch norm's running mean and variance to those over the rows at hand; return in words what was done.

    Those of the teacher were of other activations: without it what was pruned answers at chance, whatever its weights
    know (EagleEye, Li et al. 2020, arXiv:2007.02491). All else of the student is as in evaluation, and a batch norm
    without running statistics has nothing to take.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    norms = [each for each in student.modules() if isinstance(each, _BatchNorm) and each.running_mean is not None]
    asked = [inputs_B for inputs_B, _ in batches(subject) if len(inputs_B) > 1]  # one row has no variance
    if not norms:
        return []
    if not asked:
        return [f"{len(norms)} batch norms keep the teacher's means and variances: one row has none of its own"]
    rates = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    try:
        with torch.no_grad():
            for inputs_B in asked:
                student(inputs_B)
    finally:
        for norm, rate in zip(norms, rates, strict=True):
            norm.momentum = rate
            norm.eval()
    return [f"means and variances of {len(norms)} batch norms taken again over {sum(map(len, asked))} rows"]
