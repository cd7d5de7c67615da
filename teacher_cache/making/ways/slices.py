"""The tensors of the units that stay, and the network that has them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from storage.errors import BadRequest
from teacher_cache.making.ways.coupled import Side, Units

if TYPE_CHECKING:
    from torch import Tensor, nn

    from student_train.students import Change


def check_named_once(network: nn.Module) -> None:
    """Raise BadRequest if a layer with weights is at several places of a network: one of them would be changed."""
    names: dict[int, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        if next(module.parameters(recurse=False), None) is not None:
            names.setdefault(id(module), []).append(name)
    if several := [each for each in names.values() if len(each) > 1]:
        raise BadRequest(
            "this teacher has one layer at several places, and a changed one would be at one of them alone",
            found="; ".join(" is ".join(each) for each in several[:4]),
            expected="layers of one name each",
            do="student make copy; or a student of its own architecture that is trained on its cached answers",
        )


def resized(network: nn.Module, units: Sequence[Units], widths: Sequence[int]) -> list[Change]:
    """Return what is said of each layer of a network whose units are fewer: as many of each as `widths` has."""
    from student_train.students import Heads, Resized, size_of

    layers = dict(network.named_modules())
    shapes: dict[str, list[int]] = {}
    for each, width in zip(units, widths, strict=True):
        for side in each.sides:
            layer = layers[side.layer]
            shape = shapes.setdefault(side.layer, list(size_of(layer) or ()))
            shape[_axis(layer, side)] = width * side.places.shape[1]
    heads = [Heads(layer=e.name, heads=width) for e, width in zip(units, widths, strict=True) if e.counts_heads]
    return [*(Resized(layer=name, shape=tuple(shape)) for name, shape in shapes.items()), *heads]


def with_changes(changes: Sequence[Change], more: Sequence[Change]) -> tuple[Change, ...]:
    """Return changes with more of them; what is said again of a layer takes the place of what was said."""
    again = {(change.kind, change.layer) for change in more}
    return (*(change for change in changes if (change.kind, change.layer) not in again), *more)


def sliced(network: nn.Module, units: Sequence[Units], kept: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a network, by name, of the units that stay alone.

    Args:
        network: as it was.
        units: of it.
        kept: of each of these, which stay, int64 and rising.
    """
    layers = dict(network.named_modules())
    tensors = {name: value.detach() for name, value in network.state_dict().items()}
    for each, stay in zip(units, kept, strict=True):
        for side in each.sides:
            numbers = side.places[stay].flatten().sort().values
            for name, axis in _tensors(layers[side.layer], side):
                tensors[f"{side.layer}.{name}"] = tensors[f"{side.layer}.{name}"].index_select(axis, numbers)
    return {name: value.clone() for name, value in tensors.items()}


def masked(network: nn.Module, units: Sequence[Units], kept: Sequence[Tensor]) -> nn.Module:
    """Return a network as large as it was that says what the smaller one is to say: without all else, zeros instead."""
    import torch

    whole = copy.deepcopy(network)
    layers = dict(whole.named_modules())
    for each, stay in zip(units, kept, strict=True):
        gone = torch.ones(each.width, dtype=torch.bool).index_fill(0, stay, value=False)
        for side in each.sides:
            layer = layers[side.layer]
            for name, axis in _tensors(layer, side):
                if name in ("weight", "bias"):
                    getattr(layer, name).data.index_fill_(axis, side.places[gone].flatten(), 0.0)
    return whole


def _axis(layer: Any, side: Side) -> int:
    """Return the axis of a layer's weight on which units lie."""
    return 1 if side.side == "in" and layer.weight.ndim > 1 and getattr(layer, "groups", 1) == 1 else 0


def _tensors(layer: Any, side: Side) -> list[tuple[str, int]]:
    """Return the names of a layer's tensors that have something of each unit on a side, with the axis."""
    own = {**dict(layer.named_parameters(recurse=False)), **dict(layer.named_buffers(recurse=False))}
    if side.side == "in" and getattr(layer, "groups", 1) == 1:
        return [("weight", 1)] if layer.weight.ndim > 1 else []
    return [(name, 0) for name, value in own.items() if value.ndim]
