"""Figures of students whose answers are vectors, against their teacher's on the held rows.

M students that step together, B rows of a batch, D numbers of a vector, P held rows that are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from student_train.feed.batches import Batch
from student_train.preparing.against import OfSeveral
from student_train.run_files.records import BesideTeacher, Measured, OfDataset
from student_train.stepping.parallel import Parallel
from student_train.stepping.stepper import Stepper
from student_train.students import Student

if TYPE_CHECKING:
    from storage.targets.vectors import VectorTargets
    from student_train.running.measuring.evaluate import Beside

PAIRED = 1024  # of the held rows the first, half a million pairs: memory and time grow with their square


class OfPairs(NamedTuple):
    """How the rows of a student lie to each other, beside how those of its teacher do.

    Attributes:
        spearman: rank correlation of the cosines of all pairs of two rows.
        retrieval: share of rows whose nearest other row is the same, by the cosine.
    """

    spearman: float
    retrieval: float


def of_pairs(student_PD: Tensor, teacher_PD: Tensor) -> OfPairs | None:
    """Return how alike two sets of vectors of the same rows lie, whatever their widths; None of fewer than three rows.

    Three rows, of which the student has the same two nearest to each other, at other angles:

    >>> teacher_PD = torch.tensor([[2.0, 1.0], [2.0, 1.5], [-1.0, 1.0]])
    >>> of_pairs(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), teacher_PD)
    OfPairs(spearman=1.0, retrieval=1.0)
    """
    if len(student_PD) < 3:  # one pair has no rank
        return None
    cosines = [(unit := functional.normalize(each.double(), dim=1)) @ unit.T for each in (student_PD, teacher_PD)]
    above = torch.triu_indices(len(student_PD), len(student_PD), offset=1)
    one, other = (each_PP[above[0], above[1]] for each_PP in cosines)
    nearest, nearest_too = (each_PP.fill_diagonal_(-torch.inf).argmax(dim=1) for each_PP in cosines)
    return OfPairs(spearman(one, other), float((nearest == nearest_too).double().mean()))


def spearman(one_N: Tensor, other_N: Tensor) -> float:
    """Return the correlation of the ranks of two series, equal values sharing their mean rank; 0 where one is constant.

    >>> spearman(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([10.0, 40.0, 90.0, 20.0]))
    0.4
    """
    ranks = [_ranks(each) for each in (one_N, other_N)]
    one, other = (each - each.mean() for each in ranks)
    scale = (one.square().sum() * other.square().sum()).sqrt()
    return round(float((one * other).sum() / scale), 9) if scale > 0 else 0.0


def _ranks(values_N: Tensor) -> Tensor:
    _, places_N, counts = values_N.unique(return_inverse=True, return_counts=True)
    mean_rank = counts.cumsum(0).double() - (counts - 1) / 2
    ranks_N: Tensor = mean_rank[places_N]
    return ranks_N


class _Beside(NamedTuple):
    """What a student's figures beside one teacher are made of.

    Attributes:
        sums_D2: of each dataset rows that are compared, and the sum of their cosines.
        paired_PD: the teacher's vectors, zeros where another process has the row.
    """

    sums_D2: Tensor
    paired_PD: Tensor


class VectorSums:
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
        student: Student,
        parts: Mapping[str, int],
        several_M: Sequence[Sequence[OfSeveral]] = (),
    ):
        device, width = student.device, student.blueprint.num_classes
        paired = min(PAIRED, sum(parts.values()))
        self._parts, self._several_M = parts, several_M or [()] * members
        # The student's vectors, likewise zeros where another process has the row.
        self._own_MPD = torch.zeros(members, paired, width, device=device)
        # Beside the teacher of `against`, by no name, and beside each of several by its own.
        self._beside = {
            (member, name): _Beside(
                torch.zeros(len(parts), 2, dtype=torch.float64, device=device),
                torch.zeros(paired, width, device=device),
            )
            for member in range(members)
            for name in (None, *(each.name for each in self._several_M[member]))
        }
        self._taught = [False] * members

    def take(self, stepper: Stepper, batch: Batch, beside: Beside) -> None:
        """Add a batch of all students; one without a teacher to compare with counts for nothing."""
        vectors_MBD = stepper.logits(batch.inputs).float()
        numbers = torch.arange(beside.rows.start, beside.rows.stop, beside.rows.step or 1)
        inside = (numbers < self._own_MPD.shape[1]).to(vectors_MBD.device)
        at = numbers.to(vectors_MBD.device)[inside]
        of_part_BD = (beside.of_B[:, None] == torch.arange(len(self._parts), device=beside.of_B.device)).double()
        for member, (own_BD, against) in enumerate(zip(vectors_MBD, beside.against_M, strict=True)):
            self._own_MPD[member, at] = own_BD[inside]
            self._taught[member] = self._taught[member] or against is not None
            several = [(each.name, each.against) for each in self._several_M[member]]
            for name, teacher in [(None, against), *several]:
                if teacher is None:
                    continue
                theirs_BD = cast("VectorTargets", batch.targets[teacher.teacher].decode()).vectors_BD
                found = self._beside[member, name]
                cosine_B = functional.cosine_similarity(own_BD, theirs_BD, dim=1).double()
                found.sums_D2.add_(torch.stack([of_part_BD.sum(0), (cosine_B[:, None] * of_part_BD).sum(0)], dim=1))
                found.paired_PD[at] = theirs_BD[inside]

    def figures(self, parallel: Parallel) -> list[Measured]:
        """Return each student's figures, over the rows of all processes; waits for the device."""
        parallel.sum(self._own_MPD)
        for found in self._beside.values():
            parallel.sum(found.sums_D2)
            parallel.sum(found.paired_PD)
        several = self._parts if len(self._parts) > 1 else {}
        return [
            Measured(
                **(self._figures(member, None) if taught else {}),
                by_teacher=self._by_teacher(member),
                by_dataset={
                    of: OfDataset(
                        rows=rows,
                        cosine=_mean_cosine(self._beside[member, None], part),
                        by_teacher=self._by_teacher(member, part),
                    )
                    for part, (of, rows) in enumerate(several.items())
                },
            )
            for member, taught in enumerate(self._taught)
        ]

    def _figures(self, member: int, name: str | None) -> dict[str, Any]:
        """Return the figures of a student beside a teacher, on all held rows."""
        found = self._beside[member, name]
        pairs = of_pairs(self._own_MPD[member].cpu(), found.paired_PD.cpu())
        alike = {} if pairs is None else {"spearman": pairs.spearman, "retrieval": pairs.retrieval}
        return {"cosine": _mean_cosine(found)} | alike

    def _by_teacher(self, member: int, part: int | None = None) -> dict[str, BesideTeacher]:
        """Return the figures beside each of a student's several teachers, on all held rows or those of one dataset."""
        found = {}
        for each in self._several_M[member]:
            own = self._beside[member, each.name]
            known: dict[str, Any] = {"cosine": _mean_cosine(own, part)}
            known = self._figures(member, each.name) if part is None else known
            found[each.name] = BesideTeacher(**known)
        return found


def _mean_cosine(found: _Beside, part: int | None = None) -> float | None:
    """Return the mean cosine over all rows, or those of one dataset; None of none."""
    count, total = (found.sums_D2.sum(0) if part is None else found.sums_D2[part]).tolist()
    return total / count if count else None
