"""Rows of an epoch that are in memory together, and batches cut from one span of them after another.

P rows of a span.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from student_train.feed.batches import ArrayKey, Arrays, Name
from student_train.feed.flat import Flat, Kept, join_rows
from student_train.feed.order import Cut, Piece, interleave

# Bytes of a row below which an array is put in order once for a span, and a batch of it is a slice: to gather a row
# costs a cache miss however narrow it is, and a batch's gather a kernel launch (docs/log.md).
NARROW_BYTES = 64


class Span(NamedTuple):
    """Rows [start, stop) of an epoch.

    Attributes:
        start, stop: of the epoch's rows.
        places_P: where in the arrays each row lies.
        arrays: that hold these rows, and perhaps others.
        ordered: the narrow ones of them, each row in its place in the epoch.
        lengths: of arrays of rows of their own length, that of each row in its place in the epoch, on the host.
        streamed: whether threads read, and decode, the next rows meanwhile.
    """

    start: int
    stop: int
    places_P: Tensor
    arrays: Mapping[Name, Kept]
    ordered: Arrays
    lengths: dict[Name, NDArray[np.int64]]
    streamed: bool = False

    @classmethod
    def of(
        cls,
        start: int,
        places_P: Tensor,
        arrays: Mapping[Name, Kept],
        names: Iterable[Name],
        beside: Arrays,
        *,
        streamed: bool = False,
    ) -> Span:
        """Return a span of some arrays, its narrow ones put in order.

        Args:
            start: of the epoch's rows.
            places_P: where in the arrays each row lies.
            arrays: at least those that are named.
            names: of what is wanted.
            beside: arrays that are in order already.
            streamed: whether threads read, and decode, the next rows meanwhile.
        """
        ordered, lengths = dict(beside), {}
        for name in names:
            values = arrays[name]
            if isinstance(values, Flat):
                lengths[name] = values.lengths_P[places_P.cpu().numpy()]
            elif values[:1].nbytes <= NARROW_BYTES:  # of one row
                ordered[name] = values.index_select(0, places_P)
        return cls(start, start + len(places_P), places_P, arrays, ordered, lengths, streamed)

    def pick(self, start: int, stop: int, names: Iterable[Name]) -> Arrays:
        """Return the named arrays of rows [start, stop) of the epoch, all of which are in this span."""
        first, last = start - self.start, stop - self.start
        places_B = self.places_P[first:last]
        picked: Arrays = {}
        for name in names:
            if name in self.ordered:
                picked[name] = self.ordered[name][first:last]
            elif isinstance(values := self.arrays[name], Flat):
                lengths_B = self.lengths[name][first:last]
                if isinstance(name, ArrayKey):  # of labelled sites, which lie one after another in a batch too
                    picked[name] = values.items(places_B, int(lengths_B.sum()))
                else:
                    picked[name] = values.pick(places_B, int(lengths_B.max()))
            else:
                picked[name] = self.taken(values, places_B)
        return picked

    def taken(self, values: Tensor, places_B: Tensor) -> Tensor:
        """Return some rows of an array.

        In a stream by one thread: torch's wait for each other, spinning, on processors that decode (docs/log.md).
        """
        if self.streamed:
            return torch.from_numpy(np.take(values.numpy(), places_B.numpy(), axis=0))
        return values.index_select(0, places_B)


Pick = Callable[[Span, int, int], Arrays]  # rows [start, stop) of the epoch, all of them in the span


def cut_spans(
    spans: Iterable[Span], cuts: Sequence[Cut], num_rows: int, picks: Sequence[Pick]
) -> Generator[tuple[Piece, Arrays], None, None]:
    """Yield the batches of all cuts in the order of `interleave`, each with its rows.

    Of a batch that goes on in the next span, the rows are picked before this one is let go. Two spans of 3 rows, whose
    arrays hold them in another order, and batches of 2 rows, of which the second is of both:

        >>> import torch
        >>> first = Span(0, 3, torch.tensor([2, 0, 1]), {"inputs": torch.tensor([11, 12, 10])}, {}, {})
        >>> second = Span(3, 6, torch.tensor([1, 2, 0]), {"inputs": torch.tensor([15, 13, 14])}, {}, {})
        >>> pick = lambda span, start, stop: span.pick(start, stop, ["inputs"])
        >>> for piece, arrays in cut_spans([first, second], [Cut(2)], 6, [pick]):
        ...     print(piece.step, arrays["inputs"].tolist())
        0 [10, 11]
        1 [12, 13]
        2 [14, 15]

    Args:
        spans: one after another, from the first wanted row on; each is used until the next is asked for.
        cuts: of the epoch.
        num_rows: of the epoch.
        picks: for each cut, what it takes of a span.
    """
    spans = iter(spans)
    span: Span | None = None
    taken = [cut.first_step * cut.batch_size for cut in cuts]  # each cut has, or skips, all rows before
    begun: list[list[Arrays]] = [[] for _ in cuts]  # the rows of its next batch that it has
    for piece in interleave(cuts, num_rows):
        while span is None or span.stop < piece.stop:
            if span is not None:
                for cut in range(len(cuts)):
                    if taken[cut] < span.stop:
                        begun[cut].append(picks[cut](span, taken[cut], span.stop))
                        taken[cut] = span.stop
            span = next(spans)
        arrays = picks[piece.cut](span, taken[piece.cut], piece.stop)
        taken[piece.cut] = (piece.step + cuts[piece.cut].every) * cuts[piece.cut].batch_size
        if begun[piece.cut]:
            arrays = _join([*begun[piece.cut], arrays])
            begun[piece.cut] = []
        yield piece, arrays


def _join(parts: Sequence[Arrays]) -> Arrays:
    return {name: join_rows([part[name] for part in parts]) for name in parts[0]}
