"""One function per transform, over uint8 images, in integers: the same bytes on every device, however rows are batched.

Shapes: B rows, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from storage.views.boxes import box_sizes
from storage.views.numbers import UNIT, Rolls
from storage.views.options import ColorJitter, Cutout, Flip, PadCrop, RandomResizedCrop

GREY = (38, 75, 15)  # weights of red, green and blue in luminance, of UNIT (ITU-R BT.601)


def pad_crop(images: Tensor, options: PadCrop, rolls: Rolls) -> Tensor:
    """Return images shifted by up to `padding` pixels each way."""
    pad, (rows, _, height, width) = options.padding, images.shape
    padded = nn.functional.pad(images, (pad, pad, pad, pad))
    top_B, left_B = rolls.below(2 * pad + 1, 0), rolls.below(2 * pad + 1, 1)
    _, channels, padded_height, padded_width = padded.shape
    # (B, C, 1): the first line of each plane; with H lines of each, (B, C, H)
    planes = torch.arange(rows * channels, device=images.device).reshape(rows, channels, 1) * padded_height
    lines = planes + (top_B[:, None] + torch.arange(height, device=images.device))[:, None]
    starts = lines * padded_width + left_B[:, None, None]
    runs = padded.flatten().unfold(0, width, 1)  # every run of `width` pixels; nothing is copied until one is picked
    return runs.index_select(0, starts.flatten()).reshape(images.shape)


def random_resized_crop(images: Tensor, options: RandomResizedCrop, rolls: Rolls) -> Tensor:
    """Return a random box of each image, resized to the image's size, bilinear."""
    _, _, height, width = images.shape
    boxes = box_sizes(height, width, options.scale, options.ratio)
    sizes = torch.tensor(boxes, dtype=torch.int64, device=images.device)
    size_B2 = sizes[rolls.below(len(sizes), 0)]
    box_height_B, box_width_B = size_B2.unbind(1)
    top_B = rolls.below(height - box_height_B + 1, 1)
    left_B = rolls.below(width - box_width_B + 1, 2)
    above, below, weight = _between(height, top_B, box_height_B)
    rows = blend(_rows(images, below), _rows(images, above), weight[:, None, :, None])
    before, after, weight = _between(width, left_B, box_width_B)
    return blend(_columns(rows, after), _columns(rows, before), weight[:, None, None, :])


def flip(images: Tensor, options: Flip, rolls: Rolls) -> Tensor:
    """Return images, some mirrored left and right."""
    return pick(rolls.happens(options.probability, 0)[:, None, None, None], images.flip(3), images)


def color_jitter(images: Tensor, options: ColorJitter, rolls: Rolls) -> Tensor:
    """Return images of another brightness, contrast and saturation; each is rounded to whole levels."""
    if options.brightness:
        images = _scaled(images.short(), 0, _change(options.brightness, rolls, 0))
    if options.contrast:
        grey = _grey(images)
        mean = grey.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64) // (grey.shape[2] * grey.shape[3])
        images = _scaled(images.short(), mean.short(), _change(options.contrast, rolls, 1))
    if options.saturation:
        images = _scaled(images.short(), _grey(images), _change(options.saturation, rolls, 2))
    return images


def cutout(images: Tensor, options: Cutout, rolls: Rolls) -> Tensor:
    """Return images with a black square, around a random pixel."""
    _, _, height, width = images.shape
    # where it does not happen, a square of nothing
    size_B = rolls.happens(options.probability, 0).long() * options.size
    hole = box(images, rolls.below(height, 1), rolls.below(width, 2), size_B, size_B)
    return images & _all_bits(~hole)


TRANSFORMS: dict[type, Callable[[Tensor, Any, Rolls], Tensor]] = {
    PadCrop: pad_crop,
    RandomResizedCrop: random_resized_crop,
    Flip: flip,
    ColorJitter: color_jitter,
    Cutout: cutout,
}


def pick(choice: Tensor, images: Tensor, others: Tensor) -> Tensor:
    """Return `images` where `choice` is true, else `others`; uint8, and ten times as fast as `torch.where` on a CPU."""
    return others ^ ((others ^ images) & _all_bits(choice))


def blend(images: Tensor, others: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of two uint8 images, rounded; `weight` of `images`, int16 of UNIT, the rest of `others`."""
    others_16 = others.short()
    return (others_16 + (((images.short() - others_16) * weight + UNIT // 2) >> 7)).byte()  # 7 bits: over UNIT, rounded


def box(images: Tensor, middle_y_B: Tensor, middle_x_B: Tensor, height_B: Tensor, width_B: Tensor) -> Tensor:
    """Return (B, 1, H, W) bool: a box around a pixel of each image, as far as it lies within."""

    def within(size: int, middle_B: Tensor, length_B: Tensor) -> Tensor:
        first_B1 = (middle_B - length_B // 2)[:, None]
        places = torch.arange(size, device=images.device)
        return (places >= first_B1) & (places < first_B1 + length_B[:, None])

    _, _, height, width = images.shape
    return (within(height, middle_y_B, height_B)[:, :, None] & within(width, middle_x_B, width_B)[:, None])[:, None]


def _between(size: int, start_B: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two pixels that each of `size` lies between when `length` pixels are stretched over it, (B, size).

    Returns:
        Their places, and the weight of the second, int16 of UNIT.
    """
    middles = 2 * torch.arange(size, device=start_B.device) + 1  # of pixels, in halves of one
    last_B1 = (length_B - 1)[:, None]
    # of UNIT; outside the middles of the first and last pixel there is nothing to blend
    place = (middles * length_B[:, None] * (UNIT // 2) // size - UNIT // 2).clamp(min=0).minimum(last_B1 * UNIT)
    first = place // UNIT
    second = (first + 1).minimum(last_B1)
    return first + start_B[:, None], second + start_B[:, None], (place % UNIT).short()


def _rows(images: Tensor, places: Tensor) -> Tensor:
    """Return rows of pixels of each image, (B, C, H, W)."""
    rows, channels, height, width = images.shape
    planes = torch.arange(rows * channels, device=images.device).reshape(rows, channels, 1) * height
    return images.reshape(-1, width).index_select(0, (planes + places[:, None]).flatten()).reshape(images.shape)


def _columns(images: Tensor, places: Tensor) -> Tensor:
    """Return columns of pixels of each image, (B, C, H, W)."""
    return images.gather(3, places[:, None, None].expand(images.shape))


def _grey(images: Tensor) -> Tensor:
    """Return luminance, (B, 1, H, W) int16; images of one channel have no other."""
    images = images.short()
    if images.shape[1] == 1:
        return images
    red, green, blue = (images[:, i : i + 1] for i in range(3))
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue + UNIT // 2) >> 7  # over UNIT


def _change(strength: float, rolls: Rolls, purpose: int) -> Tensor:
    """Return a factor less 1, in [-strength, strength], for each row, (B, 1, 1, 1) int16 of UNIT."""
    reach = round(UNIT * strength)
    return (rolls.below(2 * reach + 1, purpose) - reach).short()[:, None, None, None]


def _scaled(images: Tensor, origin: Tensor | int, change: Tensor) -> Tensor:
    """Return int16 pixels with their distances from `origin` changed by so much of themselves, as uint8."""
    return (images + ((images - origin) * change + UNIT // 2 >> 7)).clamp(0, 255).byte()


def _all_bits(mask: Tensor) -> Tensor:
    """Return uint8 255 where a mask is true, else 0."""
    return mask.byte().neg()  # 1 becomes −1, in a byte 255
