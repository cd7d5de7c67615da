"""One shard's chosen rows: the teacher is asked twice, in two ways to batch them, and each answer is compared.

Shapes: S rows of a shard, B chosen rows or those of a batch, `sites` the axes of a row's sites (storage.tasks), P of
them that are answered, N of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

from storage.cache import Cache
from storage.encodings import AnyEncoding
from storage.format.committing import read_stored
from storage.format.shards import Commit, ShardKey
from storage.format.specs import DatasetSpec, TeacherSpec
from storage.inputs import inputs_of
from storage.tasks import task_of
from storage.views import PLAIN
from storage.views.check import Seen, own_size, readable_rows, show_rows
from teacher_cache.auditing.comparing import Gap, feature_gap, gaps, size_of
from teacher_cache.work.checks import check_classes
from teacher_cache.work.conversions import convert
from teacher_cache.work.rows import draw_keys, labels_of, take_up

if TYPE_CHECKING:
    from torch import Tensor

    from teacher_cache.teachers.model import Teacher

BATCH_ROWS = 32  # few, so that a vocabulary's logits are no burden
FEATURE = "feature/"


class Compared(NamedTuple):
    """One aspect of one row.

    Attributes:
        off: how far the stored value is from the teacher's.
        own: how far the teacher's other answer would be, stored likewise: what to tolerate.
        size: of the values that it is computed from.
        found, expected, class_number: as of `Gap`, at the row's worst site.
    """

    key: ShardKey
    row: int
    sample_id: str
    aspect: str
    off: float
    own: float
    size: float
    found: float
    expected: float
    class_number: int | None


class Asked(NamedTuple):
    """What came of one shard: every aspect of every chosen row, and where and of which rows it was made."""

    commit: Commit
    rows: int
    compared: list[Compared]


def ask_again(cache: Cache, key: ShardKey, wanted: int, teacher: Teacher, draw: np.random.Generator) -> Asked:
    """Return how the stored answers of some rows of a shard differ from a teacher's.

    Raises:
        StaleCache: the teacher would be shown other inputs than it was.
        CorruptObject: the shard is damaged.
    """
    import torch

    assert key.teacher is not None
    dataset, spec = cache.dataset(key.dataset), cache.teacher(key.dataset, key.teacher)
    commit, ingest = cache.commit(key), cache.commit(ShardKey(key.dataset, None, PLAIN, key.shard), with_table=True)
    readable, inputs_S = readable_rows(ingest.table), cache.rows_of(ingest)
    views = None if key.view == PLAIN else cache.views(key.dataset)
    cache.check_view(ingest, commit, inputs_S, views)
    # the whole shard: a partner may be any of its rows
    shown_B = show_rows(Seen(dataset, inputs_S, own_size(dataset, spec)), readable, key.view, views)
    if not len(shown_B):  # nothing of the shard could be read, or there is nothing in it
        return Asked(commit, 0, [])
    places_B = np.sort(draw.permutation(len(shown_B))[:wanted])  # among those that can be read
    rows_B = np.flatnonzero(readable.mask_S)[places_B]
    if not len(rows_B):
        return Asked(commit, 0, [])
    stored = read_stored(cache.objects, commit, commit.array_names)
    labels = labels_of(cache, key, ingest, rows_B)
    answered = task_of(dataset).answered_sites(labels)
    chosen_S = np.zeros((len(readable.mask_S), *answered.shape[1:]), np.bool_)
    chosen_S[rows_B] = answered.numpy()
    answering = _Answered(
        teacher,
        spec,
        chain(commit.about.get("recoded_from"), spec.encoding),
        shown_B[torch.from_numpy(places_B)],
        labels,
        draw_keys(dataset, readable, key.view, labels)[torch.from_numpy(places_B)],
        answered,
        {name: torch.from_numpy(take_up(values, chosen_S)) for name, values in stored.items()},
    )
    compared: list[Compared] = []
    for batch_B, difference in answering.differences(cache, key.dataset):
        rows = rows_B[batch_B.numpy()].tolist()
        ids = ingest.table["sample_id"].take(rows).to_pylist()
        places = [(commit.start + row, name) for row, name in zip(rows, ids, strict=True)]
        compared += _by_row(key, places, answering.counts(batch_B), difference)
    return Asked(commit, len(rows_B), compared)


class Difference(NamedTuple):
    """One aspect of a batch: the gap to what is stored, that to the other answer, and the size of the values."""

    aspect: str
    stored: Gap
    own: Gap
    size: float


def _by_row(
    key: ShardKey, rows: list[tuple[int, str]], counts: list[int], difference: Difference
) -> Iterator[Compared]:
    """Yield a difference of each row at its worst site; rows are (row, sample_id), each of so many sites."""
    aspect, stored, own, size = difference
    start = 0
    for (row, sample_id), count in zip(rows, counts, strict=True):
        if not count:
            continue
        at = start + int(stored.off_N[start : start + count].argmax())
        own_off = own.off_N[start : start + count].amax().item()
        off, found, expected = (values[at].item() for values in (stored.off_N, stored.found_N, stored.expected_N))
        of_class = None if stored.class_N is None else int(stored.class_N[at])
        yield Compared(key, row, sample_id, aspect, off, own_off, size, found, expected, of_class)
        start += count


def chain(recoded_from: dict[str, Any] | None, encoding: AnyEncoding) -> list[AnyEncoding]:
    """Return the encodings through which a shard came to be as it is, its teacher's own build first.

    >>> from storage.encodings import DenseEncoding
    >>> recoded_from = {"encoding": {"dtype": "fp16"}, "before": {"encoding": {}}}
    >>> [encoding.dtype for encoding in chain(recoded_from, DenseEncoding(dtype="int8"))]
    ['fp32', 'fp16', 'int8']
    """
    before: list[AnyEncoding] = []
    while recoded_from is not None:
        before.insert(0, TypeAdapter(AnyEncoding).validate_python(recoded_from["encoding"]))
        recoded_from = recoded_from.get("before")
    return [*before, encoding]


class _Answered(NamedTuple):
    """Chosen rows of a shard, (B, …) each, and whom to ask about them.

    Attributes:
        answered: which of their sites are, bool (B, *sites).
        stored: the arrays of those, (P, …) each.
    """

    teacher: Teacher
    spec: TeacherSpec
    encodings: list[AnyEncoding]
    shown_B: Tensor
    labels: Tensor
    keys: Tensor
    answered: Tensor
    stored: dict[str, Tensor]

    def counts(self, rows_B: Tensor) -> list[int]:
        """Return how many answered sites some rows have."""
        counts: list[int] = self.answered[rows_B].reshape(len(rows_B), -1).sum(1).tolist()
        return counts

    def differences(self, cache: Cache, name: str) -> Iterator[tuple[Tensor, Difference]]:
        """Yield each aspect of each batch that has an answered site, with which of the B rows it is of."""
        dataset, spec = cache.dataset(name), self.spec
        for batch_B in inputs_of(dataset).batches(self.shown_B, min(BATCH_ROWS, self.teacher.batch_size)):
            if not self.answered[batch_B].any():
                continue
            live_NV, features = self._ask(batch_B, dataset)
            again_NV, features_again = self._otherwise(batch_B, dataset)
            places_N = self._places(batch_B)
            stored = {name: values[places_N] for name, values in self.stored.items()}
            if spec.encoding.soft:
                check_classes(live_NV, self.labels[batch_B][self.answered[batch_B]], spec, dataset)
                live_NC = live_NV[:, : spec.num_classes]
                own, others = (self._as_stored(each, batch_B) for each in (live_NV, again_NV))
                targets = {name: values for name, values in stored.items() if not name.startswith(FEATURE)}
                found = gaps(spec.encoding, targets, live_NC, own)
                tolerated = gaps(spec.encoding, others, live_NC, own)
                size = size_of(live_NC)
                for aspect, gap in found.items():
                    yield batch_B, Difference(aspect, gap, tolerated[aspect], size)
            for feature, values in features.items():
                encoding, path = spec.features[feature], FEATURE + feature
                gap = feature_gap(encoding, stored[path], values)
                own_gap = feature_gap(encoding, encoding.encode(features_again[feature]), values)
                yield (
                    batch_B,
                    Difference(path, gap, own_gap, values.float().nan_to_num(0.0, 0.0, 0.0).abs().amax().item()),
                )

    def _ask(self, rows_B: Tensor, dataset: DatasetSpec) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits, (N, V), and features of answered sites of some rows, on the host; (N, 0) if it has none."""
        import torch

        heard = self.teacher.hear(self.shown_B[rows_B], self.answered[rows_B], dataset)
        logits_NV = heard.hidden.cpu()
        if self.teacher.is_scored:
            blocks = self.teacher.blocks(len(heard.hidden), self.spec.num_classes)
            logits_NV = torch.cat([self.teacher.scores(heard.hidden[at], dataset).float().cpu() for at in blocks])
        return logits_NV, {name: values.cpu() for name, values in heard.features.items()}

    def _places(self, rows_B: Tensor) -> Tensor:
        """Return which of all answered sites are those of some rows, in order of these."""
        import torch

        counts_B = self.answered.reshape(len(self.answered), -1).sum(1)
        firsts_B = counts_B.cumsum(0) - counts_B
        spans = [torch.arange(int(firsts_B[row]), int(firsts_B[row] + counts_B[row])) for row in rows_B]
        return torch.cat(spans)

    def _otherwise(self, batch_B: Tensor, dataset: DatasetSpec) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the teacher says of a batch in two halves, turned round; of a single row, beside itself."""
        import torch

        turned_B = batch_B.flip(0)
        halves = [turned_B.repeat(2)] if len(batch_B) == 1 else turned_B.tensor_split(2)
        said = [self._ask(half_B, dataset) for half_B in halves if self.answered[half_B].any()]
        # back to the order of the batch: sites by their numbers, of which a single row has each twice
        order_N = torch.cat([self._places(half_B) for half_B in halves])
        places_N = self._places(batch_B)
        back_N = order_N.argsort(stable=True)[:: len(order_N) // len(places_N)]
        back_N = back_N[places_N.argsort().argsort()]

        def joined(parts: list[Tensor]) -> Tensor:
            return torch.cat(parts)[back_N]

        features = {each: joined([part[each] for _, part in said]) for each in said[0][1]}
        return joined([logits for logits, _ in said]), features

    def _as_stored(self, logits_NV: Tensor, batch_B: Tensor) -> dict[str, Tensor]:
        """Return logits as the cache would have stored them, (N, …) each, through all that was recoded."""
        answered, classes = self.answered[batch_B], self.spec.num_classes
        labels_N, keys_N = self.labels[batch_B][answered], self.keys[batch_B][answered]
        arrays = self.encodings[0].encode(logits_NV, num_classes=classes, labels_B=labels_N, keys_B=keys_N)
        for found, wanted in pairwise(self.encodings):
            arrays = convert(arrays, found, wanted, labels_N=labels_N, keys_N=keys_N, num_classes=classes)
        return arrays
