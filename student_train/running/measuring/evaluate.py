"""Students' figures on the held rows, all in one pass.

M students that step together, B sites of a batch, C classes, N held rows, K bins, S sums,
D datasets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from storage.targets.calibration import NUM_BINS, bin_of, expected_error
from storage.targets.soft import OneTeacher
from storage.tasks.base import perplexity_of
from student_train.feed.batches import Batch
from student_train.feed.feed import Feed
from student_train.feed.selection import NO_CLASS
from student_train.losses.on_targets.soft import kl_rows
from student_train.preparing.against import Against, OfSeveral
from student_train.run_files.records import Measured, OfDataset
from student_train.running.measuring.beside import SeveralSums
from student_train.running.measuring.numbers import NumberSums
from student_train.running.measuring.vectors import VectorSums
from student_train.stepping.parallel import ALONE, Parallel
from student_train.stepping.stepper import Stepper
from student_train.students import Blueprint, Student
from student_train.students.parts import logits_in_parts
from student_train.tasks import Figures, task_of


def evaluate(
    steppers: Sequence[Stepper],
    feed: Feed,
    tops: Sequence[Sequence[Tensor | None]],
    against: Sequence[Sequence[Against | None]],
    several: Sequence[Sequence[Sequence[OfSeveral]]],
    *,
    batch_size: int,
    stop: Callable[[], bool],
    parallel: Parallel = ALONE,
) -> list[list[Measured]] | None:
    """Return the figures of all students, in float32, with no step of synchronisation before the last.

    Where a row has many sites they are over those that count, and the teacher is the one of `against`.

    Args:
        steppers: what the students are in.
        feed: held rows, with labels (NO_CLASS where there is none).
        tops: for each student of each of them, its teacher's top class of each held row (N,), or NO_CLASS.
        against: likewise, the teacher whose soft targets of each held site the feed has; None: nobody's.
        several: likewise, each of its teachers, of which it has several; empty: it has one.
        batch_size: rows at a time.
        stop: asked after each batch.
        parallel: this process among others, each of which measures its own rows.

    Returns:
        The figures of each student of each stepper, or None if `stop` said so.
    """
    parts = {part.dataset: len(part.rows) for part in feed.selection.parts}
    sums = [_sums(stepper, parts, several_M) for stepper, several_M in zip(steppers, several, strict=True)]
    of_N = _datasets(parts).to(steppers[0].states[0].student.device)
    start = 0
    try:
        for stepper in steppers:
            stepper.evaluating(True)
        with torch.no_grad():
            for batch in feed.in_order(batch_size):
                if stop():
                    return None
                stop_row = start + len(batch.inputs)
                # as `part` takes them: every size-th row, from rank on
                mine, rows = parallel.part(batch), slice(start + parallel.rank, stop_row, parallel.size)
                for stepper, own, tops_M, against_M in zip(steppers, sums, tops, against, strict=True):
                    if len(mine.inputs):
                        known = [None if t is None else t[rows] for t in tops_M]
                        own.take(stepper, mine, Beside(known, against_M, of_N[rows], rows))
                start = stop_row
    finally:
        for stepper in steppers:
            stepper.evaluating(False)
    return [own.figures(parallel) for own in sums]


def _sums(
    stepper: Stepper, parts: Mapping[str, int], several_M: Sequence[Sequence[OfSeveral]]
) -> SumsOfRows | SumsOfSites | VectorSums | NumberSums:
    """Return what the figures of a stepper's students are made of."""
    kind = MEASURES[task_of(stepper.states[0].blueprint).figures]
    return kind(len(stepper.states), stepper.states[0].student, parts, several_M)


class Beside(NamedTuple):
    """What the students of a stepper are measured against: top classes of the batch's rows, or a teacher.

    And of which dataset each row is, (B,), from 0; and which of the held rows they are.
    """

    tops_M: Sequence[Tensor | None]
    against_M: Sequence[Against | None]
    of_B: Tensor
    rows: slice


def _datasets(parts: Mapping[str, int]) -> Tensor:
    """Return of which dataset each of the N rows is, given how many are of each.

    >>> _datasets({"law": 2, "code": 3}).tolist()
    [0, 0, 1, 1, 1]
    """
    return torch.arange(len(parts)).repeat_interleave(torch.tensor(list(parts.values())))


def sites_of(student: Student, batch: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor, slice]]:
    """Yield logits, labels and rows of a part of the sites at a time, and which of those with a label they are."""
    sites_N = batch.sites()
    hidden_ND = student.hidden(batch.inputs).flatten(0, 1).index_select(0, sites_N)
    labels_BL = _labels(batch)
    labels_N, rows_N = labels_BL.flatten().index_select(0, sites_N), sites_N // labels_BL.shape[1]
    for at, logits_BC in logits_in_parts(student, hidden_ND):
        yield logits_BC.float(), labels_N[at], rows_N[at], at


class Measurable(Protocol):
    """What figures know of whoever answers: what it is, and where its logits are."""

    @property
    def blueprint(self) -> Blueprint:
        """Return what it is."""

    @property
    def device(self) -> torch.device:
        """Return where it is."""


