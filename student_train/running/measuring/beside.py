"""How far students of several teachers are from each of them.

M students that step together, B sites of a batch, D datasets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from student_train.feed.selection import NO_CLASS
from student_train.preparing.against import OfSeveral
from student_train.run_files.records import BesideTeacher
from student_train.stepping.parallel import Parallel

COUNTED = 4  # sites that the teacher answered, those of them that agree, sites with its KL, and its nats


class SeveralSums:
    """What the figures beside each of several teachers are made of, on the students' device.

    Args:
        several_M: the teachers of each of M students; empty of one that has one alone.
        parts: how many of the held rows are of each dataset.
        device: of the students.
    """

    def __init__(self, several_M: Sequence[Sequence[OfSeveral]], parts: Mapping[str, int], device: torch.device):
        self._several_M, self._datasets = several_M, len(parts)
        # float64: exact beyond 2**24 rows; in every process the same, in one order
        self._sums_D4 = {
            (member, each.name): torch.zeros(len(parts), COUNTED, dtype=torch.float64, device=device)
            for member, several in enumerate(several_M)
            for each in several
        }

    def of(self, member: int) -> Sequence[OfSeveral]:
        """Return the teachers of a student, if it has several."""
        return self._several_M[member] if self._several_M else ()

    def add(self, member: int, name: str, chosen_B: Tensor, tops_B: Tensor, of_B: Tensor, kl_B: Tensor | None) -> None:
        """Add some sites of a student beside a teacher.

        Args:
            member: which student.
            name: of the teacher.
            chosen_B, tops_B: its likeliest classes, and the teacher's or NO_CLASS.
            of_B: of which dataset each is, from 0.
            kl_B: of the student from the teacher, nats; None: nobody knows.
        """
        taught_B = tops_B != NO_CLASS
        none_B = torch.zeros_like(taught_B, dtype=torch.float64)
        divergence = (none_B, none_B) if kl_B is None else (none_B + 1, kl_B.double())
        counted_4B = torch.stack([taught_B.double(), ((chosen_B == tops_B) & taught_B).double(), *divergence])
        mine_DB = torch.arange(self._datasets, device=of_B.device)[:, None] == of_B
        # where, not a product: a loss that is not finite is of its own dataset alone
        self._sums_D4[member, name] += torch.where(mine_DB[:, None], counted_4B, 0.0).sum(dim=2)

    def total(self, parallel: Parallel) -> None:
        """Add up the sums of all processes."""
        for sums_D4 in self._sums_D4.values():
            parallel.sum(sums_D4)

    def figures(self, member: int, dataset: int | None = None) -> dict[str, BesideTeacher]:
        """Return the figures of a student beside each of its teachers; empty where it has one alone.

        Args:
            member: which student.
            dataset: on whose held rows, from 0; None: on all.
        """
        found = {}
        for each in self.of(member):
            sums_D4 = self._sums_D4[member, each.name]
            taught, agreeing, beside, nats = (sums_D4.sum(0) if dataset is None else sums_D4[dataset]).tolist()
            found[each.name] = BesideTeacher(
                agreement=agreeing / taught if taught else None,
                kl=nats / beside if beside else None,
                over=None if each.against is None else each.against.over,
            )
        return found
