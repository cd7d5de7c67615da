"""What a teacher's answers must be: logits of the dataset's classes, no probabilities, finite, within what is stored.

Shapes: B rows, S of a shard, `sites` the axes of a row's sites (storage.tasks), P sites that are answered, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from storage.encodings.base import STATISTICS
from storage.encodings.vectors import VECTORS
from storage.errors import BadTeacher, RowsMissing
from storage.format.specs import DatasetSpec, TeacherSpec
from storage.tasks import task_of
from teacher_cache.teachers.classes import listed
from teacher_cache.teachers.probabilities import OFF_ONE
from teacher_cache.work.pieces import AskWork

if TYPE_CHECKING:
    from torch import Tensor

SHOWN_ROWS = 10  # of refused rows, in a message


def check_classes(logits: Tensor, labels: Tensor, spec: TeacherSpec, dataset: DatasetSpec) -> None:
    """Raise BadTeacher unless logits are as many as classes, or at least as many where the rest pads a vocabulary."""
    task = task_of(dataset)
    found, padded = logits.shape[-1], task.padded_classes
    if not spec.encoding.classes and found != spec.num_classes:
        raise BadTeacher(
            f"teacher {spec.name} gives vectors of another width than the cache was promised",
            found=f"{found} numbers",
            expected=f"{spec.num_classes}",
            do=f"dimension = {found} in [[teacher]] {spec.name}",
        )
    if found < spec.num_classes or (found > spec.num_classes and not padded):
        names = f": {listed(dataset.classes)}" if dataset.classes else ""
        raise BadTeacher(
            f"teacher {spec.name} does not fit dataset {dataset.name}",
            found=f"{found} logits per {task.site_name}",
            expected=f"{'at least ' * padded}{spec.num_classes} classes{names}",
            do="give the dataset's `classes` as the teacher was trained on them, or keep the teacher off it with "
            "`datasets = [...]`"
            if dataset.classes
            else None,
        )
    if labels.shape != logits.shape[:-1] or (labels.numel() and int(labels.max()) >= spec.num_classes):
        raise BadTeacher(
            f"teacher {spec.name} does not fit the labels of dataset {dataset.name}",
            found=f"logits of shape {tuple(logits.shape)}, labels of shape {tuple(labels.shape)}, "
            f"the largest {int(labels.max()) if labels.numel() else 'none'}",
            expected=f"logits for each label, and labels below {spec.num_classes}",
        )


def refuse_probabilities(logits_BC: Tensor, spec: TeacherSpec) -> None:
    """Raise BadTeacher if what should be logits are probabilities already."""
    import torch

    # Of several classes, no whole batch of logits is non-negative and sums to 1 by chance; of one, 1.0 is a fair logit.
    # About 1: sums of half precision, or of a graph in int8, are off by more than rounding of float32.
    if spec.num_classes == 1 or (logits_BC[:1] < 0).any():  # nearly always, and of a vocabulary all rows take long
        return
    sums_B = logits_BC.float().sum(dim=1)
    if (logits_BC >= 0).all() and torch.allclose(sums_B, torch.ones_like(sums_B), atol=OFF_ONE):
        raise BadTeacher(
            f"teacher {spec.name} returns probabilities",
            found="every row is non-negative and sums to 1",
            expected="logits: scores before softmax",
            do='output = "probabilities" in its [[teacher]] takes their logarithms; or remove the softmax at its end',
        )


def logits_right(logits_NV: Tensor, num_classes: int) -> Tensor:
    """Return which rows of logits are answers, (N,) bool, by a look of their own: as `encodings.base.Told.right`."""
    classes_N, all_N = logits_NV[:, :num_classes].amax(1), logits_NV.amax(1)
    return classes_N.isfinite() & all_N.isfinite()


def finite_rows(values_B: Tensor, *, bf16: bool = False, but_never: bool = False) -> Tensor:
    """Return which rows hold neither NaN nor infinity, (B,) bool.

    Args:
        values_B: (B, …).
        bf16: whether they are bfloat16, stored as its bits, for Zarr has none.
        but_never: whether −∞ is a class that can never be, and no fault.
    """
    import torch

    if bf16:
        values_B = values_B.view(torch.bfloat16)
    if not values_B.dtype.is_floating_point or not values_B.numel():
        return torch.ones(len(values_B), dtype=torch.bool, device=values_B.device)
    lowest_B, highest_B = values_B.reshape(len(values_B), -1).aminmax(dim=1)  # either is NaN where any is
    right_B = highest_B < torch.inf
    return right_B if but_never else right_B & (lowest_B > -torch.inf)


def refuse_shard(finite: dict[str, Tensor], in_range: dict[str, Tensor], work: AskWork, answered_S: np.ndarray) -> None:
    """Refuse the whole shard if any value is NaN, infinite, or too large for its stored form.

    Args:
        finite: name → (P,) bool, of the teacher's own values.
        in_range: likewise, of the stored form.
        work: which shard.
        answered_S: which sites of the shard these are, bool (S, *sites).

    Raises:
        RowsMissing: it is; the message names the rows, and of rows with many sites the positions.
    """
    wider = {
        STATISTICS: "encoding.statistics = false; or divide the logits: no float16 holds how much they deviate",
        VECTORS: 'store dtype = "fp32"',  # they have no bf16
    }
    for fault, masks, do in (
        (
            "gave NaN, +inf or nothing but -inf as",
            finite,
            "run it in fp32 or bf16 if it overflows in fp16, or look at those rows; "
            "-inf is for a class that can never be, where another can",
        ),
        ("overflows the stored precision of", in_range, 'store dtype = "bf16" or "fp32"'),
    ):
        for name, mask_P in masks.items():
            if not mask_P.all():
                bad = np.argwhere(answered_S)[~mask_P.cpu().numpy()]
                _, first_R, sites_R = np.unique(bad[:, 0], return_index=True, return_counts=True)
                listed = zip(bad[first_R[:SHOWN_ROWS]].tolist(), sites_R.tolist(), strict=False)
                shown = ", ".join(_place(work.rows[0] + row, at, sites) for (row, *at), sites in listed)
                rows, answered = len(first_R), int(answered_S.reshape(len(answered_S), -1).any(1).sum())
                raise RowsMissing(
                    f"{work.key} is refused: teacher {work.key.teacher} {fault} {name}",
                    found=f"{rows} of {answered} rows: {shown}" + " …" * (rows > SHOWN_ROWS),
                    expected="finite values, or -inf for a class that can never be",
                    do=wider.get(name, do) if masks is in_range else do,
                )


def _place(row: int, at: list[int], sites: int) -> str:
    """Return where the first of some sites of a row is, and how many there are.

    >>> _place(17, [], 1), _place(17, [3], 1), _place(17, [3], 9)
    ('17', '17 at position 3', '17 at position 3 and 8 more')
    """
    more = f" and {sites - 1} more" if sites > 1 else ""
    return f"{row} at position {', '.join(map(str, at))}{more}" if at else str(row)
