"""Rows to batches on the device: resident or streamed, the same rows in the same order either way.

Resident: inputs and encoded soft targets lie on the device as tensors, and a batch is an index operation.
Streamed: the shards of one shuffle window are on the host while a thread reads those of the next; never more.
Both decode a batch at a time, on the device.

N fed rows, W rows of a window, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from storage.cache import Cache
from storage.encodings import Encoded, FeatureEncoding
from storage.errors import CorruptObject
from storage.shards import ShardKey
from storage.spec import TeacherSpec
from storage.views import PLAIN, plain
from student_train.needs import ArrayKey, Batch, MixedLabels, Needs
from student_train.order import Positions, Window, epoch_order, epoch_windows, window_order
from student_train.selection import Selection
from student_train.views import Shown

INPUTS = "inputs"
PARTNERS = "partners"  # inputs again, of the rows that a view mixes in
LABELS = "labels"  # of tokens: an array; of all else, a column of the sample table
FEATURE = "feature/"
Name = ArrayKey | str  # INPUTS, LABELS, or an array of a teacher
Arrays = dict[Name, Tensor]
Tick = Callable[[int, int], None]  # told how many shards of how many are read; may raise to stop


class ShardSource:
    """The fed rows of one selection, a shard at a time, as stored."""

    def __init__(self, cache: Cache, selection: Selection):
        self.cache = cache
        self.selection = selection
        self.of_tokens = cache.dataset(selection.dataset).vocabulary is not None
        self._specs: dict[str, TeacherSpec] = {}

    def names(self, needs: Needs, view: str = PLAIN) -> frozenset[Name]:
        """Return what must be read to meet some needs in an epoch that shows a view."""
        soft = [
            ArrayKey(teacher, array)
            for teacher in needs.teachers
            if needs.of(teacher)
            for array in self._spec(teacher).encoding.array_names(needs.of(teacher))
        ]
        keys = (replace(key, view=view) for key in (*soft, *needs.features))
        return frozenset({INPUTS, *([LABELS] if self.of_tokens else []), *keys})

    def encoded(self, arrays: Mapping[Name, Tensor]) -> dict[str, Encoded]:
        """Return the soft targets among some arrays, by teacher."""
        stored: dict[str, dict[str, Tensor]] = {}
        for name, values in arrays.items():
            if isinstance(name, ArrayKey) and not name.array.startswith(FEATURE):
                stored.setdefault(name.teacher, {})[name.array] = values
        specs = {teacher: self._spec(teacher) for teacher in stored}
        return {t: Encoded(specs[t].encoding, specs[t].num_classes, values) for t, values in stored.items()}

    def features(self, arrays: Mapping[Name, Tensor]) -> dict[ArrayKey, Tensor]:
        """Return the features among some arrays, decoded to float32."""
        return {
            replace(name, view=PLAIN): self._feature(name).decode(values)
            for name, values in arrays.items()
            if isinstance(name, ArrayKey) and name.array.startswith(FEATURE)
        }

    def _feature(self, key: ArrayKey) -> FeatureEncoding:
        return self._spec(key.teacher).features[key.array.removeprefix(FEATURE)]

    def _spec(self, teacher: str) -> TeacherSpec:
        if teacher not in self._specs:
            self._specs[teacher] = self.cache.teacher(self.selection.dataset, teacher)
        return self._specs[teacher]

    def read(self, index: int, names: frozenset[Name]) -> dict[Name, np.ndarray[Any, Any]]:
        """Return the named arrays of the fed rows of shard `shards_S[index]`.

        Raises:
            StaleCache: a student would not be shown what a teacher saw.
            CorruptObject: bytes are missing or altered, or are of values that cannot have been encoded.
        """
        dataset, shard = self.selection.dataset, self.selection.shards_S[index]
        keys = [name for name in names if isinstance(name, ArrayKey)]
        inputs_S = self.cache.read_inputs(dataset, shard)
        stored: dict[Name, np.ndarray[Any, Any]] = {INPUTS: inputs_S} if INPUTS in names else {}
        if LABELS in names:
            stored[LABELS] = self.cache.read_labels(dataset, shard)
        for teacher, view in sorted({(key.teacher, key.view) for key in keys}):
            self.cache.check_view(dataset, teacher, shard, inputs_S, view)
            wanted = [key.array for key in keys if (key.teacher, key.view) == (teacher, view)]
            targets = self.cache.read_targets(dataset, teacher, shard, view, names=wanted)
            soft = {array: values for array, values in targets.items() if not array.startswith(FEATURE)}
            spec = self._spec(teacher)
            if (fault := spec.encoding.fault(soft, spec.num_classes)) is not None:
                raise CorruptObject(
                    f"{ShardKey(dataset, teacher, view, shard)}: {fault}", do="see what `cache verify` says of it"
                )
            stored |= {ArrayKey(teacher, array, view): values for array, values in targets.items()}
        rows = self.selection.rows[index]
        whole = len(rows) == len(inputs_S)
        return {name: values if whole else values[rows] for name, values in stored.items()}

    def load(
        self,
        indices: tuple[int, ...],
        names: frozenset[Name],
        device: torch.device,
        tick: Tick = lambda done, shards: None,
    ) -> Arrays:
        """Return the named arrays of some shards as one tensor each, at most one shard's more than that in memory."""
        num_rows = int(self.selection.shard_sizes_S[list(indices)].sum())
        loaded: Arrays = {}
        start = 0
        for done, index in enumerate(indices, start=1):
            for name, values in self.read(index, names).items():
                tensor = _as_tensor(values)
                if name not in loaded:
                    loaded[name] = torch.empty((num_rows, *tensor.shape[1:]), dtype=tensor.dtype, device=device)
                loaded[name][start : start + len(tensor)].copy_(tensor)
            start += len(self.selection.rows[index])
            tick(done, len(indices))
        return loaded


