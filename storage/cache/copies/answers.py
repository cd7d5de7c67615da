"""How far what two caches store of a teacher is apart, row by row.

Soft targets by KL, vectors by their angle, features by the length of the difference. Where one cache stores all
classes and the other a few and the rest, both are compared over those few and the rest as one; where neither stores
all, what is not stored shares its mass evenly.

Shapes: N sites of some rows, C classes, D numbers of a vector.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from storage.cache.catalogue import Catalogue
from storage.encodings import AnyEncoding, SparseEncoding, VectorEncoding
from storage.format.committing import read_stored
from storage.format.shards import Commit
from storage.format.specs import TeacherSpec
from storage.format.stages import Stage
from storage.inputs.ragged import Ragged
from storage.views import PLAIN

if TYPE_CHECKING:
    from torch import Tensor

    from storage.targets.soft import OneTeacher
    from storage.targets.vectors import VectorTargets

WORST = 5
SAME = 1e-6  # nats, or 1 - cosine: the last bits of float32
HELD_SHARDS = 4  # of each cache
BATCH_ELEMENTS = 2**24  # of decoded soft targets
FEATURE = "feature/"


class Worst(NamedTuple):
    """A row that is far apart."""

    off: float
    row_a: int
    row_b: int
    sample_id: str = ""


@dataclass
class Gap:
    """How far a teacher's answers are apart in two caches.

    Attributes:
        stage: dataset, teacher, view.
        feature: its name; None: soft targets or vectors.
        unit: "KL(A‖B)" in nats, "1 - cosine", or "‖A - B‖/‖A‖".
        rows: that were compared; of several sites, a row's mean.
        identical: rows of which the stored bytes are the same.
        only_a, only_b: matched rows that one has answers of alone.
        mean, largest: over these rows.
        worst: the farthest, farthest first.
    """

    stage: Stage
    feature: str | None
    unit: str
    rows: int
    identical: int
    only_a: int
    only_b: int
    mean: float
    largest: float
    worst: list[Worst]

    @property
    def differs(self) -> bool:
        """Whether rows differ by more than the last bits."""
        return bool(self.only_a or self.only_b) or (self.largest > SAME and self.identical < self.rows)


class _Shard(NamedTuple):
    commit: Commit
    arrays: dict[str, np.ndarray | Ragged]


class Answers(ABC):
    """What two caches store of one teacher and view; `compare` is told which rows are which.

    Attributes:
        feature: which; None: soft targets or vectors.
        unit: in which distances are.
    """

    feature: str | None = None
    unit: str

    def __init__(self, a: Catalogue, b: Catalogue, stage: Stage, specs: tuple[TeacherSpec, TeacherSpec]):
        self._catalogues, self._stage, self._specs = (a, b), stage, specs
        self._starts = tuple(each.shards(stage[0]).starts for each in (a, b))
        self._committed = tuple(np.array(sorted(each.commits[stage])) for each in (a, b))
        self._held: tuple[OrderedDict[int, _Shard], ...] = (OrderedDict(), OrderedDict())
        self._rows = self._identical = self._only_a = self._only_b = 0
        self._sum, self._largest = 0.0, 0.0
        self._worst: list[Worst] = []

    @abstractmethod
    def named(self, commit: Commit) -> list[str]:
        """Return the arrays of a shard that are compared."""

    @abstractmethod
    def same_way(self) -> bool:
        """Return whether both caches store them alike, so that the same bytes say the same."""

    @abstractmethod
    def elements(self, array_S: np.ndarray | Ragged) -> int:
        """Return how many decoded numbers a row has, of one of its arrays."""

    @abstractmethod
    def apart(self, a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
        """Return how far the sites of some rows are apart, (N,), of what is stored of them."""

    def compare(self, rows_a: np.ndarray, rows_b: np.ndarray) -> None:
        """Compare some rows of the first cache, ascending, with the rows of the second that are the same samples."""
        shards = [
            np.searchsorted(starts, rows, side="right") - 1
            for starts, rows in zip(self._starts, (rows_a, rows_b), strict=True)
        ]
        there = [np.isin(numbers, committed) for numbers, committed in zip(shards, self._committed, strict=True)]
        self._only_a += int((there[0] & ~there[1]).sum())
        self._only_b += int((there[1] & ~there[0]).sum())
        both = there[0] & there[1]
        order = np.lexsort((rows_a[both], shards[1][both], shards[0][both]))
        rows, of = [each[both][order] for each in (rows_a, rows_b)], [each[both][order] for each in shards]
        changes = np.flatnonzero(np.diff(of[0]) | np.diff(of[1])) + 1
        for part in np.split(np.arange(len(order)), changes):
            if len(part):
                self._compare_shards(int(of[0][part[0]]), int(of[1][part[0]]), rows[0][part], rows[1][part])

    def gap(self) -> Gap:
        """Return what was found."""
        mean = self._sum / self._rows if self._rows else 0.0
        counts = (self._rows, self._identical, self._only_a, self._only_b)
        worst = [self._named(each) for each in sorted(self._worst, reverse=True)]
        return Gap(self._stage, self.feature, self.unit, *counts, mean, self._largest, worst)

    def _named(self, worst: Worst) -> Worst:
        shard = int(np.searchsorted(self._starts[0], worst.row_a, side="right")) - 1
        ((ingest,),) = self._catalogues[0].iter_commits((self._stage[0], None, PLAIN), ("sample_id",), [shard])
        return worst._replace(sample_id=ingest.table["sample_id"][worst.row_a - ingest.start].as_py())

    def _compare_shards(self, a: int, b: int, rows_a: np.ndarray, rows_b: np.ndarray) -> None:
        one, other = self._shard(0, a), self._shard(1, b)
        self._rows += len(rows_a)
        places = (rows_a - one.commit.start, rows_b - other.commit.start)
        same_S = self._same(one, other, places)
        self._identical += int(same_S.sum())
        left = np.flatnonzero(~same_S)
        elements = self.elements(next(iter(one.arrays.values())))
        for some in np.array_split(left, max(1, -(-len(left) * elements // BATCH_ELEMENTS))):
            if len(some):
                off_S = self._off(one, other, places[0][some], places[1][some])
                self._sum += float(off_S.sum())
                self._largest = max(self._largest, float(off_S.max()))
                for place in np.argsort(-off_S)[:WORST]:
                    worst = Worst(float(off_S[place]), int(rows_a[some[place]]), int(rows_b[some[place]]))
                    (heapq.heappush if len(self._worst) < WORST else heapq.heappushpop)(self._worst, worst)

    def _shard(self, side: int, shard: int) -> _Shard:
        """Return what is compared of a shard as it is stored; the last few are held."""
        held = self._held[side]
        if shard not in held:
            catalogue = self._catalogues[side]
            ((commit,),) = catalogue.iter_commits(self._stage, ("row",), [shard])
            while len(held) >= HELD_SHARDS:
                held.popitem(last=False)
            held[shard] = _Shard(commit, read_stored(catalogue.objects, commit, self.named(commit), writeable=False))
        held.move_to_end(shard)
        return held[shard]

    def _same(self, one: _Shard, other: _Shard, places: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Return of which rows all stored bytes are the same, (S,)."""
        same_S = np.full(len(places[0]), self.same_way())
        if not same_S.any() or one.arrays.keys() != other.arrays.keys():
            return np.zeros_like(same_S)
        for name, array_S in one.arrays.items():
            same_S &= _equal(array_S, other.arrays[name], *places)
        return same_S

    def _off(self, one: _Shard, other: _Shard, at_a: np.ndarray, at_b: np.ndarray) -> np.ndarray:
        """Return how far some rows are apart, (S,): the mean over each row's sites."""
        (arrays_a, sites_S), (arrays_b, others_S) = _sites(one.arrays, at_a), _sites(other.arrays, at_b)
        if not np.array_equal(sites_S, others_S):  # of other positions: nothing tells which are the same
            return np.full(len(at_a), np.inf)
        off_N = self.apart(arrays_a, arrays_b).numpy()
        ends, sums = np.cumsum(sites_S), np.concatenate([[0.0], np.cumsum(off_N)])
        return np.asarray((sums[ends] - sums[ends - sites_S]) / np.maximum(sites_S, 1))


