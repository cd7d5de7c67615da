"""Rows to batches on the device: the same rows in the same order wherever they are kept.

An epoch is one or more spans of rows in memory: all rows at once on the device or on the host, or one shuffle window
after another. Batches are cut from them, of several sizes and views in one pass, so that a row is read once however
many students want it.

N fed rows, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch

from storage.views import PLAIN
from student_train.feed.assembly import ROWS, Assembly, Shown
from student_train.feed.batches import Arrays, Batch, Name, Needs
from student_train.feed.flat import Kept
from student_train.feed.order import (
    Cut,
    Order,
    Positions,
    Shuffle,
    Window,
    dataset_windows,
    join_windows,
    positions_of,
)
from student_train.feed.sending import send_ahead
from student_train.feed.shard_source import LABELS, ShardSource
from student_train.feed.spans import Span, cut_spans
from student_train.feed.windows import read_windows


class Fed(NamedTuple):
    """One batch of a pass that serves several cuts.

    Attributes:
        cut: which of them, from 0.
        step: of the epoch, from 0.
        batch: its rows.
    """

    cut: int
    step: int
    batch: Batch


class Feed:
    """Batches of one selection, with what some needs name.

    Args:
        source: where rows are read.
        needs: what a batch holds besides inputs.
        device: where it is to be.
        kept: arrays of all N rows, on the device or on the host; None streams them.
        window_shards: of the shuffle.
    """

    def __init__(
        self,
        source: ShardSource,
        needs: Needs,
        device: torch.device,
        kept: Mapping[Name, Kept] | None,
        window_shards: int,
    ):
        self.selection = source.selection
        self._source = source
        self._needs = needs
        self._device = device
        self._kept = kept
        taken = self.selection.taken
        parts = tuple(part.shards for part in self.selection.parts) if taken else ()
        self._shuffle = Shuffle(window_shards, parts, taken)
        self._at = (
            torch.device("cpu") if kept is None else next(iter(kept.values())).device
        )  # of rows, till they are sent
        from_table = needs.with_labels and not source.label_arrays
        self._labels_N = torch.from_numpy(self.selection.labels_N).to(self._at) if from_table else None

    @property
    def num_rows(self) -> int:
        """Return N."""
        return self.selection.num_rows

    def view_of(self, epoch: int) -> str:
        """Return the name of the view that an epoch (from 0) shows."""
        views = self.selection.views
        return PLAIN if views is None else views.of_epoch(epoch)

    def shuffled(self, batch_size: int, *, seed: int, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `first_step` on; every row is in one of them, but of a mixture."""
        cut = Cut(batch_size, self.view_of(epoch), first_step)
        # closing: whoever stops early ends the reading too
        with closing(self.shared([cut], seed=seed, epoch=epoch)) as fed:
            yield from (each.batch for each in fed)

    def shared(self, cuts: Sequence[Cut], *, seed: int, epoch: int) -> Generator[Fed]:
        """Yield the batches of several cuts of one epoch, each cut's in order, while each row is read once.

        Batches come in the order in which the pass completes them, so no cut is ahead of another by more than a batch.
        A stream holds two windows of rows, of each view that is shown, and of each cut the rows of one batch.

        Args:
            cuts: any number; of two equal ones each gets batches of its own, so merge them.
            seed, epoch: of the order of rows.

        Raises:
            StaleCache, CorruptObject: as `ShardSource.reading`.
        """
        return self._cut(cuts, *self._shuffle.epoch(self.selection.shard_sizes_S, seed=seed, epoch=epoch))

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield all rows in dataset order, plain."""
        windows = dataset_windows(self.selection.shard_sizes_S)
        with closing(
            self._cut([Cut(batch_size)], windows, lambda window: np.arange(window.stop - window.start))
        ) as fed:
            yield from (each.batch for each in fed)

    def _cut(self, cuts: Sequence[Cut], windows: Sequence[Window], order: Order) -> Generator[Fed]:
        of_view = {view: self._assembly(view) for view in {cut.view for cut in cuts}}
        assemblies = [of_view[cut.view] for cut in cuts]
        names = frozenset[Name]().union(*(assembly.stored for assembly in assemblies))
        if self._kept is not None:
            spans = self._whole(self._kept, windows, order, names)
        else:
            # a run that goes on reads nothing that it has passed
            first_row = min((cut.first_step * cut.batch_size for cut in cuts), default=self.num_rows)
            spans = self._stream([window for window in windows if window.stop > first_row], order, names)
        picked = cut_spans(spans, cuts, self.num_rows, [assembly.pick for assembly in assemblies])
        # what is there already is not sent
        on_device = picked if self._at.type == self._device.type else send_ahead(picked, self._device)
        for piece, arrays in on_device:
            yield Fed(piece.cut, piece.step, assemblies[piece.cut].batch(arrays))

    def _assembly(self, view: str) -> Assembly:
        shown = None if view == PLAIN else Shown(self.selection, view, self._device)
        return Assembly(self._source, self._needs, self._labels_N, shown)

    def _whole(
        self, kept: Mapping[Name, Kept], windows: Sequence[Window], order: Order, names: frozenset[Name]
    ) -> Iterator[Span]:
        """Yield all rows as one span."""
        rows_N = join_windows(self.selection.shard_sizes_S, windows, order)
        yield self._span(0, kept, names, rows_N, rows_N)

    def _stream(self, windows: Sequence[Window], order: Order, names: frozenset[Name]) -> Iterator[Span]:
        """Yield each window as a span."""
        sizes_S = self.selection.shard_sizes_S
        for window, arrays in zip(windows, read_windows(self._source, windows, names), strict=True):
            places_P = order(window)
            yield self._span(window.start, arrays, names, places_P, positions_of(sizes_S, window)[places_P])

    def _span(
        self, start: int, arrays: Mapping[Name, Kept], names: frozenset[Name], places_P: Positions, rows_P: Positions
    ) -> Span:
        places, rows = (torch.from_numpy(each).to(self._at) for each in (places_P, rows_P))
        beside: Arrays = {ROWS: rows}
        if self._labels_N is not None:
            beside[LABELS] = self._labels_N.index_select(0, rows)
        return Span.of(start, places, arrays, names, beside, streamed=self._kept is None)
