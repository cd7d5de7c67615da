"""Residual networks for small images, of any depth and width."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from storage.errors import BadRequest
from student_train.students.cnn import require_image

MAX_DEPTH = 1202  # the deepest of the paper; also keeps a damaged student.json from asking for any number of layers


def resnet(num_classes: int, input_shape: tuple[int, ...], *, depth: int = 20, width: int = 16) -> nn.Module:
    """Return a residual network of three stages; layers are `stem`, `stage1` to `stage3`, and `head`.

    Args:
        depth: 6n + 2 with n blocks a stage: 8, 14, 20, 32, 44, 56, 110, …
        width: channels of the first stage; the second has twice as many and the third four times.

    Raises:
        BadRequest: there is none of this depth or width; or inputs are no images, or too small for it.

    Source: He et al. 2015, section 4.2 and shortcut option A, arXiv 1512.03385.
    """
    channels = require_image("resnet", input_shape, halvings=2)
    blocks, rest = divmod(depth - 2, 6)
    if rest or not 1 <= blocks <= MAX_DEPTH // 6 or width < 1:
        raise BadRequest(
            "a resnet of this size cannot be built",
            found=f"depth = {depth}, width = {width}",
            expected=f"a depth of 6n + 2 (8, 14, 20, … {MAX_DEPTH}) and a width of 1 or more",
        )
    stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=stem)
    channels = width
    for stage in range(3):
        stage_width = width * 2**stage
        strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)  # a later stage begins by halving the size
        parts = []
        for stride in strides:
            parts.append(Block(channels, stage_width, stride))
            channels = stage_width
        layers[f"stage{stage + 1}"] = nn.Sequential(*parts)
    layers["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layers["head"] = nn.Linear(channels, num_classes)
    return nn.Sequential(layers)


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters: every other pixel, new channels zero."""

    is_block = True  # which may be run again in the backward pass (`recompute`)

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.convolution1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.convolution2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.new_channels = width - channels

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the block's output, (B, width, H / stride, W / stride)."""
        shortcut = inputs[:, :, :: self.stride, :: self.stride] if self.stride > 1 else inputs
        if self.new_channels:
            before = self.new_channels // 2
            # nothing around height and width; new channels on both sides
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, before, self.new_channels - before))
        hidden = functional.relu(self.norm1(self.convolution1(inputs)))
        return functional.relu(self.norm2(self.convolution2(hidden)) + shortcut)
