"""The learning rate of every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from student_train.options.training import Schedule
from student_train.stepping.schedule import learning_rate_at

TOTAL, WARM_UP, FLOOR = 40, 5, 0.1


def rates(schedule: Schedule, **about: Any) -> list[float]:
    about = {"peak": 1.0, "warmup_steps": WARM_UP, "total_steps": TOTAL} | about
    return [learning_rate_at(step, schedule=schedule, **about) for step in range(about["total_steps"])]


def test_the_learning_rate_rises_in_a_line_then_falls_along_a_cosine() -> None:
    rates = [learning_rate_at(s, peak=1.0, warmup_steps=3, total_steps=7, schedule="cosine") for s in range(7)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.8535534, 0.5, 0.1464466])


def test_a_constant_learning_rate_stays() -> None:
    rates = [learning_rate_at(s, peak=1.0, warmup_steps=1, total_steps=4, schedule="constant") for s in range(4)]
    assert rates == [0.5, 1.0, 1.0, 1.0]


def test_a_line_ends_one_step_after_the_last() -> None:
    assert rates("linear", warmup_steps=0, total_steps=4) == [1.0, 0.75, 0.5, 0.25]


def test_a_floor_is_a_share_of_the_peak() -> None:
    assert rates("linear", peak=2.0, warmup_steps=0, total_steps=4, floor=0.5) == [2.0, 1.75, 1.5, 1.25]


def test_a_stable_phase_is_as_high_as_the_peak_and_its_decay_a_share_of_all_steps() -> None:
    found = rates("wsd", warmup_steps=1, total_steps=10, decay_share=0.3, floor=0.0)
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3])


def test_a_warm_up_may_be_all_there_is() -> None:
    assert rates("cosine", warmup_steps=3, total_steps=3) == [0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("ours", "about", "theirs", "options"),
    [
        ("constant", {}, "constant_with_warmup", {}),
        ("linear", {}, "linear", {}),
        ("cosine", {}, "cosine", {}),
        ("cosine", {"floor": FLOOR}, "cosine_with_min_lr", {"min_lr_rate": FLOOR}),
        (
            "wsd",
            {"floor": FLOOR, "decay_share": 0.25},
            "warmup_stable_decay",
            {"num_decay_steps": TOTAL // 4, "min_lr_ratio": FLOOR, "decay_type": "linear"},
        ),
    ],
)
def test_after_the_warm_up_rates_are_those_of_transformers(
    ours: Schedule, about: dict[str, Any], theirs: str, options: dict[str, Any]
) -> None:
    optimization = pytest.importorskip("transformers.optimization")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    given = {"num_warmup_steps": WARM_UP, "scheduler_specific_kwargs": options}
    if theirs != "constant_with_warmup":
        given["num_training_steps"] = TOTAL
    scheduler = optimization.get_scheduler(theirs, optimizer, **given)
    expected = []
    for _ in range(TOTAL):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(ours, **about)[WARM_UP:] == pytest.approx(expected[WARM_UP:])