class SoftAnswers(Answers):
    """Soft targets, or vectors."""

    @property
    def unit(self) -> str:  # type: ignore[override]
        return "1 - cosine" if isinstance(self._specs[0].encoding, VectorEncoding) else "KL(A‖B)"

    def named(self, commit: Commit) -> list[str]:
        return [name for name in commit.array_names if not name.startswith(FEATURE)]

    def same_way(self) -> bool:
        return bool(self._specs[0].encoding == self._specs[1].encoding)

    def elements(self, array_S: np.ndarray | Ragged) -> int:
        return _num_sites(array_S) * max(1, self._specs[0].num_classes)

    def apart(self, a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
        apart: Callable[[Any, Any], Tensor] = _angle if isinstance(self._specs[0].encoding, VectorEncoding) else kl
        return apart(
            *(spec.encoding.decode(arrays, spec.num_classes) for spec, arrays in zip(self._specs, (a, b), strict=True))
        )


class FeatureAnswers(Answers):
    """A feature that both store."""

    unit = "‖A - B‖/‖A‖"

    def __init__(self, a: Catalogue, b: Catalogue, stage: Stage, specs: tuple[TeacherSpec, TeacherSpec], feature: str):
        super().__init__(a, b, stage, specs)
        self.feature = feature
        self._encodings = tuple(spec.features[feature] for spec in specs)

    def named(self, commit: Commit) -> list[str]:
        return [f"{FEATURE}{self.feature}"]

    def same_way(self) -> bool:
        return bool(self._encodings[0] == self._encodings[1])

    def elements(self, array_S: np.ndarray | Ragged) -> int:
        stored = array_S.flat_T if isinstance(array_S, Ragged) else array_S
        return max(1, -(-stored.size // max(1, len(array_S))))

    def apart(self, a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
        import torch

        (stored_a,), (stored_b,) = a.values(), b.values()
        if stored_a.shape != stored_b.shape:  # of another layer
            return torch.full((len(stored_a),), torch.inf, dtype=torch.float64)
        one_ND, other_ND = (
            encoding.decode(stored).flatten(1).double()
            for encoding, stored in zip(self._encodings, (stored_a, stored_b), strict=True)
        )
        off_N, length_N = (one_ND - other_ND).norm(dim=1), one_ND.norm(dim=1)
        return torch.where(off_N > 0, off_N / length_N, 0.0)


def open_features(a: Catalogue, b: Catalogue, stage: Stage) -> list[FeatureAnswers]:
    """Return what compares each feature of a teacher that both caches store; that one has alone, its promise tells."""
    dataset, teacher, _ = stage
    assert teacher is not None
    specs = a.teacher(dataset, teacher), b.teacher(dataset, teacher)
    both = sorted(specs[0].features.keys() & specs[1].features.keys())
    return [FeatureAnswers(a, b, stage, specs, name) for name in both]


def open_answers(a: Catalogue, b: Catalogue, stage: Stage, notes: list[str]) -> Answers | None:
    """Return what compares a teacher's answers in two caches; note why, where nothing can."""
    dataset, teacher, _ = stage
    assert teacher is not None
    specs = a.teacher(dataset, teacher), b.teacher(dataset, teacher)
    one, other = (spec.encoding for spec in specs)
    where, classes = "/".join(map(str, stage)), [each.dataset(dataset).classes for each in (a, b)]
    if not one.soft and not other.soft and one == other:
        return None  # features alone
    if specs[0].num_classes != specs[1].num_classes or classes[0] != classes[1]:
        notes.append(f"{where}: its answers are of other classes, and were not compared")
    elif one.kind != other.kind and not (one.classes and other.classes and one.soft and other.soft):
        notes.append(f"{where}: {one.kind} and {other.kind} cannot be compared")
    elif one != other and (_draws_alone(one) or _draws_alone(other)):
        notes.append(f"{where}: draws alone tell no distribution, and were not compared")
    else:
        return SoftAnswers(a, b, stage, specs)
    return None


def kl(a: OneTeacher, b: OneTeacher) -> Tensor:
    """Return the KL divergence of what one cache stores from what another does, nats, (N,), at temperature 1."""
    import torch

    from storage.targets.soft import DenseTargets

    if isinstance(b, DenseTargets):
        log_p, log_q = a.pair(b.logits_BC, 1.0)
    elif isinstance(a, DenseTargets):
        log_q, log_p = b.pair(a.logits_BC, 1.0)
    else:
        log_p, log_q = a.log_p(1.0), b.log_p(1.0)
    p = log_p.double().exp()
    return torch.where(p > 0, p * (log_p.double() - log_q.double()), 0.0).sum(dim=1).clamp(min=0.0)


def _angle(a: VectorTargets, b: VectorTargets) -> Tensor:
    import torch

    return 1 - torch.cosine_similarity(a.vectors_BD.double(), b.vectors_BD.double(), dim=1)


def _equal(a_S: np.ndarray | Ragged, b_S: np.ndarray | Ragged, at_a: np.ndarray, at_b: np.ndarray) -> np.ndarray:
    """Return of which rows two arrays have the same bytes, (len(at_a),)."""
    if isinstance(a_S, Ragged) and isinstance(b_S, Ragged):
        pairs = zip(a_S.take(at_a), b_S.take(at_b), strict=True)
        return np.array([np.array_equal(mine, theirs) for mine, theirs in pairs], bool)
    if isinstance(a_S, Ragged) or isinstance(b_S, Ragged) or (a_S.shape[1:], a_S.dtype) != (b_S.shape[1:], b_S.dtype):
        return np.zeros(len(at_a), bool)
    mine, theirs = (each[at].reshape(len(at), -1).view(np.uint8) for each, at in ((a_S, at_a), (b_S, at_b)))
    return np.asarray((mine == theirs).all(axis=1))


def _num_sites(array_S: np.ndarray | Ragged) -> int:
    """Return how many sites a row has; of rows of their own length, how many on average."""
    if isinstance(array_S, Ragged):
        return max(1, -(-len(array_S.flat_T) // max(1, len(array_S))))
    return max(1, int(np.prod(array_S.shape[1:-1])))


def _draws_alone(encoding: AnyEncoding) -> bool:
    return isinstance(encoding, SparseEncoding) and not encoding.k


def _sites(arrays: dict[str, np.ndarray | Ragged], rows: np.ndarray) -> tuple[dict[str, Tensor], np.ndarray]:
    """Return the sites of some rows one after another, (N, …) each, and how many each row has."""
    import torch

    found: dict[str, Tensor] = {}
    counts = np.ones(len(rows), np.int64)
    for name, array_S in arrays.items():
        if isinstance(array_S, Ragged):
            taken = array_S.take(rows)
            flat, counts = taken.flat_T, taken.lengths
        else:
            flat = array_S[rows]
            if flat.ndim > 2:  # (rows, positions, …)
                counts = np.full(len(rows), int(np.prod(flat.shape[1:-1])), np.int64)
                flat = flat.reshape(-1, flat.shape[-1])
        found[name] = torch.from_numpy(np.ascontiguousarray(flat))
    return found, counts
