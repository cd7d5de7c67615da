"""Layers that are a product of what they are given with their weights, and nothing else: linear ones and convolutions.

Such a layer's weight has shape (out, in / groups, *kernel).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from student_train.students.tensors import shared_layers

CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: functional.conv1d,
    nn.Conv2d: functional.conv2d,
    nn.Conv3d: functional.conv3d,
}


def is_product(layer: Any) -> bool:
    """Return whether a layer is one; of a subclass nobody knows what else it does, nor of padding other than zeros."""
    return type(layer) is nn.Linear or (type(layer) in CONVOLUTIONS and layer.padding_mode == "zeros")


def products_of(network: nn.Module) -> list[str]:
    """Return the names of a network's products that can be int8.

    One that shares its weights with another layer cannot: both codes and the floats of the other would be kept.
    """
    shared = shared_layers(network)
    return [name for name, layer in network.named_modules() if is_product(layer) and name not in shared]


def in_floats(network: nn.Module) -> list[str]:
    """Return in words each layer with a matrix of weights that is none of `products_of`."""
    can, shared = products_of(network), shared_layers(network)
    return [
        f"{name}, a {type(layer).__name__}" + (f" with the weights of {shared[name]}" if name in shared else "")
        for name, layer in network.named_modules()
        if name not in can and any(own.ndim > 1 for own in layer.parameters(recurse=False))
    ]


def product(layer: Any) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return what a layer computes of inputs, weights and a bias."""
    if type(layer) is nn.Linear:
        return functional.linear
    convolve = CONVOLUTIONS[type(layer)]
    stride, padding, dilation, groups = layer.stride, layer.padding, layer.dilation, layer.groups

    def convolved(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve(inputs, weight, bias, stride, padding, dilation, groups)

    return convolved
