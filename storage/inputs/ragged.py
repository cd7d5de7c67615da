"""Rows of their own length, without padding: one flat array of all rows' items, and where each row ends.

Shapes: S rows of a shard, T items of all its rows together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.digests import digest

OFFSETS = "offsets/"  # and the name of the array whose rows they part


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of their own length: row i is `flat_T[offsets[i]:offsets[i + 1]]`.

        >>> rows = Ragged.of([[7, 8], [], [9]], np.int32)
        >>> rows.flat_T, rows.offsets
        (array([7, 8, 9], dtype=int32), array([0, 2, 2, 3]))
        >>> rows.lengths
        array([2, 0, 1])

    Attributes:
        flat_T: (T, …), the items of row 0, then those of row 1, …
        offsets: int64 (S + 1,), ascending from 0 to T.

    Raises:
        ValueError: the offsets do not part the items into rows.
    """

    flat_T: NDArray[np.generic]
    offsets: NDArray[np.int64]

    def __post_init__(self) -> None:
        offsets = self.offsets
        if offsets.dtype != np.int64 or offsets.ndim != 1 or not len(offsets):
            raise ValueError(f"offsets are {offsets.dtype} {offsets.shape}, not int64 (S + 1,)")
        if (offsets[0], offsets[-1]) != (0, len(self.flat_T)) or (offsets[1:] < offsets[:-1]).any():
            raise ValueError(
                f"offsets do not ascend from 0 to {len(self.flat_T)}: the first is {offsets[0]}, the last {offsets[-1]}"
            )

    @classmethod
    def of(cls, rows: Sequence[NDArray[np.generic] | Sequence[float]], dtype: str | type[np.generic]) -> Ragged:
        """Return rows joined: arrays of their own length, alike in all other axes; no rows at all are items of (0,)."""
        arrays = [np.asarray(row, dtype) for row in rows]
        offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        return cls(np.concatenate(arrays) if arrays else np.empty(0, dtype), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.generic]:
        """Return the items of one row, over the memory of all. Raises IndexError."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.flat_T[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[NDArray[np.generic]]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of items of each row."""
        return np.diff(self.offsets)

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> Ragged:
        """Return some rows: their numbers in the order that they are to have, or a mask (S,).

        >>> Ragged.of([[7, 8], [], [9]], np.int32).take(np.array([2, 0])).flat_T
        array([9, 7, 8], dtype=int32)
        """
        chosen = np.arange(len(self))[rows]
        lengths = self.lengths[chosen]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        # Where an item lies: where its row begins in the whole, and how far into its row it is.
        places = np.repeat(self.offsets[chosen] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(self.flat_T[places], offsets)

    def padded(self, fill: int) -> NDArray[np.generic]:
        """Return rows side by side, (S, longest, …), behind each that is not the longest a number that fills it.

        >>> Ragged.of([[7, 8], [], [9]], np.int32).padded(-1).tolist()
        [[7, 8], [-1, -1], [9, -1]]
        """
        longest = max(1, int(self.lengths.max(initial=0)))  # one at least: all may be empty
        inside = np.arange(longest) < self.lengths[:, None]
        padded = np.full((*inside.shape, *self.flat_T.shape[1:]), fill, self.flat_T.dtype)
        padded[inside] = self.flat_T  # row after row, as they lie flat
        return padded


def digest_rows(rows_S: np.ndarray | Ragged) -> str:
    """Return the digest of all bytes of some rows; of rows of their own length, of their offsets before them."""
    if isinstance(rows_S, Ragged):
        return digest(rows_S.offsets.tobytes() + rows_S.flat_T.tobytes())
    return digest(np.ascontiguousarray(rows_S).reshape(-1).view(np.uint8).data)  # as they lie, without a copy


def split_offsets(arrays: Mapping[str, np.ndarray | Ragged]) -> dict[str, np.ndarray]:
    """Return arrays as they are stored: those of rows of their own length flat, and their offsets beside them."""
    stored: dict[str, np.ndarray] = {}
    for name, array_S in arrays.items():
        if isinstance(array_S, Ragged):
            stored |= {name: array_S.flat_T, OFFSETS + name: array_S.offsets}
        else:
            stored[name] = array_S
    return stored


def join_offsets(stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray | Ragged]:
    """Return what `split_offsets` was given. Raises ValueError where offsets do not part their array."""
    arrays: dict[str, np.ndarray | Ragged] = {}
    for name, array in stored.items():
        if name.startswith(OFFSETS):
            continue
        offsets = stored.get(OFFSETS + name)
        try:
            arrays[name] = array if offsets is None else Ragged(array, offsets)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return arrays
