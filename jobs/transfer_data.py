"""What jobs/transfer.cache.toml reads: a few digits that have labels, and patches of photographs that are no digits."""

from __future__ import annotations

from typing import Any

import numpy as np

DIGITS = [str(digit) for digit in range(10)]
SIDE, STEP = 8, 6  # of a patch; pixels from one to the next
FAINTEST = 24  # of 256: patches of less contrast, such as of the sky, are left out


class Few:
    """The first digits of scikit-learn's 1,797, by the ids that `kind = "digits"` gives them."""

    classes = DIGITS

    def __init__(self, count: int):
        from sklearn.datasets import load_digits

        bunch = load_digits()
        self.images = np.round(bunch.images[:count] * (255 / 16)).astype(np.uint8)[:, None]
        self.labels = bunch.target[:count]
        self.ids = [f"digits:{i}" for i in range(count)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input": self.images[i], "label": int(self.labels[i]), "id": self.ids[i]}


class Patches:
    """Grey patches of scikit-learn's two photographs, 8 by 8, each stretched from black to white. None has a label."""

    classes = DIGITS  # of the teacher, which is asked about them all the same

    def __init__(self) -> None:
        from sklearn.datasets import load_sample_images

        patches = [patch for image in load_sample_images().images for patch in _patches(image.mean(axis=2))]
        self.images = [_stretched(patch) for patch in patches if np.ptp(patch) >= FAINTEST]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input": self.images[i], "id": f"patch:{i}"}


def _patches(grey: np.ndarray) -> list[np.ndarray]:
    height, width = grey.shape
    return [
        grey[top : top + SIDE, left : left + SIDE]
        for top in range(0, height - SIDE, STEP)
        for left in range(0, width - SIDE, STEP)
    ]


def _stretched(patch: np.ndarray) -> np.ndarray:
    """Return a patch as uint8, (1, 8, 8)."""
    stretched: np.ndarray = np.round((patch - patch.min()) * (255 / np.ptp(patch)))
    return stretched.astype(np.uint8)[None]
