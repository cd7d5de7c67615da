"""What batches of one view are made of: which arrays are picked of rows in memory, and how the view shows them.

N fed rows, B rows of a batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from storage.encodings import Encoded
from storage.inputs import inputs_of
from storage.views import PLAIN
from storage.views.shown import View
from student_train.feed.batches import ArrayKey, Arrays, Batch, MixedLabels, Needs
from student_train.feed.selection import Selection
from student_train.feed.shard_source import LABELS, ShardSource
from student_train.feed.spans import Span

ROWS = "rows"  # the positions of a batch's rows
PARTNERS, PARTNER_LABELS = "partners", "partner labels"  # of the rows that a view mixes in: inputs again, and labels


class Assembly:
    """How rows become batches of one view.

    Args:
        source: of the rows.
        needs: what a batch holds besides inputs.
        labels_N: from the sample table, on the device of the arrays; None if the needs name none, or they are an array.
        shown: the view; None for plain inputs.
    """

    def __init__(self, source: ShardSource, needs: Needs, labels_N: Tensor | None, shown: Shown | None):
        view = PLAIN if shown is None else shown.name
        self.stored = source.names(needs, view)
        self._inputs = source.inputs(view)
        self._source = source
        self._labels_N = labels_N
        self._shown = shown
        # which rows they are: a view is a function of the sample
        self._picked = [*self.stored, *[LABELS] * (labels_N is not None), *[ROWS] * (shown is not None)]
        # needs name plain arrays; what is read is of this view
        self._features = {key: (key._replace(view=view), source.feature(key)) for key in needs.features}
        features = {stored for stored, _ in self._features.values()}
        soft = [name for name in self.stored if isinstance(name, ArrayKey) and name not in features]
        self._soft = {
            teacher: (source.teacher(teacher), {key.array: key for key in soft if key.teacher == teacher})
            for teacher in sorted({key.teacher for key in soft})
        }

    def pick(self, span: Span, start: int, stop: int) -> Arrays:
        """Return rows [start, stop) of the epoch, all of them in one span, on the device of its arrays."""
        picked = span.pick(start, stop, self._picked)
        if self._shown is not None and self._shown.mixes:
            partners_B = self._shown.partners(picked[ROWS])
            # Each is in the row's own shard, of which every row is in the span.
            places_B = span.places_P[start - span.start : stop - span.start] + (partners_B - picked[ROWS])
            images = span.arrays[self._inputs]
            assert isinstance(images, Tensor)
            picked[PARTNERS] = span.taken(images, places_B)
            if self._labels_N is not None:
                picked[PARTNER_LABELS] = self._labels_N.index_select(0, partners_B)
        return picked

    def batch(self, picked: Arrays) -> Batch:
        """Return what was picked, now on the device of the batches, as a batch."""
        picked = self._source.at_labels(picked)
        shown, mixed = picked[self._inputs], None
        if self._shown is not None:
            shown, own_weight_B = self._shown.show(shown, picked.get(PARTNERS), picked[ROWS])
            if PARTNER_LABELS in picked and own_weight_B is not None:
                mixed = MixedLabels(picked[PARTNER_LABELS], own_weight_B)
        return Batch(
            shown,
            _as_labels(picked[LABELS]) if LABELS in picked else None,
            {
                teacher: Encoded(spec.encoding, spec.num_classes, {array: picked[key] for array, key in keys.items()})
                for teacher, (spec, keys) in self._soft.items()
            },
            {key: encoding.decode(picked[stored]) for key, (stored, encoding) in self._features.items()},
            mixed,
        )


def _as_labels(stored_B: Tensor) -> Tensor:
    """Return classes as a cross-entropy takes them, int64, for an array of labels is int32; numbers as they are."""
    return stored_B if stored_B.is_floating_point() else stored_B.long()


class Shown:
    """One view of all fed rows, on the device of a feed: as the teacher's shard was shown, to the byte.

    Args:
        selection: the rows; it has views.
        name: of the view.
        device: where batches are.
    """

    def __init__(self, selection: Selection, name: str, device: torch.device):
        assert selection.views is not None
        self.name = name
        self._view: View = inputs_of(selection.spec).left(selection.views.spec.view(name))
        self._keys_N = torch.from_numpy(selection.keys_N).to(device)
        self._partners_N: dict[torch.device, Tensor] = {}  # positions among the fed rows, there and on the host
        if self._view.mixing:
            partners_N = torch.from_numpy(_partners(selection, self._view))
            self._partners_N = {on: partners_N.to(on) for on in (self._keys_N.device, partners_N.device)}

    @property
    def mixes(self) -> bool:
        """Whether every row has a partner."""
        return bool(self._partners_N)

    def partners(self, rows_B: Tensor) -> Tensor:
        """Return the positions of some rows' partners, where the rows' own are: on the device or on the host."""
        return self._partners_N[rows_B.device].index_select(0, rows_B)

    def show(self, inputs: Tensor, partner_inputs: Tensor | None, rows_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return a batch as the view shows it, uint8, and float32 weights of its rows' own labels, None for all 1."""
        keys_B = self._keys_N.index_select(0, rows_B)
        if partner_inputs is None:
            return self._view.show(inputs, keys_B).images, None
        partner_keys_B = self._keys_N.index_select(0, self.partners(rows_B))
        mixed = self._view.show(inputs, keys_B, partner_inputs, partner_keys_B)
        return mixed.images, mixed.own_weight_B


def _partners(selection: Selection, view: View) -> np.ndarray:
    """Return the position of each fed row's partner, (N,): in its shard and split, of which every row is fed."""
    stops_S = np.cumsum(selection.shard_sizes_S)
    parts = [
        start + view.partners(selection.keys_N[start:stop], selection.splits_N[start:stop])
        for start, stop in zip(stops_S - selection.shard_sizes_S, stops_S, strict=True)
    ]
    return np.concatenate(parts)
