"""Figures of students that tell numbers: how far they are from the true ones, and how far the teacher is.

M students that step together, B rows of a batch, T numbers of a row, D datasets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from student_train.feed.batches import Batch
from student_train.preparing.against import Against, OfSeveral
from student_train.run_files.records import BesideTeacher, Measured, OfDataset
from student_train.stepping.parallel import Parallel
from student_train.stepping.stepper import Stepper
from student_train.students import Student

if TYPE_CHECKING:
    from storage.targets.vectors import VectorTargets
    from student_train.running.measuring.evaluate import Beside


def rmse(squares_T: Tensor, rows: float, unit_T: Tensor) -> float | None:
    """Return the root of the mean squared error over rows and numbers, each in some unit; None of no row.

    >>> rmse(torch.tensor([8.0, 800.0]), 2.0, torch.tensor([1.0, 10.0]))
    2.0
    """
    return float((squares_T / rows / unit_T.square()).mean().sqrt()) if rows else None


def r_squared(squares_T: Tensor, spread_T: Tensor) -> float | None:
    """Return the mean over the numbers of 1 − errors / spread around their mean; None where one does not vary.

    >>> r_squared(torch.tensor([1.0]), torch.tensor([4.0]))
    0.75
    """
    return float((1 - squares_T / spread_T).mean()) if bool((spread_T > 0).all()) and len(spread_T) else None


class NumberSums:
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
        self._parts = parts
        # float64; the spread is taken around what the student is scaled by, or large numbers would leave no digits
        self._around_T = torch.tensor(
            student.blueprint.answer_mean or [0.0] * width, dtype=torch.float64, device=device
        )
        said, deviations = student.blueprint.source or {}, student.blueprint.answer_std
        self._names = [str(name) for name in said.get("target", ())] if width > 1 else []
        # meters beside euros: their mean would be that of the larger ones
        several = width > 1 and deviations is not None
        self._unit_T = torch.tensor(deviations if several else [1.0] * width, dtype=torch.float64)
        # of each dataset and number: rows, sum over the middle, its squares, errors squared, the teacher's, its rows
        self._sums_MD6T = torch.zeros(members, len(parts), 6, width, dtype=torch.float64, device=device)
        self._several_M = several_M or [()] * members
        # of each of several teachers: its errors squared, its rows
        self._taught_D2T = {
            (member, each.name): torch.zeros(len(parts), 2, width, dtype=torch.float64, device=device)
            for member, several in enumerate(self._several_M)
            for each in several
        }

    def take(self, stepper: Stepper, batch: Batch, beside: Beside) -> None:
        """Add a batch of all students; rows without a number count for nothing."""
        assert batch.labels_B is not None
        said_MBT = stepper.logits(batch.inputs).double()
        true_BT = batch.labels_B.to(said_MBT.device).double()
        known_B1 = true_BT.isfinite().all(dim=1, keepdim=True)
        over_BT = torch.where(known_B1, true_BT - self._around_T, 0.0)
        of_part_DB = (torch.arange(len(self._parts), device=beside.of_B.device)[:, None] == beside.of_B).double()
        for member, against in enumerate(beside.against_M):
            wrong_BT = torch.where(known_B1, said_MBT[member] - true_BT, 0.0)
            counted_BT = known_B1.double().expand_as(over_BT)

            def off(teacher: Against) -> Tensor:
                targets = cast("VectorTargets", batch.targets[teacher.teacher].decode())
                return torch.where(known_B1, targets.vectors_BD.double() - true_BT, 0.0).square()

            none_BT = torch.zeros_like(over_BT)
            taught = (none_BT, none_BT) if against is None else (off(against), counted_BT)
            each_6BT = torch.stack([counted_BT, over_BT, over_BT.square(), wrong_BT.square(), *taught])
            # a product, not an index_add: the same bits every time, on a GPU too
            of_part_DB = of_part_DB.to(each_6BT.device)
            self._sums_MD6T[member] += torch.einsum("db,kbt->dkt", of_part_DB, each_6BT)
            for each in self._several_M[member]:
                if each.against is not None:
                    own_2BT = torch.stack([off(each.against), counted_BT])
                    self._taught_D2T[member, each.name] += torch.einsum("db,kbt->dkt", of_part_DB, own_2BT)

    def figures(self, parallel: Parallel) -> list[Measured]:
        """Return each student's figures, over the rows of all processes; waits for the device."""
        parallel.sum(self._sums_MD6T)
        for taught_D2T in self._taught_D2T.values():
            parallel.sum(taught_D2T)
        found = []
        for member, sums_D6T in enumerate(self._sums_MD6T.cpu()):
            parts = zip(self._parts.items(), sums_D6T, strict=True) if len(self._parts) > 1 else ()
            of_parts = {
                of: OfDataset(rows=rows, **self._figures(own_6T), by_teacher=self._by_teacher(member, part))
                for part, ((of, rows), own_6T) in enumerate(parts)
            }
            by_teacher = self._by_teacher(member)
            found.append(Measured(**self._figures(sums_D6T.sum(0)), by_teacher=by_teacher, by_dataset=of_parts))
        return found

    def _by_teacher(self, member: int, part: int | None = None) -> dict[str, BesideTeacher]:
        """Return how far each of a student's several teachers is from the true numbers, on the rows of its own."""
        found = {}
        for each in self._several_M[member]:
            sums_D2T = self._taught_D2T[member, each.name].cpu()
            off_T, rows_T = sums_D2T.sum(0) if part is None else sums_D2T[part]
            found[each.name] = BesideTeacher(teacher_rmse=rmse(off_T, float(rows_T[0]), self._unit_T))
        return found

    def _figures(self, sums_6T: Tensor) -> dict[str, Any]:
        rows_T, over_T, squares_T, wrong_T, teacher_T, taught_T = sums_6T
        rows, taught = float(rows_T[0]), float(taught_T[0])
        each = (wrong_T / rows).sqrt().tolist() if rows else []
        return {
            "rmse": rmse(wrong_T, rows, self._unit_T),
            "r2": r_squared(wrong_T, squares_T - over_T.square() / max(rows, 1.0)) if rows else None,
            "teacher_rmse": rmse(teacher_T, taught, self._unit_T),
            "rmse_of": dict(zip(self._names, each, strict=False)),
        }
