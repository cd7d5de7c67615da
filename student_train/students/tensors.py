"""The tensors of a student by name, each once: a weight that two layers share is stored under its first name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def shared_names(module: nn.Module) -> dict[str, str]:
    """Return the further names of tensors that have several, each with the first one.

    >>> network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    >>> network[1].weight = network[0].weight
    >>> shared_names(network)
    {'1.weight': '0.weight'}
    """
    first: dict[int, str] = {}
    named = {name: first.setdefault(id(value), name) for name, value in module.state_dict(keep_vars=True).items()}
    return {name: other for name, other in named.items() if name != other}


def moved(module: AnyModule, device: str) -> AnyModule:
    """Move a module to a device, and have its layers share there what they shared: on `meta` torch parts them.

    >>> network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    >>> network[1].weight = network[0].weight
    >>> len([*moved(network, "meta").parameters()])
    1
    """
    shared = shared_names(module)
    module.to(device)
    for name, first in shared.items():
        layer, _, own = name.rpartition(".")
        other, _, theirs = first.rpartition(".")
        setattr(module.get_submodule(layer), own, getattr(module.get_submodule(other), theirs))
    return module


def shared_layers(module: nn.Module) -> dict[str, str]:
    """Return the layers whose weights another has too, each with the other's name.

    >>> network = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 3, bias=False))
    >>> network[1].weight = network[0].weight
    >>> shared_layers(network)
    {'1': '0', '0': '1'}
    """
    pairs = [[each.rpartition(".")[0] for each in pair] for pair in shared_names(module).items()]
    return {one: other for pair in pairs for one, other in (pair, pair[::-1]) if one != other}


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's tensors by name, each once, but those frozen under an adapter; they share its memory."""
    others = {*shared_names(module), *frozen_names(module)}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in others}


def frozen_names(module: nn.Module) -> frozenset[str]:
    """Return the names of what an adapter of a student is on top of; none: it has no adapter."""
    frozen: frozenset[str] = getattr(module, "frozen", frozenset())
    return frozen


def load_own(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy what `own_tensors` gave into a module. Raises RuntimeError: they are those of another."""
    state = module.state_dict()
    kept = {name: state[name] for name in frozen_names(module)}
    module.load_state_dict(complete(module, kept | dict(tensors)))


def complete(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with those that are stored once under all of their names."""
    shared = {name: tensors[first] for name, first in shared_names(module).items() if first in tensors}
    return shared | dict(tensors)