class Feed:
    """Batches of one selection, with what some needs name.

    Args:
        source: where rows are read.
        needs: what a batch holds besides inputs.
        device: where it is to be.
        resident: arrays that already lie on the device, all N rows; None streams.
        window_shards: of the shuffle.
    """

    def __init__(
        self, source: ShardSource, needs: Needs, device: torch.device, resident: Arrays | None, window_shards: int
    ):
        self.selection = source.selection
        self._source = source
        self._needs = needs
        self._device = device
        self._resident = resident
        self._window_shards = window_shards
        from_table = needs.labels and not source.of_tokens
        self._labels_N = torch.from_numpy(self.selection.labels_N).to(device) if from_table else None

    @property
    def num_rows(self) -> int:
        """Return N."""
        return self.selection.num_rows

    def num_steps(self, batch_size: int) -> int:
        """Return the number of batches of an epoch; the last may be smaller than the others."""
        return -(-self.num_rows // batch_size)

    def view_of(self, epoch: int) -> str:
        """Return the name of the view that an epoch (from 0) shows."""
        views = self.selection.views
        return PLAIN if views is None else views.of_epoch(epoch)

    def shuffled(self, batch_size: int, *, seed: int, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `first_step` on; every row is in one of them."""
        view = self.view_of(epoch)
        shown = None if view == PLAIN else Shown(self.selection, view, self._device)
        sizes_S, window_shards = self.selection.shard_sizes_S, self._window_shards
        if self._resident is not None:
            order_N = epoch_order(sizes_S, seed=seed, epoch=epoch, window_shards=window_shards)
            yield from self._index(self._resident, torch.from_numpy(order_N), batch_size, first_step, shown)
        else:
            windows = epoch_windows(sizes_S, seed=seed, epoch=epoch, window_shards=window_shards)
            order = partial(window_order, seed=seed, epoch=epoch)
            yield from self._stream(windows, order, batch_size, first_step * batch_size, shown)

    def shared(self, cuts: list[tuple[int, str, int]], *, seed: int, epoch: int) -> Iterator[tuple[int, int, Batch]]:
        """Provisional."""
        for cut, (size, _, first) in enumerate(cuts):
            for step, batch in enumerate(self.shuffled(size, seed=seed, epoch=epoch, first_step=first), start=first):
                yield cut, step, batch

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield all rows in dataset order, plain."""
        if self._resident is not None:
            yield from self._index(self._resident, torch.arange(self.num_rows), batch_size, 0)
        else:
            stops = np.cumsum(self.selection.shard_sizes_S).tolist()
            starts = [0, *stops[:-1]]
            windows = [Window(i, (i,), a, b) for i, (a, b) in enumerate(zip(starts, stops, strict=True))]
            yield from self._stream(windows, lambda window: np.arange(window.stop - window.start), batch_size, 0)

    def _index(
        self, arrays: Arrays, order_N: Tensor, batch_size: int, first_step: int, shown: Shown | None = None
    ) -> Iterator[Batch]:
        order_N = order_N.to(self._device)
        wanted = {name: arrays[name] for name in self._names(shown)}
        for start in range(first_step * batch_size, self.num_rows, batch_size):
            rows_B = order_N[start : start + batch_size]
            picked = {name: values.index_select(0, rows_B) for name, values in wanted.items()}
            if shown is not None and shown.partners_N is not None:
                picked[PARTNERS] = arrays[INPUTS].index_select(0, shown.partners(rows_B))
            yield self._batch(picked, rows_B, shown)

    def _stream(
        self,
        windows: list[Window],
        order: Callable[[Window], Positions],
        batch_size: int,
        first_row: int,
        shown: Shown | None = None,
    ) -> Iterator[Batch]:
        """Yield batches from `first_row` of the epoch on."""
        sizes_S = self.selection.shard_sizes_S
        first_S = np.cumsum(sizes_S) - sizes_S
        windows = [window for window in windows if window.stop > first_row]
        parts: list[tuple[Arrays, Tensor]] = []  # of the batch that is being filled; it may span windows
        missing = batch_size
        load = partial(self._load, self._names(shown))
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed") as reader:
            loading = [reader.submit(load, window) for window in windows[:1]]
            for number, window in enumerate(windows):
                arrays = loading.pop().result()
                # Only now, with the window before this one released, so that no third one is ever in memory.
                loading += [reader.submit(load, following) for following in windows[number + 1 : number + 2]]
                positions_W = np.concatenate([first_S[s] + np.arange(sizes_S[s]) for s in window.shards])
                order_W = order(window)[max(0, first_row - window.start) :]
                while len(order_W):
                    picked = torch.from_numpy(order_W[:missing])
                    rows = torch.from_numpy(positions_W[order_W[:missing]])
                    part = {name: values.index_select(0, picked) for name, values in arrays.items()}
                    if shown is not None and shown.partners_N is not None:  # in the row's own shard, so in its window
                        away = shown.partners_N.index_select(0, rows) - rows
                        part[PARTNERS] = arrays[INPUTS].index_select(0, picked + away)
                    parts.append((part, rows))
                    order_W, missing = order_W[missing:], missing - len(picked)
                    if not missing:
                        yield self._send(parts, shown)
                        parts, missing = [], batch_size
                del arrays
        if parts:
            yield self._send(parts, shown)

    def _names(self, shown: Shown | None) -> frozenset[Name]:
        return self._source.names(self._needs, PLAIN if shown is None else shown.name)

    def _load(self, names: frozenset[Name], window: Window) -> Arrays:
        return self._source.load(window.shards, names, torch.device("cpu"))

    def _send(self, parts: list[tuple[Arrays, Tensor]], shown: Shown | None) -> Batch:
        """Return host rows as a batch on the device."""
        arrays = {name: torch.cat([part[name] for part, _ in parts]) for name in parts[0][0]}
        rows_B = torch.cat([rows for _, rows in parts])
        if self._device.type == "cuda":  # pinned, so that the copy overlaps the step before
            arrays = {name: a.pin_memory().to(self._device, non_blocking=True) for name, a in arrays.items()}
            rows_B = rows_B.pin_memory().to(self._device, non_blocking=True)
        return self._batch(arrays, rows_B, shown)

    def _batch(self, arrays: Arrays, rows_B: Tensor, shown: Shown | None) -> Batch:
        labels_B = None if self._labels_N is None else self._labels_N.index_select(0, rows_B)
        inputs, mixed = arrays[INPUTS], None
        if shown is not None:
            inputs, own_weight_B = shown.show(inputs, arrays.get(PARTNERS), rows_B)
            if self._labels_N is not None and own_weight_B is not None:
                mixed = MixedLabels(self._labels_N.index_select(0, shown.partners(rows_B)), own_weight_B)
        return Batch(
            inputs=plain(inputs),
            mixed=mixed,
            labels_B=arrays[LABELS].long() if LABELS in arrays else labels_B,
            targets=self._source.encoded(arrays),
            features=self._source.features(arrays),
        )


def _as_tensor(values: np.ndarray[Any, Any]) -> Tensor:
    """Return a tensor over an array's memory; bits of bf16 as int16, since few operations take uint16."""
    values = np.ascontiguousarray(values)
    if not values.flags.writeable:
        values = values.copy()
    return torch.from_numpy(values.view(np.int16) if values.dtype == np.uint16 else values)
