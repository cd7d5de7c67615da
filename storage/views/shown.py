"""What a model is shown: all transforms together, of a batch (the student) or of a shard (the teacher).

Shapes: S readable rows of a shard, B rows of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.views import FINGERPRINTED_ROWS, view_fingerprint
from storage.views.boxes import Boxes
from storage.views.mixing import Mixed, choose_partners, mix
from storage.views.numbers import Rolls
from storage.views.options import MIXING, RandomResizedCrop, Transform
from storage.views.transforms import TRANSFORMS

BLOCK_BYTES = {"cpu": 2**19, "cuda": 2**25}  # transformed at once; one block of a CPU stays in its cache


@dataclass(frozen=True)
class View:
    """One view: a pure function of samples.

    Attributes:
        transforms, seed: as promised in `views.json`.
        number: which view.
        begun: whether the crop that comes first was taken already, of the whole picture.
    """

    transforms: tuple[Transform, ...]
    seed: int
    number: int
    begun: bool = False

    @property
    def crop(self) -> RandomResizedCrop | None:
        """The crop that comes first, which may be taken of a whole picture as it is decoded; None: there is none."""
        first = self.transforms[0]
        return first if isinstance(first, RandomResizedCrop) and not self.begun else None

    def boxes(self, keys_B: NDArray[np.int64]) -> Boxes:
        """Return the boxes of that crop for some samples, whatever size their pictures have."""
        assert self.crop is not None
        rolls = Rolls(torch.from_numpy(keys_B), seed=self.seed, view=self.number, place=0)
        return Boxes(self.crop, *(rolls.bits(purpose).tolist() for purpose in range(3)))

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
            # nothing is mixed: each label counts whole
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
        mixed = torch.empty_like(shown)
        for rows in _blocks(shown):
            mixed[rows] = self._mix(shown[rows], shown[partners_S[rows]], on_device[rows]).images
        return mixed

    def partners(self, keys_S: NDArray[np.int64], splits_S: NDArray[Any]) -> NDArray[np.int64]:
        """Return the position of each row's partner among all readable rows of a shard."""
        return choose_partners(keys_S, splits_S, seed=self.seed, view=self.number)

    def fingerprint(
        self, begin: Callable[[NDArray[np.integer]], Tensor], keys_S: NDArray[np.int64], splits_S: NDArray[Any]
    ) -> str:
        """Return the fingerprint of what a model is shown of the first readable rows of a shard.

        Args:
            begin: returns some of the readable rows, by their numbers among them, as this view begins with them.
            keys_S, splits_S: of their samples.
        """
        first = np.arange(min(FINGERPRINTED_ROWS, len(keys_S)))
        # where nothing is mixed partners are not looked at
        partners = self.partners(keys_S, splits_S)[first] if self.mixing else first
        own, others = begin(first), begin(partners) if self.mixing else None
        own_keys, other_keys = (torch.from_numpy(keys_S[places]) for places in (first, partners))
        return view_fingerprint(self.show(own, own_keys, others, other_keys).images.numpy())

    def _transform(self, images: Tensor, keys_B: Tensor) -> Tensor:
        places = [place for place in range(self.begun, len(self.transforms)) if place not in self.mixing]
        if not places:  # no copy
            return images
        shown = torch.empty_like(images)
        for rows in _blocks(images):
            block = images[rows]
            for place in places:
                step, rolls = self.transforms[place], Rolls(keys_B[rows], seed=self.seed, view=self.number, place=place)
                block = TRANSFORMS[type(step)](block, step, rolls)
            shown[rows] = block
        return shown

    def _mix(self, images: Tensor, partners: Tensor, keys_B: Tensor) -> Mixed:
        return mix(images, partners, keys_B, self.mixing, seed=self.seed, view=self.number)


def _blocks(images: Tensor) -> Iterator[slice]:
    """Yield runs of rows, small enough that the integers in between are no burden; the result does not depend on it."""
    row_bytes = max(1, images[:1].numel())
    rows = max(1, BLOCK_BYTES[images.device.type] // row_bytes)
    return (slice(start, start + rows) for start in range(0, len(images), rows))
