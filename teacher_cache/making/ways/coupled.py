"""Which units of a network stand and fall together: a channel is the output of one layer, and the input of others.

Found by torch-pruning's graph of dependencies. What it cannot see through, or sees in part, is left whole and told.

Source: Fang et al. 2023 (DepGraph), arXiv 2301.12900.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from storage.errors import BadTeacher, missing_extra

if TYPE_CHECKING:
    from torch import Tensor, nn

# Attention layers as models of transformers have them: what makes queries, keys and values of each head, and what reads
# the heads' answers, in the layer itself or beside it.
SPLIT = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"))
READERS = ("o_proj", "out_proj", "out_lin", "out", "dense")
BESIDE = "output.dense"
HEAD_SIZES = ("head_dim", "attention_head_size")
SIDES: dict[str, Literal["out", "in"]] = {"prune_out_channels": "out", "prune_in_channels": "in"}
TOGETHER = ("LayerNorm", "GroupNorm", "Embedding")  # whose answer to a unit depends on the others, or on their number


class Side(NamedTuple):
    """Where units lie in a layer.

    Attributes:
        layer: its name.
        side: of its outputs, or of its inputs.
        places: int64 (width, k), the k numbers there of each unit: more than one behind a Flatten.
    """

    layer: str
    side: Literal["out", "in"]
    places: Tensor


class Units(NamedTuple):
    """Units that may be taken away, one like the other.

    Attributes:
        name: of the layer that makes them.
        width: how many.
        sides: of all layers that have them; some are inputs, or nobody would miss one.
        counts_heads: whether they are heads, whose number the layer of that name must be told.
    """

    name: str
    width: int
    sides: tuple[Side, ...]
    counts_heads: bool = False


class Found(NamedTuple):
    """Units of a network, and in words those that are left whole."""

    units: tuple[Units, ...]
    left: tuple[str, ...]


def find_units(network: nn.Module, arguments: tuple[Tensor, ...]) -> Found:
    """Return the units of a network's layers; those of its answer are none.

    Args:
        network: in evaluation mode; it stays as it is.
        arguments: a row to trace it by.

    Raises:
        BadRequest: torch-pruning is not installed.
        BadTeacher: it cannot trace the network.
    """
    import copy

    from torch import nn

    if find_spec("torch_pruning") is None:
        raise missing_extra("student make prune", "torch-pruning is not there", "prune")
    import torch_pruning

    traced = copy.deepcopy(network).requires_grad_(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parameters of no layer, on which whatever depends is left whole
            graph = torch_pruning.DependencyGraph().build_dependency(traced, example_inputs=arguments)
            groups = list(graph.get_all_groups(root_module_types=[nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear]))
    except Exception as error:  # whatever it raises at a network that it does not know
        raise BadTeacher(
            "torch-pruning cannot see which units of this network belong together",
            found=f"{type(error).__name__}: {error}"[:400],
            do="another way: student make copy or lowrank",
        ) from error
    names = {id(module): name for name, module in traced.named_modules()}
    found, left = [], []
    for group in groups:
        root = group[0].dep.target.module
        try:
            sides = _sides(group, names)
        except _Whole as why:
            left.append(f"{names[id(root)]}: {why}")
            continue
        if any(side.side == "in" for side in sides):  # else they are the answer itself
            found.append(Units(names[id(root)], len(sides[0].places), tuple(sides)))
    return Found(tuple(found), tuple(left))


def find_heads(network: nn.Module) -> tuple[Units, ...]:
    """Return the heads of a network's attention layers, each a unit.

    Of our own architectures, and of models of transformers whose layers take the number of heads from the width of what
    they are given. Where several queries share a key, those are one unit.
    """
    import torch

    found = []
    layers = dict(network.named_modules())
    for name, layer in layers.items():
        parts = dict(layer.named_children())
        if (split := _split_heads(name, layers)) is not None:
            found.append(split)
        if not isinstance(getattr(layer, "heads", None), int) or parts.keys() != {"queries_keys_values", "out"}:
            continue
        mixed, heads = int(parts["out"].weight.shape[1]), int(layer.heads)
        own = torch.arange(mixed).view(heads, -1)
        of_three = torch.cat([own, own + mixed, own + 2 * mixed], dim=1)
        sides = (Side(f"{name}.queries_keys_values", "out", of_three), Side(f"{name}.out", "in", own))
        found.append(Units(name, heads, sides, counts_heads=True))
    return tuple(found)


def _split_heads(name: str, layers: Mapping[str, nn.Module]) -> Units | None:
    """Return the heads of an attention layer of transformers; None: it is none, or of another kind."""
    import torch
    from torch import nn

    layer, beside = layers[name], name.rpartition(".")[0]
    linear = {each: module for each, module in layers.items() if isinstance(module, nn.Linear)}
    reading = [f"{name}.{each}" for each in READERS] + ([f"{beside}.{BESIDE}"] if beside else [])
    reader = next((each for each in reading if each in linear), None)
    size = next((getattr(layer, each) for each in HEAD_SIZES if isinstance(getattr(layer, each, None), int)), None)
    for names in SPLIT:
        makers = [linear.get(f"{name}.{each}") for each in names]
        widths = [each.out_features for each in makers if each is not None]
        if size is None or reader is None or len(widths) < len(names):
            continue
        queries, keys, values = widths
        heads = keys // size
        if keys != values or keys % size or queries % keys or linear[reader].in_features != queries:
            return None
        of_queries, of_keys = torch.arange(queries).view(heads, -1), torch.arange(keys).view(heads, -1)
        sides = [
            Side(f"{name}.{each}", "out", of_queries if number == 0 else of_keys) for number, each in enumerate(names)
        ]
        return Units(name, heads, (*sides, Side(reader, "in", of_queries)))
    return None


class _Whole(Exception):
    """Why units cannot be taken away one by one."""


def _sides(group: Any, names: dict[int, str]) -> list[Side]:
    """Return where the units of a group lie. Raises _Whole."""
    from torch import nn

    width = len(group[0].idxs)
    sides: list[Side] = []
    for item in group:
        layer, side = item.dep.target.module, SIDES.get(item.dep.handler.__name__)
        if isinstance(layer, nn.Parameter):
            raise _Whole("a parameter of no layer depends on them")
        if id(layer) not in names:
            continue  # an operation without weights
        name = names[id(layer)]
        if side is None or getattr(layer, "transposed", False) or type(layer).__name__ in TOGETHER:
            raise _Whole(f"{name}, a {type(layer).__name__}, looks at all of them together")
        if getattr(layer, "groups", 1) not in (1, getattr(layer, "in_channels", 1)):
            raise _Whole(f"{name} is in {layer.groups} groups")
        if any(other.layer == name and other.side == side for other in sides):
            raise _Whole(f"{name} has them twice")
        sides.append(Side(name, side, _places(name, layer, side, width, item)))
    return sides


def _places(name: str, layer: Any, side: str, width: int, item: Any) -> Tensor:
    """Return the numbers of each unit on a layer's side, (width, k). Raises _Whole: it has others."""
    import torch

    unit = torch.tensor(item.root_idxs)
    order = unit.argsort(stable=True)
    places, unit = torch.tensor(item.idxs)[order], unit[order]
    if len(places) % width or not unit.equal(torch.arange(width).repeat_interleave(len(places) // width)):
        raise _Whole(f"{name} has a part of them")
    if not len(places) == len(places.unique()) == _size(layer, side):
        raise _Whole(f"{name} has others too")
    return places.view(width, -1)


def _size(layer: Any, side: str) -> int:
    """Return how many units a layer has on a side."""
    weight = getattr(layer, "weight", None)
    if weight is None or weight.ndim == 1:
        return int(getattr(layer, "num_features", 0) or (0 if weight is None else len(weight)))
    depthwise = getattr(layer, "groups", 1) > 1
    return int(weight.shape[0] if side == "out" or depthwise else weight.shape[1])
