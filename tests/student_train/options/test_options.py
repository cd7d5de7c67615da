from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from student_train.options.sections import BUILT_IN, DataOptions, StudentOptions
from student_train.students import ARCHITECTURES
from tests.student_train.toys import HINT, KD, LABELS, student


def test_the_names_that_a_job_may_use_are_those_that_can_be_built() -> None:
    assert set(BUILT_IN) == ARCHITECTURES.keys()


@pytest.mark.parametrize(
    "wrong",
    [
        {"architecture": "mpl"},
        {"objective": []},
        {"objective": [KD | {"smoothing": 0.1}]},
        {"objective": [LABELS | {"temperature": 2.0}]},
        {"objective": [HINT | {"temperature": 2.0}]},
        {"objective": [LABELS | {"weight": 0.0}]},
        {"objective": [KD | {"temperature": 0.0}]},
        {"objective": [{"loss": "dkd"}]},
        {"std": [0.0]},
        {"mean": []},
        {"epochs": 0},
        {"epochs": "3"},
        {"epochs": 2.0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"momentum": 1.0},
        {"warmup_epochs": 4.0},
        {"max_steps": 7},  # beside epochs
        {"epochs": None, "max_steps": 0},
        {"epochs": None, "max_steps": 7, "warmup_steps": 8},
        {"epochs": None, "max_steps": 7, "evaluate_every_steps": 8},
        {"evaluate_every_steps": 0},
        {"micro_batch_size": 0},
        {"micro_batch_size": 33},
        {"best_by": "loss"},
        {"patience_epochs": 2, "patience_evaluations": 2},
        {"warmup_epochs": 1.0, "warmup_steps": 3},
        {"warmup_steps": -1},
        {"schedule": "wdd"},
        {"learning_rate_floor": 1.0},
        {"learning_rate_floor": 0.1, "schedule": "constant"},
        {"decay_share": 0.2},  # of wsd alone
        {"decay_share": 0.0, "schedule": "wsd"},
        {"betas": [0.9, 1.0]},
        {"betas": [0.9]},
        {"betas": [0.9, 0.95], "momentum": 0.8},
        {"betas": [0.9, 0.95], "optimizer": "sgd"},
        {"eps": 1e-6, "optimizer": "sgd"},
        {"eps": 0.0},
        {"ema_decay": 1.0},
        {"patience_epochs": 0},
        {"autocast": "fp16"},
        {"seed": -1},
        {"name": "../up"},
        {"epcohs": 3},
    ],
)
def test_a_wrong_option_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        student(**wrong)


@pytest.mark.parametrize(("rows", "ok"), [("c10", True), ("c10/train", True), ("c10/test", False), ("/train", False)])
def test_rows_are_a_dataset_and_a_split(rows: str, ok: bool) -> None:
    try:
        DataOptions(train=rows, validation="c10/validation")
    except ValidationError:
        assert not ok
    else:
        assert ok


def test_a_file_of_ones_own_is_found_from_the_job() -> None:
    values = {"name": "a", "architecture": "models.py:tiny", "objective": [LABELS]}
    options = StudentOptions.model_validate(values, context={"folder": Path("/jobs")})
    assert options.architecture == "/jobs/models.py:tiny"


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.1), ("adamw", 1e-3)])
def test_each_optimizer_has_a_learning_rate_of_its_own(optimizer: str, rate: float) -> None:
    assert student(optimizer=optimizer, learning_rate=None).peak_learning_rate == rate


def test_a_budget_is_steps_or_epochs_and_twenty_of_these_by_default() -> None:
    plain = {"name": "a", "architecture": "mlp", "objective": [LABELS]}
    budgets = [StudentOptions.model_validate(plain | own) for own in ({}, {"epochs": 3}, {"max_steps": 7})]
    assert [(each.epochs, each.total_steps(4)) for each in budgets] == [(20, 80), (3, 12), (None, 7)]


def test_adamw_has_two_betas_or_its_first_by_the_name_of_old() -> None:
    assert student(optimizer="adamw", momentum=0.8).adamw_betas == (0.8, 0.999)
    assert student(optimizer="adamw", betas=[0.8, 0.95]).adamw_betas == (0.8, 0.95)


# What the identity of a run had in a version before there were later keys.
FIRST_KEYS = {
    *("architecture", "options", "mean", "std", "objective", "epochs", "batch_size", "seed", "first_view"),
    *("optimizer", "learning_rate", "momentum", "weight_decay", "warmup_epochs", "schedule", "clip_norm"),
    *("ema_decay", "patience_epochs", "autocast", "compile"),
}


def test_a_run_of_before_a_key_was_there_is_made_from_the_same() -> None:
    assert student().made_from().keys() == FIRST_KEYS
    assert student(optimizer="adamw", betas=[0.9, 0.95]).made_from().keys() == FIRST_KEYS | {"betas"}
