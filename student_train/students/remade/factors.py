"""A linear layer or a convolution as two with fewer units between them: W ≈ B A, of rank r.

Of a convolution the first keeps the kernel, with r outputs, and the second is one by one.

Source: Denton et al. 2014, arXiv 1404.0736; the two of a convolution as in Zhang et al. 2015, arXiv 1411.4229.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from student_train.students.remade.products import CONVOLUTIONS, is_product


def full_rank(layer: Any) -> int | None:
    """Return the largest rank that a layer's weights may have, as (out, in · kernel); None: it cannot be two."""
    if not is_product(layer) or getattr(layer, "groups", 1) != 1:
        return None
    return int(min(layer.weight.shape[0], layer.weight[0].numel()))


def factors(layer: Any, rank: int) -> nn.Module:
    """Return the two layers of a rank in the place of one, with fresh weights, where its own are."""
    weight, has_bias = layer.weight, layer.bias is not None
    about = {"device": weight.device, "dtype": weight.dtype}
    first: nn.Module
    second: nn.Module
    if type(layer) in CONVOLUTIONS:
        kind: Any = type(layer)
        first = kind(
            layer.in_channels,
            rank,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            bias=False,
            **about,
        )
        second = kind(rank, layer.out_channels, 1, bias=has_bias, **about)
    else:
        first = nn.Linear(layer.in_features, rank, bias=False, **about)
        second = nn.Linear(rank, layer.out_features, bias=has_bias, **about)
    return nn.Sequential(OrderedDict(first=first, second=second))
