"""Three rooms measure calibration; they must tell the same of the same rows, the edges of bins among them."""

from __future__ import annotations

import polars as pl
import pytest
import torch

from storage.targets.calibration import NUM_BINS, bin_of
from student_train.report.measures import calibration_of
from student_train.running.measuring.evaluate import Sums
from student_train.stepping.parallel import ALONE
from student_train.students import Blueprint, build_student
from teacher_cache.pilot.fidelity import Calibration

EDGES = torch.arange(8, NUM_BINS + 1).double() / NUM_BINS  # of two classes the surer one has at least a half
ROWS = torch.cat([EDGES, EDGES - 1e-3, torch.tensor([0.501, 0.77, 0.77, 0.999])])
LABELS = torch.arange(len(ROWS)) % 2


def logits_of(confidence_B: torch.Tensor) -> torch.Tensor:
    """Return logits of two classes whose softmax is (confidence, 1 - confidence)."""
    return torch.stack([confidence_B, 1 - confidence_B], dim=1).log().clamp(min=-1e4)


def by_hand() -> float:
    """Return the error as its definition says it, row by row."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for confidence, label in zip(ROWS.tolist(), LABELS.tolist(), strict=True):
        bins.setdefault(min(int(confidence * NUM_BINS), NUM_BINS - 1), []).append((confidence, label == 0))
    gaps = [abs(sum(c for c, _ in rows) - sum(right for _, right in rows)) for rows in bins.values()]
    return sum(gaps) / len(ROWS)


def test_an_edge_belongs_to_the_bin_above_it_and_one_to_the_last() -> None:
    edges = torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0])
    assert bin_of(edges).tolist() == bin_of(pl.Series(edges.tolist())).to_list() == [0, 3, 7, 12, 14]


def test_a_pilot_an_evaluation_and_a_report_give_one_error_of_the_same_rows() -> None:
    pilot = Calibration()
    pilot.add(logits_of(ROWS), LABELS)
    of_two = Blueprint(architecture="mlp", num_classes=2, input_shape=(1, 2, 2), mean=(0.5,), std=(0.5,))
    sums = Sums(1, build_student(of_two), {"toy": len(ROWS)})
    sums.add(logits_of(ROWS)[None], LABELS, torch.full((1, len(ROWS)), -1), torch.zeros(len(ROWS), dtype=torch.int64))
    table = pl.DataFrame({"top": [0] * len(ROWS), "top_probability": ROWS.tolist(), "label": LABELS.tolist()})
    report = calibration_of(table)
    assert report is not None
    found = (pilot.error, sums.figures(ALONE)[0].calibration_error, report.error)
    assert found == pytest.approx((by_hand(),) * 3)
