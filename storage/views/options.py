"""What a job may say of views, and what a cache promises of them: each transform's options, one visible table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from storage.inputs import find_inputs
from storage.options import Name, Options

Share = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[tuple[float, float], Field(strict=False)]  # TOML has lists only


class Transform(Options):
    """One step from an image to a view of it.

    Attributes:
        in_pixels: whether it is another function of an image of another size: what it counts in pixels stays as it is.
    """

    in_pixels: ClassVar[bool] = False

    def unfit(self, shape: Sequence[int]) -> str | None:
        """Return why images of shape (C, H, W) cannot be transformed, or None."""
        return None


class PadCrop(Transform):
    """Shift by up to `padding` pixels each way; what comes in is black."""

    in_pixels = True
    kind: Literal["pad_crop"] = "pad_crop"
    padding: Annotated[int, Field(ge=1)]

    def unfit(self, shape: Sequence[int]) -> str | None:
        """Return why nothing of an image might be left."""
        return None if self.padding < min(shape[1:]) else f"padding = {self.padding} can push all of an image out"


class RandomResizedCrop(Transform):
    """Cut a box of a share of the area in `scale` and a width over height in `ratio`; resize it, bilinear."""

    kind: Literal["random_resized_crop"] = "random_resized_crop"
    scale: Range = (0.08, 1.0)
    ratio: Range = (0.75, 4 / 3)

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is [least, most] with 0 < least <= most <= 1, not {list(self.scale)}")
        if not 0.01 <= self.ratio[0] <= self.ratio[1] <= 100:
            raise ValueError(f"ratio is [least, most] with 0.01 <= least <= most <= 100, not {list(self.ratio)}")
        return self


class Flip(Transform):
    """Mirror left and right."""

    kind: Literal["flip"] = "flip"
    probability: Share = 0.5


class ColorJitter(Transform):
    """Multiply brightness, contrast and saturation, in this order, by factors in [1 - x, 1 + x]."""

    kind: Literal["color_jitter"] = "color_jitter"
    brightness: Share = 0.0
    contrast: Share = 0.0
    saturation: Share = 0.0

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.brightness or self.contrast or self.saturation):
            raise ValueError("color_jitter does nothing without brightness, contrast or saturation")
        return self

    def unfit(self, shape: Sequence[int]) -> str | None:
        """Return why there is nothing to saturate, or no grey to take the contrast from."""
        if self.saturation and shape[0] != 3:
            return f"saturation is of three channels, not {shape[0]}"
        return "contrast is of one channel or three" if self.contrast and shape[0] not in (1, 3) else None


class Cutout(Transform):
    """Blacken a square of `size` pixels around a random one; at an edge, what is left of it."""

    in_pixels = True
    kind: Literal["cutout"] = "cutout"
    size: Annotated[int, Field(ge=1)]
    probability: Share = 1.0

    def unfit(self, shape: Sequence[int]) -> str | None:
        """Return why nothing of an image might be left."""
        return None if self.size < min(shape[1:]) else f"size = {self.size} can blacken all of an image"


class Mixup(Transform):
    """Fade into a partner, λ ~ Beta(alpha, alpha) in steps of 1/128; the labels likewise."""

    kind: Literal["mixup"] = "mixup"
    alpha: Annotated[float, Field(gt=0, le=100)] = 0.2
    probability: Share = 1.0


class Cutmix(Transform):
    """Put a box of a partner in; labels by area, 1 - λ of it (less at an edge), λ ~ Beta(alpha, alpha)."""

    in_pixels = True
    kind: Literal["cutmix"] = "cutmix"
    alpha: Annotated[float, Field(gt=0, le=100)] = 1.0
    probability: Share = 1.0


AnyTransform = Annotated[
    PadCrop | RandomResizedCrop | Flip | ColorJitter | Cutout | Mixup | Cutmix, Field(discriminator="kind")
]
MIXING = (Mixup, Cutmix)


class ViewOptions(Options):
    """`[views]` of a cache job.

    Attributes:
        count: views of each sample. It may be raised later: only the new ones are computed.
        seed: of all that is random in them.
        datasets: names of those that are augmented; None: all that hold uint8 images. The others stay plain.
        plain: whether teachers are asked about the plain inputs of these datasets as well.
        transforms: in their order; mixing comes last.
    """

    count: Annotated[int, Field(ge=1, le=10_000)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    datasets: Annotated[list[Name], Field(min_length=1)] | None = None
    plain: bool = False
    transforms: Annotated[list[AnyTransform], Field(min_length=1)]

    @model_validator(mode="after")
    def _mixing_last(self) -> Self:
        kinds = [step.kind for step in self.transforms]
        mixing = [step for step in self.transforms if isinstance(step, MIXING)]
        # where m mix, none before the last m may
        if any(isinstance(step, MIXING) for step in self.transforms[: len(kinds) - len(mixing)]):
            raise ValueError(f"mixup and cutmix come after all other transforms, not {', '.join(kinds)}")
        if (total := sum(step.probability for step in mixing)) > 1:
            raise ValueError(
                f"at most one of mixup and cutmix applies to a row, but their probabilities add up to {total:g}; "
                "give each its `probability`"
            )
        return self


def unfit(transforms: Sequence[Transform], shape: Sequence[int], dtype: str) -> str | None:
    """Return why inputs cannot be augmented, or None."""
    if not find_inputs(None, dtype, own_length=False).has_views(shape):
        return f"its inputs are {dtype} of shape {tuple(shape)}"
    return next((reason for step in transforms if (reason := step.unfit(shape)) is not None), None)
