"""Which units matter: one number for each, larger where it is missed more.

Each layer that has a unit says what it is worth there, as a share of what its units are worth on average; a unit's
score is the mean over these layers. B rows of a batch, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from storage.errors import BadRequest
from teacher_cache.making.asking import batches, watch
from teacher_cache.making.subject import Subject
from teacher_cache.making.ways.coupled import Side, Units

if TYPE_CHECKING:
    from torch import Tensor, nn

By = Literal["magnitude", "taylor", "activation", "first", "random"]

Scorer = Callable[[Subject, Sequence[Units], int], "list[Tensor]"]


def score(by: By, subject: Subject, units: Sequence[Units], seed: int) -> list[Tensor]:
    """Return the score of each unit, float32 (U,) for each of `units`.

    Args:
        by: how.
        subject: whose units they are.
        units: that stand and fall together.
        seed: of what is drawn.
    """
    return SCORES[by](subject, units, seed)


def _by_magnitude(subject: Subject, units: Sequence[Units], seed: int) -> list[Tensor]:
    """Score by the squares of the weights, of all layers that have the unit.

    Source: Li et al. 2017, arXiv 1608.08710, for filters; Fang et al. 2023, arXiv 2301.12900, section 3.3, for groups.
    """
    layers = dict(subject.student.network.named_modules())
    weights = {name: layer.weight.detach() for name, layer in layers.items() if _has_weight(layer)}
    return [_over_sides(each, partial(_known, {n: w.square() for n, w in weights.items()})) for each in units]


def moved(subject: Subject) -> dict[str, Tensor]:
    """Return (gradient × weight)² of each parameter, by name, summed over batches: how far the loss would move.

    The loss is the cross-entropy to the label, and to the teacher's own top class where there is none.

    Raises:
        BadRequest: its answers are no classes, so that there is no loss.

    Source: Molchanov et al. 2019, arXiv 1906.10771, eq. 8.
    """
    import torch
    from torch.nn import functional

    task = subject.blueprint.asked
    if not task.has_classes:
        raise BadRequest(
            "a teacher of vectors has no loss by which its weights could be scored",
            found="--by taylor",
            do="--by magnitude, or activation",
        )
    network = subject.student.network
    far = {name: torch.zeros_like(parameter) for name, parameter in network.named_parameters()}
    network.requires_grad_(True)
    with torch.enable_grad():
        for inputs_B, labels_B in batches(subject):
            asked_N = task.asked_sites(labels_B)  # no padding
            logits_NC = subject.student(inputs_B).flatten(0, -2)[asked_N]
            labels_N = labels_B.reshape(-1)[asked_N]
            labels_N = labels_N.where(labels_N >= 0, logits_NC.argmax(1))
            loss = functional.cross_entropy(logits_NC, labels_N)
            gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
            for (name, parameter), gradient in zip(network.named_parameters(), gradients, strict=True):
                if gradient is not None:
                    far[name] += (gradient * parameter.detach()).square()
    return {name: value.detach() for name, value in far.items()}


def _by_taylor(subject: Subject, units: Sequence[Units], seed: int) -> list[Tensor]:
    """Score by how far the loss would move, to first order, summed over the weights of a unit."""
    far = moved(subject)
    weights = {name.removesuffix(".weight"): value for name, value in far.items() if name.endswith(".weight")}
    return [_over_sides(each, partial(_known, weights)) for each in units]


def _known(of: dict[str, Tensor], side: Side) -> Tensor | None:
    return _per_unit(of[side.layer], side) if side.layer in of else None


def _by_activation(subject: Subject, units: Sequence[Units], seed: int) -> list[Tensor]:
    """Score by the mean size of what the layers behind are given.

    Source: Muralidharan et al. 2024 (Minitron), arXiv 2407.14679, section 2.2, with the mean over rows and places.
    """
    import torch

    layers = dict(subject.student.network.named_modules())
    readers = {side.layer: layers[side.layer] for each in units for side in each.sides if side.side == "in"}
    sums: dict[str, Tensor] = {}

    def watching(name: str, layer: Any) -> Callable[..., None]:
        axis = 1 if getattr(layer, "kernel_size", None) is not None else -1

        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            sizes = given[0].detach().abs().movedim(axis, 0).flatten(1).mean(1)
            sums[name] = sums.get(name, torch.zeros_like(sizes)) + sizes

        return hook

    watch(subject, before={layer: watching(name, layer) for name, layer in readers.items()})

    def worth(side: Side) -> Tensor | None:
        return None if side.side == "out" or side.layer not in sums else sums[side.layer][side.places].sum(1)

    return [_over_sides(each, worth) for each in units]


def _first(subject: Subject, units: Sequence[Units], seed: int) -> list[Tensor]:
    """Score so that the first ones stay."""
    import torch

    return [-torch.arange(each.width, dtype=torch.float32) for each in units]


def _at_random(subject: Subject, units: Sequence[Units], seed: int) -> list[Tensor]:
    """Score at random: the baseline that any other must beat.

    Source: Mittal et al. 2018, arXiv 1801.10447.
    """
    import torch

    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(each.width, generator=draw) for each in units]


SCORES: dict[By, Scorer] = {
    "magnitude": _by_magnitude,
    "taylor": _by_taylor,
    "activation": _by_activation,
    "first": _first,
    "random": _at_random,
}
assert tuple(SCORES) == get_args(By)


def _over_sides(units: Units, worth: Callable[[Side], Tensor | None]) -> Tensor:
    import torch

    found = [value for side in units.sides if (value := worth(side)) is not None]
    shares = [value / value.mean().clamp(min=1e-12) for value in found]
    return torch.stack(shares).mean(0) if shares else torch.zeros(units.width)


def _has_weight(layer: Any) -> bool:
    return getattr(layer, "weight", None) is not None  # a norm may have none


def _per_unit(values: Tensor, side: Side) -> Tensor:
    """Return the sum over all that a layer has of each unit, (U,)."""
    depthwise = values.ndim > 2 and values.shape[1] == 1
    by_number = values.movedim(1, 0) if side.side == "in" and values.ndim > 1 and not depthwise else values
    return by_number.flatten(1).sum(1)[side.places].sum(1) if values.ndim > 1 else values[side.places].sum(1)