class Sums:
    """What the figures of M students are made of, on their device.

    Args:
        members: M.
        student: one of them.
        parts: how many of the held rows are of each dataset.
        several_M: of each its teachers, where it has several.
    """

    def __init__(
        self,
        members: int,
        student: Measurable,
        parts: Mapping[str, int],
        several_M: Sequence[Sequence[OfSeveral]] = (),
    ):
        device = student.device
        self._several = SeveralSums(several_M, parts, device)
        # Labelled rows, correct ones, nats, rows with a teacher, rows that agree with it, rows with its KL, its nats.
        self._sums_MS = torch.zeros(members, 7, dtype=torch.float64, device=device)  # float64: exact beyond 2**24 rows
        # The same of each dataset; of a single one nobody asks.
        self._parts = parts if len(parts) > 1 else {}
        self._parts_MDS = torch.zeros(members, len(self._parts), 7, dtype=torch.float64, device=device)
        self._bins_M3K = torch.zeros(members, 3, NUM_BINS, dtype=torch.float64, device=device)  # rows, sure, right

        self._perplexity = task_of(student.blueprint).perplexity
        # Of each class: rows that are right, rows that are said to be of it, rows that are; none where nobody asks.
        classes = student.blueprint.num_classes if task_of(student.blueprint).macro_f1 else 0
        self._classes_M3C = torch.zeros(members, 3, classes, dtype=torch.float64, device=device)

    def add(
        self,
        logits_MBC: Tensor,
        labels_B: Tensor,
        tops_MB: Tensor,
        of_B: Tensor,
        members: slice = slice(None),
        kl_B: Tensor | None = None,
    ) -> Tensor:
        """Add logits of students, rows with NO_CLASS for nothing; return their likeliest classes, (M, B).

        Args:
            logits_MBC: float32.
            labels_B, tops_MB: int64, classes of the data and of the teachers.
            of_B: int64, of which dataset, from 0.
            members: which students; one where `kl_B` is given.
            kl_B: of the student from its teacher, nats; None: nobody knows.
        """
        labelled_B, taught_MB = labels_B != NO_CLASS, tops_MB != NO_CLASS
        log_q_MBC = logits_MBC.log_softmax(dim=2)
        # of class 0 where there is no label: left out below
        targets_MB1 = labels_B.clamp(min=0)[None, :, None].expand(len(logits_MBC), -1, 1)
        nats_MB = -log_q_MBC.gather(2, targets_MB1)[..., 0].masked_fill(~labelled_B, 0.0)
        confidence_MB, chosen_MB = log_q_MBC.exp().max(dim=2)
        correct_MB = (chosen_MB == labels_B) & labelled_B
        agreeing_MB = (chosen_MB == tops_MB) & taught_MB
        counted = (labelled_B.expand_as(correct_MB), correct_MB, nats_MB, taught_MB, agreeing_MB)
        self._sums_MS[members, :5] += torch.stack([each.sum(dim=1).double() for each in counted], dim=1)
        if kl_B is not None:
            self._sums_MS[members, 5] += len(kl_B)
            self._sums_MS[members, 6] += kl_B.double().sum()
        if self._parts:
            self._add_parts(counted, of_B, members, kl_B)
        bin_MB = bin_of(confidence_MB).long()
        # One-hot and a product, not an index_add: the same bits every time, on a GPU too.
        member_MBK = torch.nn.functional.one_hot(bin_MB, NUM_BINS).double() * labelled_B[:, None]
        rows_M3B = torch.stack([torch.ones_like(confidence_MB), confidence_MB, correct_MB.float()], dim=1).double()
        self._bins_M3K[members] += rows_M3B @ member_MBK
        if classes := self._classes_M3C.shape[2]:
            of_class_BC = torch.nn.functional.one_hot(labels_B.clamp(min=0), classes).double() * labelled_B[:, None]
            said_MBC = torch.nn.functional.one_hot(chosen_MB, classes).double() * labelled_B[:, None]
            there_MBC = of_class_BC.expand_as(said_MBC)
            self._classes_M3C[members] += torch.stack([said_MBC * there_MBC, said_MBC, there_MBC], 1).sum(2)
        return chosen_MB

    def _add_parts(self, counted: Sequence[Tensor], of_B: Tensor, members: slice, kl_B: Tensor | None) -> None:
        """Add a batch to the sums of each dataset: (M, B) of each that is counted."""
        mine_DB = torch.arange(len(self._parts), device=of_B.device)[:, None] == of_B
        beside = () if kl_B is None else (torch.ones_like(kl_B)[None], kl_B[None])
        for place, each_MB in enumerate((*counted, *beside)):
            # where, not a product: a loss that is not finite is of its own dataset alone
            own_MDB = torch.where(mine_DB, each_MB[:, None].double(), 0.0)
            self._parts_MDS[members, :, place] += own_MDB.sum(dim=2)

    def figures(self, parallel: Parallel) -> list[Measured]:
        """Return each student's figures, over the rows of all processes; waits for the device."""
        for summed in (self._sums_MS, self._parts_MDS, self._bins_M3K, self._classes_M3C):
            parallel.sum(summed)
        self._several.total(parallel)
        found = []
        for member, (sums_S, parts_DS, bins_3K, classes_3C) in enumerate(
            zip(
                self._sums_MS.tolist(),
                self._parts_MDS.tolist(),
                self._bins_M3K.cpu(),
                self._classes_M3C.cpu(),
                strict=True,
            )
        ):
            parts = enumerate(zip(self._parts.items(), parts_DS, strict=True))
            found.append(
                Measured(
                    **self._means(member, sums_S),
                    calibration_error=expected_error(*bins_3K) if sums_S[0] else None,
                    macro_f1=macro_f1(*classes_3C),
                    by_dataset={
                        of: OfDataset(rows=rows, **self._means(member, own_S, dataset))
                        for dataset, ((of, rows), own_S) in parts
                    },
                )
            )
        return found

    def _means(self, member: int, sums_S: Sequence[float], dataset: int | None = None) -> dict[str, Any]:
        """Return a student's figures that are means over some rows; None: there is no row to take it over."""
        labelled, correct, nats, taught, agreeing, beside, divergence = sums_S
        return {
            "accuracy": correct / labelled if labelled else None,
            "cross_entropy": nats / labelled if labelled else None,
            "agreement": agreeing / taught if taught else None,
            "perplexity": perplexity_of(nats / labelled) if self._perplexity and labelled else None,
            "kl": divergence / beside if beside else None,
            "by_teacher": self._several.figures(member, dataset),
        }


