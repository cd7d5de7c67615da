"""A network from its architecture and from what a blueprint says of layers that are other than that."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from storage.errors import BadRequest
from student_train.students.remade.changes import Change, Dropped, Factored, Heads, Int8, Resized
from student_train.students.remade.factors import factors, full_rank
from student_train.students.remade.int8 import Codes, Rounded
from student_train.students.remade.products import is_product

AnyStudent = TypeVar("AnyStudent", bound=nn.Module)


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
    """Give a layer another size, its weights drawn anew. Raises BadRequest: it has no such size."""
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
        f"layer {change.layer} cannot be {KINDS[change.kind]} as the blueprint says",
        found=found,
        expected=said or "one of the architecture's",
        do="a blueprint and an architecture that belong together; student make writes both",
    )


def _count_heads(network: nn.Module, layer: Any, change: Heads) -> None:
    before = getattr(layer, "heads", None)
    if not isinstance(before, int) or change.heads > before:
        raise _unfit(change, f"a {type(layer).__name__}" + (f" of {before} heads" if before else ""))
    layer.heads = change.heads


def _factor(network: nn.Module, layer: nn.Module, change: Factored) -> None:
    if (full := full_rank(layer)) is None or change.rank > full:
        raise _unfit(change, f"a {type(layer).__name__}" + (f" of rank {full}" if full else ""))
    _replace_product(network, change.layer, factors(layer, change.rank))


def _round(network: nn.Module, layer: nn.Module, change: Int8) -> None:
    if not is_product(layer):
        raise _unfit(change, f"a {type(layer).__name__}")
    made = Rounded if change.trained else Codes
    _replace_product(network, change.layer, made(layer, change.per))


def _replace_product(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Put another layer in the place of a product, where torch's own encoders would read its weights around it.

    On their fast path they never call the layer: one that rounds would be measured in floats, and codes are no weights.
    """
    torch.backends.mha.set_fastpath_enabled(False)
    replace(network, name, layer)


def settled(student: AnyStudent) -> AnyStudent:
    """Return a student whose layers that were rounded in training are layers of codes; itself, where it has none.

    Args:
        student: a Student.
    """
    blueprint: Any = student.blueprint
    changes = blueprint.changes
    trained = [change for change in changes if isinstance(change, Int8) and change.trained]
    if not trained:
        return student
    plain: Any = copy.deepcopy(student)
    for change in trained:
        replace(plain.network, change.layer, plain.network.get_submodule(change.layer).settled())
    said = tuple(c.model_copy(update={"trained": False}) if isinstance(c, Int8) else c for c in changes)
    plain.blueprint = blueprint.model_copy(update={"changes": said})
    settled_one: AnyStudent = plain
    return settled_one


KINDS = {"resized": "resized", "heads": "of fewer heads", "dropped": "dropped", "factored": "factored", "int8": "int8"}
CHANGES: dict[str, Callable[[nn.Module, nn.Module, Any], None]] = {
    "resized": _resize,
    "heads": _count_heads,
    "dropped": _drop,
    "factored": _factor,
    "int8": _round,
}
"""What makes each kind of change: of a network, on a layer of it."""
