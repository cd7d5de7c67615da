"""A network from its architecture and from what a blueprint says of layers that are other than that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from storage.errors import BadRequest
from student_train.students.remade.changes import Change, Dropped, Resized


def rebuild(network: nn.Module, changes: Sequence[Change]) -> nn.Module:
    """Return a network whose layers are changed in order; fresh weights where they are, as its architecture draws them.

    Raises:
        BadRequest: a change does not fit the network.
    """
    for change in changes:
        layers = dict(network.named_modules())
        if change.layer not in layers:
            raise _unfit(change, f"no layer of {len(layers)} has that name")
        CHANGES[change.kind](network, layers[change.layer], change)
    return network


def replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Put another layer in the place of one."""
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, layer)


class Passed(nn.Module):
    """In the place of a block that was left out: returns what it is given first."""

    def forward(self, first: Any, *_: Any, **__: Any) -> Any:
        """Return the first argument."""
        return first


def size_of(layer: nn.Module) -> tuple[int, ...] | None:
    """Return the shape by which a layer is resized: of its weight, or of its running mean; None: it has neither."""
    for name in ("weight", "running_mean"):
        tensor = getattr(layer, name, None)
        if tensor is not None and hasattr(tensor, "shape"):
            return tuple(tensor.shape)
    return None


def _drop(network: nn.Module, layer: nn.Module, change: Dropped) -> None:
    replace(network, change.layer, Passed())


def _resize(network: nn.Module, layer: nn.Module, change: Resized) -> None:
    before, shape = size_of(layer), change.shape
    if before is None or len(before) != len(shape) or any(new > old for new, old in zip(shape, before, strict=True)):
        raise _unfit(change, f"a {type(layer).__name__}" + (f" of {before}" if before else ""))
    if isinstance(layer, _ConvNd):
        _resize_convolution(layer, change)
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = shape
    elif isinstance(layer, _BatchNorm):
        layer.num_features = shape[0]
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = shape
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = shape
    else:
        raise _unfit(change, f"a {type(layer).__name__}")
    out = shape[-1] if isinstance(layer, nn.Embedding) else shape[0]
    for name, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if tensor.ndim:  # batch norm counts its batches in one number
            new = tensor.detach().new_empty(shape if name == "weight" else (out,))
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(layer, name, nn.Parameter(new, requires_grad=tensor.requires_grad) if is_parameter else new)
    layer.reset_parameters()  # every one of these has it


def _resize_convolution(layer: Any, change: Resized) -> None:
    if layer.transposed:
        raise _unfit(change, f"a {type(layer).__name__}")
    before = tuple(layer.weight.shape)
    if layer.groups > 1:  # of one channel each
        if layer.groups != layer.in_channels or change.shape[1] != 1 or change.shape[0] % (before[0] // layer.groups):
            raise _unfit(change, f"a {type(layer).__name__} of {layer.groups} groups")
        layer.groups = change.shape[0] // (before[0] // layer.groups)
        layer.in_channels = layer.groups
    else:
        layer.in_channels = change.shape[1]
    if change.shape[2:] != before[2:]:
        raise _unfit(change, f"a kernel of {before[2:]}")
    layer.out_channels = change.shape[0]


def _unfit(change: Change, found: str) -> BadRequest:
    said = ", ".join(f"{key} = {value}" for key, value in change.model_dump(exclude={"kind", "layer"}).items())
    return BadRequest(
        f"layer {change.layer} cannot be {change.kind} as the blueprint says",
        found=found,
        expected=said or "one of the architecture's",
        do="a blueprint and an architecture that belong together; student make writes both",
    )


CHANGES: dict[str, Callable[[nn.Module, nn.Module, Any], None]] = {"resized": _resize, "dropped": _drop}
"""What makes each kind of change: of a network, on a layer of it."""
