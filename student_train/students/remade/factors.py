"""A linear layer, a convolution or an embedding as two with fewer units between them: W ≈ B A, of rank r.

Of a convolution the first keeps the kernel, with r outputs, and the second is one by one. Of an embedding the first has
vectors of r numbers, and the second is a linear layer, as in ALBERT (Lan et al. 2020, arXiv 1909.11942, section 3.1).

Source: Denton et al. 2014, arXiv 1404.0736; the two of a convolution as in Zhang et al. 2015, arXiv 1411.4229.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from student_train.students.remade.products import CONVOLUTIONS, is_product


def full_rank(layer: Any) -> int | None:
    """Return the largest rank that a layer's weights may have, as (out, in · kernel); None: it cannot be two."""
    if is_table(layer):
        return int(min(layer.weight.shape))
    if not is_product(layer) or getattr(layer, "groups", 1) != 1:
        return None
    return int(min(layer.weight.shape[0], layer.weight[0].numel()))


def is_table(layer: Any) -> bool:
    """Return whether a layer is an embedding and nothing else: one that scales its vectors is none."""
    return type(layer) is nn.Embedding and layer.max_norm is None


def factors(layer: Any, rank: int) -> nn.Module:
    """Return the two layers of a rank in the place of one, with fresh weights, where its own are."""
    weight, has_bias = layer.weight, getattr(layer, "bias", None) is not None
    about = {"device": weight.device, "dtype": weight.dtype}
    first: nn.Module
    second: nn.Module
    if is_table(layer):
        first = nn.Embedding(layer.num_embeddings, rank, layer.padding_idx, **about)
        second = nn.Linear(rank, layer.embedding_dim, bias=False, **about)
    elif type(layer) in CONVOLUTIONS:
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
