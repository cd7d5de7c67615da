"""A plain convolutional network for small images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from storage.errors import BadRequest


def cnn(
    num_classes: int, input_shape: tuple[int, ...], *, widths: Sequence[int] = (32, 64, 128), dropout: float = 0.0
) -> nn.Module:
    """Return blocks of convolution, batch norm and ReLU, each but the first at half the size of the one before.

    Layers are named `stage1`, `stage2`, … and `head`; `stage<n>` gives (B, widths[n - 1], H, W).

    Args:
        widths: channels of each block.
        dropout: share of the pooled channels that a training step leaves out.

    Raises:
        BadRequest: it cannot be built in this size.
    """
    channels = require_image("cnn", input_shape, halvings=len(widths) - 1)
    if not widths or min(widths) < 1 or not 0 <= dropout < 1:
        raise BadRequest(
            "a cnn of this size cannot be built",
            found=f"widths = {list(widths)}, dropout = {dropout:g}",
            expected="one or more widths of 1 or more, and a dropout in [0, 1)",
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, width in enumerate(widths, start=1):
        layers[f"stage{number}"] = nn.Sequential(
            *([nn.MaxPool2d(2)] if number > 1 else []),
            nn.Conv2d(channels, width, 3, padding=1, bias=False),  # batch norm has a bias
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        channels = width
    layers["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *([nn.Dropout(dropout)] if dropout else []))
    layers["head"] = nn.Linear(channels, num_classes)
    return nn.Sequential(layers)


def require_image(architecture: str, input_shape: tuple[int, ...], *, halvings: int) -> int:
    """Return the number of channels of an image large enough to be halved so often.

    Raises:
        BadRequest: the inputs are no images, or too small.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < 2**halvings:
        raise BadRequest(
            f"architecture {architecture!r} cannot take these inputs",
            found=f"inputs of shape {input_shape}",
            expected=f"images (channels, height, width) of {2**halvings} by {2**halvings} pixels or more",
            do='choose another architecture, such as "mlp", or fewer stages',
        )
    return input_shape[0]
