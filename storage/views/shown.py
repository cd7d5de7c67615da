"""What a model is shown: all transforms together, of a batch (the student) or of a shard (the teacher).

Shapes: S readable rows of a shard, B rows of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.views import FINGERPRINTED_ROWS, view_fingerprint
from storage.views.mixing import Mixed, choose_partners, mix
from storage.views.numbers import Rolls
from storage.views.options import MIXING, Transform
from storage.views.transforms import TRANSFORMS

BLOCK_ROWS = 128  # transformed at once on a CPU, so that a block stays in its cache; the result does not depend on it


@dataclass(frozen=True)
class View:
    """One view: a pure function of samples.

    Attributes:
        transforms, seed: as promised in `views.json`.
        number: which view.
    """

    transforms: tuple[Transform, ...]
    seed: int
    number: int

    @cached_property
    def mixing(self) -> dict[int, Transform]:
        """Mixing transforms by their places."""
        return {place: step for place, step in enumerate(self.transforms) if isinstance(step, MIXING)}

    def show(
        self, images: Tensor, keys_B: Tensor, partners: Tensor | None = None, partner_keys_B: Tensor | None = None
    ) -> Mixed:
        """Return what a model is shown of a batch.

        Args:
            images: uint8, (B, C, H, W), as stored.
            keys_B: int64, of the samples.
            partners, partner_keys_B: likewise, of the partners; None where nothing is mixed.
        """
        if not self.mixing:
            return Mixed(self._transform(images, keys_B), torch.ones(len(images), device=images.device))
        assert partners is not None
        assert partner_keys_B is not None
        both = self._transform(torch.cat([images, partners]), torch.cat([keys_B, partner_keys_B]))
        return self._mix(both[: len(images)], both[len(images) :], keys_B)

    def show_shard(self, images: Tensor, keys_S: NDArray[np.int64], splits_S: NDArray[Any]) -> Tensor:
        """Return what a model is shown of all readable rows of a shard, uint8 (S, C, H, W)."""
        on_device = torch.from_numpy(keys_S).to(images.device)
        shown = self._transform(images, on_device)
        if not self.mixing:
            return shown
        partners_S = torch.from_numpy(self.partners(keys_S, splits_S)).to(images.device)
        blocks = zip(shown.split(BLOCK_ROWS), partners_S.split(BLOCK_ROWS), on_device.split(BLOCK_ROWS), strict=True)
        return torch.cat([self._mix(own, shown[partners], keys).images for own, partners, keys in blocks])

    def partners(self, keys_S: NDArray[np.int64], splits_S: NDArray[Any]) -> NDArray[np.int64]:
        """Return the position of each row's partner among all readable rows of a shard."""
        return choose_partners(keys_S, splits_S, seed=self.seed, view=self.number)

    def fingerprint(self, images_S: NDArray[np.uint8], keys_S: NDArray[np.int64], splits_S: NDArray[Any]) -> str:
        """Return the fingerprint of what a model is shown of the first readable rows of a shard.

        Args:
            images_S: all readable rows, as stored.
            keys_S, splits_S: of their samples.
        """
        first = np.arange(min(FINGERPRINTED_ROWS, len(keys_S)))
        partners = self.partners(keys_S, splits_S)[first] if self.mixing else first
        own, own_keys, others, other_keys = (
            torch.from_numpy(values)
            for values in (images_S[first], keys_S[first], images_S[partners], keys_S[partners])
        )
        return view_fingerprint(self.show(own, own_keys, others, other_keys).images.numpy())

    def _transform(self, images: Tensor, keys_B: Tensor) -> Tensor:
        if images.device.type != "cpu" or len(images) <= BLOCK_ROWS:
            return self._transform_block(images, keys_B)
        shown = torch.empty_like(images)
        for start in range(0, len(images), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            shown[block] = self._transform_block(images[block], keys_B[block])
        return shown

    def _transform_block(self, images: Tensor, keys_B: Tensor) -> Tensor:
        for place, step in enumerate(self.transforms):
            if place not in self.mixing:
                rolls = Rolls(keys_B, seed=self.seed, view=self.number, place=place)
                images = TRANSFORMS[type(step)](images, step, rolls)
        return images

    def _mix(self, images: Tensor, partners: Tensor, keys_B: Tensor) -> Mixed:
        return mix(images, partners, keys_B, self.mixing, seed=self.seed, view=self.number)


def transforms_unfit(transforms: Sequence[Transform], shape: Sequence[int], dtype: str) -> str | None:
    """Return why inputs cannot be augmented, or None."""
    if dtype != "uint8" or len(shape) != 3:
        return f"its inputs are {dtype} of shape {tuple(shape)}"
    return next((reason for step in transforms if (reason := step.unfit(shape)) is not None), None)