class SumsOfRows(Sums):
    """Of students that are asked once about each row."""

    def take(self, stepper: Stepper, batch: Batch, beside: Beside) -> None:
        """Add a batch of all students."""
        labels_B = _labels(batch)
        none_B = torch.full_like(labels_B, NO_CLASS)
        tops_MB = torch.stack([none_B if t is None else t for t in beside.tops_M])
        chosen_MB = self.add(stepper.logits(batch.inputs), labels_B, tops_MB, beside.of_B)
        for member, chosen_B in enumerate(chosen_MB):
            for each in self._several.of(member):
                if each.tops_N is not None:
                    tops_B = torch.from_numpy(each.tops_N[beside.rows]).to(chosen_B.device)
                    self._several.add(member, each.name, chosen_B, tops_B, beside.of_B, None)


class SumsOfSites(Sums):
    """Of students that are asked at many sites of a row, a part of them at a time."""

    def take(self, stepper: Stepper, batch: Batch, beside: Beside) -> None:
        """Add a batch of all students."""
        for place, (state, against) in enumerate(zip(stepper.states, beside.against_M, strict=True)):
            # by itself each: a part's logits are of one student
            for logits_BC, labels_B, rows_B, part in sites_of(state.exported, batch):
                one, of_B = slice(place, place + 1), beside.of_B[rows_B]
                tops_B, kl_B = _beside(against, batch, part, logits_BC)
                if tops_B is None:
                    tops_B = torch.full_like(labels_B, NO_CLASS)
                (chosen_B,) = self.add(logits_BC[None], labels_B, tops_B[None], of_B, one, kl_B)
                for each in self._several.of(place):
                    own_B, own_kl_B = (
                        (tops_B, kl_B) if each.against == against else _beside(each.against, batch, part, logits_BC)
                    )
                    if own_B is not None:
                        self._several.add(place, each.name, chosen_B, own_B, of_B, own_kl_B)


def _beside(
    against: Against | None, batch: Batch, part: slice, logits_BC: Tensor
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Return a teacher's likeliest classes of some sites, (B,), and the KL of a student from it, nats, (B,)."""
    if against is None:
        return None, None
    targets = cast("OneTeacher", batch.targets[against.teacher].part(part).decode())
    return targets.top()[1], kl_rows(*targets.pair(logits_BC, 1.0))


MEASURES: dict[Figures, type[SumsOfRows | SumsOfSites | VectorSums | NumberSums]] = {
    "rows": SumsOfRows,
    "sites": SumsOfSites,
    "vectors": VectorSums,
    "numbers": NumberSums,
}


def macro_f1(right_C: Tensor, said_C: Tensor, there_C: Tensor) -> float | None:
    """Return the mean F1 of the classes that any row has; None: there is none.

    Two classes of 4 and 1 rows, all said to be of the first: F1 is 2·4 / (5 + 4) and 0.

    >>> round(macro_f1(torch.tensor([4.0, 0.0]), torch.tensor([5.0, 0.0]), torch.tensor([4.0, 1.0])), 4)
    0.4444

    Args:
        right_C: rows of each class that are said to be of it.
        said_C: rows that are said to be of it.
        there_C: rows that are.
    """
    known = there_C > 0
    return float((2 * right_C / (said_C + there_C))[known].mean()) if known.any() else None


def _labels(batch: Batch) -> Tensor:
    assert batch.labels_B is not None
    return batch.labels_B
