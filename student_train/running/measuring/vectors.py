"""Figures of students whose answers are vectors, against their teacher's on the held rows.

M students that step together, B rows of a batch, D numbers of a vector, P held rows that are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from student_train.feed.batches import Batch
from student_train.run_files.records import Measured, OfDataset
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


class VectorSums:
    """What the figures of M students are made of, on their device.

    Args:
        members: M.
        student: one of them.
        parts: how many of the held rows are of each dataset.
    """

    def __init__(self, members: int, student: Student, parts: Mapping[str, int]):
        device, width = student.device, student.blueprint.num_classes
        paired = min(PAIRED, sum(parts.values()))
        # Of each dataset rows that are compared, and the sum of their cosines.
        self._parts, self._sums_MD2 = parts, torch.zeros(members, len(parts), 2, dtype=torch.float64, device=device)
        # The student's vectors and the teacher's, zeros where another process has the row.
        self._paired_M2PD = torch.zeros(members, 2, paired, width, device=device)
        self._taught = [False] * members

    def take(self, stepper: Stepper, batch: Batch, beside: Beside) -> None:
        """Add a batch of all students; one without a teacher to compare with counts for nothing."""
        vectors_MBD = stepper.logits(batch.inputs).float()
        numbers = torch.arange(beside.rows.start, beside.rows.stop, beside.rows.step)
        inside = numbers < self._paired_M2PD.shape[2]
        at = numbers[inside].to(vectors_MBD.device)
        of_part_BD = beside.of_B[:, None] == torch.arange(len(self._parts), device=beside.of_B.device)
        for member, against in enumerate(beside.against_M):
            if against is None:
                continue
            self._taught[member] = True
            targets = cast("VectorTargets", batch.targets[against.teacher].decode())
            pair = (vectors_MBD[member], targets.vectors_BD)
            cosine_B = functional.cosine_similarity(*pair, dim=1).double()
            counted_BD = of_part_BD.double()
            self._sums_MD2[member] += torch.stack([counted_BD.sum(0), (cosine_B[:, None] * counted_BD).sum(0)], dim=1)
            for side, each_BD in enumerate(pair):
                self._paired_M2PD[member, side, at] = each_BD[inside.to(each_BD.device)]

    def figures(self, parallel: Parallel) -> list[Measured]:
        """Return each student's figures, over the rows of all processes; waits for the device."""
        for summed in (self._sums_MD2, self._paired_M2PD):
            parallel.sum(summed)
        found = []
        for taught, sums_D2, sides_2PD in zip(self._taught, self._sums_MD2.tolist(), self._paired_M2PD, strict=True):
            pairs = of_pairs(*sides_2PD.cpu()) if taught else None
            rows, total = (sum(each) for each in zip(*sums_D2, strict=True))
            several = zip(self._parts, sums_D2, strict=True) if len(self._parts) > 1 else ()
            found.append(
                Measured(
                    cosine=total / rows if rows else None,
                    spearman=None if pairs is None else pairs.spearman,
                    retrieval=None if pairs is None else pairs.retrieval,
                    by_dataset={
                        of: OfDataset(rows=self._parts[of], cosine=own / count if count else None)
                        for of, (count, own) in several
                    },
                )
            )
        return found
