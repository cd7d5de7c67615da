"""A view is one augmentation of a sample: the very tensor that teacher and student both see (invariant 5).

`plain` is no augmentation: the stored input, pixels scaled to [0, 1]. `view-000`, `view-001`, … are pure functions of
(seed, sample, view), computed alike on both sides. What a model does after that, such as normalising by its own mean
and deviation, is the model's own affair.

    options.py     what a job may say, and the transforms' own options
    numbers.py     what is random: a hash of (seed, sample, view, purpose)
    transforms.py  one function per transform of an image
    boxes.py       the boxes that crops choose among
    mixing.py      mixup and CutMix: partners within the shard, and what is left of each label
    check.py       whether a student would be shown what a teacher was shown
    shown.py       all of it together: what a model is shown of a batch, or of a shard
"""

from __future__ import annotations

import re

import numpy as np

from storage.digests import digest
from storage.inputs.ragged import Ragged

PLAIN = "plain"
VIEW_NAME = re.compile(r"view-(\d{3,})")
FINGERPRINTED_ROWS = 8  # enough to notice another decoder, channel order or transform; costs microseconds


def view_name(number: int) -> str:
    """Return the name of a view: "view-000"."""
    return f"view-{number:03d}"


def view_number(name: str) -> int | None:
    """Return the number of a view, or None for `plain`. Raises ValueError."""
    if name == PLAIN:
        return None
    match = VIEW_NAME.fullmatch(name)
    if match is None or view_name(int(match[1])) != name:  # view-0001 is no second name of view-001
        raise ValueError(f"{name} is no view")
    return int(match[1])


def view_fingerprint(inputs_S: np.ndarray | Ragged) -> str:
    """Return the fingerprint of what a model is shown: shape, dtype and bytes of the first rows of a shard.

    Of rows of their own length, their offsets are between shape and bytes.
    """
    if isinstance(inputs_S, Ragged):
        rows = inputs_S.take(np.arange(min(len(inputs_S), FINGERPRINTED_ROWS)))
        about = f"{rows.flat_T.dtype.str}{rows.flat_T.shape}".encode() + rows.offsets.tobytes()
        return digest(about + rows.flat_T.tobytes())
    first = np.ascontiguousarray(inputs_S[:FINGERPRINTED_ROWS])
    return digest(f"{first.dtype.str}{first.shape}".encode() + first.tobytes())
