from __future__ import annotations

from math import log
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from student_train.comparing.figures import interval
from student_train.report.measures import (
    OUTCOMES,
    accuracy_by_class,
    accuracy_of,
    agreement_by_confidence,
    calibration_of,
    confusions,
    costliest_tokens,
    cross_entropy_of,
    failures,
    loss_by_place,
    outcomes_of,
    pareto_front,
)

LABEL = [0, 0, 1, 1, 2, None]
TEACHER = [0, 0, 1, 0, 1, 2]
STUDENT = [0, 1, 1, 1, 1, 2]


def table(**columns: Any) -> pl.DataFrame:
    default = {
        "position": list(range(6)),
        "label": LABEL,
        "teacher_top": TEACHER,
        "teacher_top_probability": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
        "teacher_label_log_probability": [log(0.9), log(0.8), log(0.7), log(0.1), log(0.2), None],
        "top": STUDENT,
        "top_probability": [0.95, 0.75, 0.85, 0.65, 0.55, 0.45],
        "label_log_probability": [log(0.5), log(0.25), log(0.5), log(0.5), log(0.25), None],
    }
    return pl.DataFrame(default | columns)


def test_accuracy_is_over_rows_with_labels() -> None:
    assert (accuracy_of(table()), accuracy_of(table(), "teacher_")) == (3 / 5, 3 / 5)


def test_without_labels_there_is_no_accuracy() -> None:
    unlabelled = table(label=pl.Series([None] * 6, dtype=pl.Int64))
    assert accuracy_of(unlabelled) is None
    assert calibration_of(unlabelled) is None
    assert outcomes_of(unlabelled) is None


def test_without_a_teacher_there_is_no_comparison() -> None:
    alone = table(teacher_top=pl.Series([None] * 6, dtype=pl.Int64))
    assert outcomes_of(alone) is None
    assert len(failures(alone)) == len(agreement_by_confidence(alone)) == 0
    assert accuracy_by_class(alone)["teacher_accuracy"].null_count() == 3


def test_cross_entropy_is_the_mean_over_labelled_rows() -> None:
    assert cross_entropy_of(table()) == pytest.approx((3 * log(2) + 2 * log(4)) / 5)


def test_outcomes_are_told_apart() -> None:
    found = outcomes_of(table())
    assert found is not None
    assert found == pytest.approx(dict(zip(OUTCOMES, (2 / 5, 1 / 5, 1 / 5, 1 / 5, 0.0), strict=True)))


def test_calibration_is_the_distance_of_confidence_and_accuracy() -> None:
    # Three bins: four rows of confidence 0.7 of which two are right, one of 0.5 that is wrong, one of 1 that is right.
    rows = table(label=[0] * 6, top=[0, 0, 1, 1, 1, 0], top_probability=[0.7, 0.7, 0.7, 0.7, 0.5, 1.0])
    found = calibration_of(rows)
    assert found is not None
    assert found.error == pytest.approx((4 * 0.2 + 0.5 + 0) / 6)
    assert found.bins["rows"].to_list() == [1, 4, 1]


def test_classes_are_told_apart() -> None:
    found = accuracy_by_class(table())
    assert found.rows() == [(0, 2, 0.5, 1.0), (1, 2, 1.0, 0.5), (2, 1, 0.0, 0.0)]


def test_mistakes_are_counted_with_those_of_the_teacher() -> None:
    assert confusions(table()).rows() == [(0, 1, 1, 0), (2, 1, 1, 1)]


def test_failures_are_where_the_teacher_is_right_the_surest_first() -> None:
    rows = table(top=[1, 1, 0, 1, 1, 2])
    assert failures(rows)["position"].to_list() == [0, 2, 1]


def test_agreement_is_told_by_equal_parts_of_the_teachers_confidence() -> None:
    found = agreement_by_confidence(table(), parts=3)
    assert found["agreement"].to_list() == [1.0, 0.5, 0.5]
    assert found["confidence"].to_list() == pytest.approx([0.45, 0.65, 0.85])
    assert found["rows"].to_list() == [2, 2, 2]


def test_loss_along_a_block_is_the_mean_of_each_place() -> None:
    found = loss_by_place(table(at=[0, 1, 2, 0, 1, 2]), parts=3)
    assert found["at"].to_list() == [0.0, 1.0, 2.0]
    assert found["student"].to_list() == pytest.approx([log(2), log(4), log(2)])


def test_the_costliest_tokens_have_most_of_the_excess_loss() -> None:
    found = costliest_tokens(table())
    assert found["excess"].sum() == pytest.approx(1)
    assert found["label"][0] == 0
    assert found["excess"].is_sorted(descending=True)


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(1, 1)], [0]),
        ([(1, 1), (2, 2), (3, 1.5)], [0, 1]),
        ([(2, 2), (1, 3)], [1]),
        ([(1, 1), (1, 2), (1, 2)], [1]),
        ([(3, 3), (1, 1), (2, 1)], [1, 0]),
    ],
)
def test_a_front_is_what_no_other_beats(points: list[tuple[float, float]], front: list[int]) -> None:
    assert pareto_front(points) == front


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=30))
def test_everything_beside_a_front_is_beaten_by_one_of_it(points: list[tuple[int, int]]) -> None:
    front = [points[i] for i in pareto_front(points)]
    assert all(any(c <= cost and g >= gain for c, g in front) for cost, gain in points)
    assert not any(a != b and a[0] <= b[0] and a[1] >= b[1] for a in front for b in front)


def test_an_interval_has_a_width_where_every_row_is_right() -> None:
    low, high = interval(1.0, 48)
    assert (low, high) == pytest.approx((0.926, 1.0), abs=5e-4)


def test_an_interval_of_many_rows_is_the_normal_one() -> None:
    low, high = interval(0.5, 10_000)
    assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / 100, rel=1e-3)
