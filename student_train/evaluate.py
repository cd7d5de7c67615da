"""A student's figures on the held rows. B rows or positions of tokens, C classes, N held rows, K bins."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from student_train.feed import Feed
from student_train.needs import Batch
from student_train.positions import part_size
from student_train.results import Held
from student_train.selection import NO_CLASS
from student_train.students import Student

NUM_BINS = 15


def evaluate(
    student: Student, feed: Feed, tops_N: Tensor | None, *, batch_size: int, stop: Callable[[], bool]
) -> Held | None:
    """Return the figures of a student, in float32, with no step of synchronisation before the last.

    Of tokens they are over the positions that count, and nobody's top class is known to agree with.

    Args:
        student: in evaluation mode.
        feed: held rows, with labels (NO_CLASS where there is none).
        tops_N: the teacher's top class for each of them, or NO_CLASS.
        batch_size: rows at a time.
        stop: asked after each batch.

    Returns:
        The figures, or None if `stop` said so.

    Source: calibration error by Guo et al. 2017, eq. 3, 15 bins of equal width, arXiv 1706.04599.
    """
    device = student.device
    sums = torch.zeros(5, dtype=torch.float64, device=device)  # labelled, correct, nats, with a teacher, agreeing
    bins_3K = torch.zeros(3, NUM_BINS, dtype=torch.float64, device=device)  # rows, confidence, correct
    start = 0
    with torch.inference_mode():
        for batch in feed.in_order(batch_size):
            if stop():
                return None
            stop_row = start + len(batch.inputs)
            tops_B = None if tops_N is None else tops_N[start:stop_row]
            for figures in _positions(student, batch) if student.of_tokens else [_rows(student, batch, tops_B)]:
                sums += figures[0]
                bins_3K += figures[1]
            start = stop_row
    labelled, correct, nats, taught, agreeing = sums.tolist()
    rows_K, confidence_K, correct_K = bins_3K.cpu()
    return Held(
        accuracy=correct / labelled if labelled else None,
        cross_entropy=nats / labelled if labelled else None,
        calibration_error=float((confidence_K - correct_K).abs().sum() / rows_K.sum()) if labelled else None,
        agreement=agreeing / taught if taught else None,
    )


def _rows(student: Student, batch: Batch, tops_B: Tensor | None) -> tuple[Tensor, Tensor]:
    labels_B = _labels(batch)
    return _figures(
        student(batch.inputs).float(), labels_B, torch.full_like(labels_B, NO_CLASS) if tops_B is None else tops_B
    )


def _positions(student: Student, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the figures of a part of the positions at a time."""
    positions_N = batch.positions()
    hidden_ND = student.hidden(batch.inputs).flatten(0, 1).index_select(0, positions_N)
    labels_N = _labels(batch).flatten().index_select(0, positions_N)
    size = part_size(student.scores(hidden_ND[:1]).shape[-1], positions_N.device)
    for hidden_BD, labels_B in zip(hidden_ND.split(size), labels_N.split(size), strict=True):
        if len(labels_B):
            yield _figures(student.scores(hidden_BD).float(), labels_B, torch.full_like(labels_B, NO_CLASS))


def _figures(logits_BC: Tensor, labels_B: Tensor, tops_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums and bins of a batch; rows with NO_CLASS count for nothing."""
    labelled_B, taught_B = labels_B != NO_CLASS, tops_B != NO_CLASS
    nats = functional.cross_entropy(logits_BC, labels_B, ignore_index=NO_CLASS, reduction="sum")
    confidence_B, chosen_B = logits_BC.softmax(dim=1).max(dim=1)
    correct_B = (chosen_B == labels_B) & labelled_B
    agreeing_B = (chosen_B == tops_B) & taught_B
    sums = torch.stack([labelled_B.sum(), correct_B.sum(), nats, taught_B.sum(), agreeing_B.sum()])
    bin_B = (confidence_B * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    # One-hot and a product, not an index_add: the same bits every time, on a GPU too.
    member_BK = functional.one_hot(bin_B, NUM_BINS).double() * labelled_B[:, None]
    rows_3B = torch.stack([torch.ones_like(confidence_B), confidence_B, correct_B.float()]).double()
    return sums.double(), rows_3B @ member_BK


def _labels(batch: Batch) -> Tensor:
    assert batch.labels_B is not None
    return batch.labels_B
