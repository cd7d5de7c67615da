"""The label at a position is the next token, and so is what a teacher says there: through a real cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from storage.format.shards import ShardKey
from storage.views import PLAIN
from student_train.options.sections import StudentOptions
from student_train.running.train import train_students
from tests.language.toys import END, counting_cache, counting_teacher, request

SURE = 60.0  # nats that a wrong token costs


def losses(folder: Path, *, teacher_step: int = 1, student_step: int = 1) -> dict[str, float]:
    """Return each loss of a student that is right by construction, or so many tokens off, and is never moved."""
    cache = counting_cache(folder, counting_teacher(step=teacher_step))
    options = StudentOptions.model_validate(
        {
            "name": "fixed",
            "architecture": f"{folder / 'counting.py'}:student",
            "options": {"step": student_step},
            "objective": [{"loss": "labels"}, {"loss": "kd", "teacher": "right", "temperature": 1.0}],
            "epochs": 1,
            "learning_rate": 1e-12,
        }
    )
    summary = train_students(request(cache, folder / "runs", options))
    (record,) = summary.records
    assert record.cross_entropy is not None
    (metrics,) = pl.read_parquet(folder / "runs/fixed/metrics.parquet").to_dicts()
    return {name: metrics[f"term {name}"] for name in ("labels", "kd:right")} | {"held": record.cross_entropy}


def test_a_teacher_and_a_student_that_are_right_have_no_loss(tmp_path: Path) -> None:
    assert losses(tmp_path) == pytest.approx({"labels": 0, "kd:right": 0, "held": 0}, abs=1e-9)


@pytest.mark.parametrize("step", [0, 2])
def test_a_student_that_is_a_token_early_or_late_has_all_of_it(tmp_path: Path, step: int) -> None:
    assert losses(tmp_path, student_step=step) == pytest.approx({"labels": SURE, "kd:right": SURE, "held": SURE})


@pytest.mark.parametrize("step", [0, 2])
def test_a_teacher_that_is_a_token_early_or_late_is_told_from_the_labels(tmp_path: Path, step: int) -> None:
    found = losses(tmp_path, teacher_step=step)
    assert found == pytest.approx({"labels": 0, "kd:right": SURE, "held": 0}, abs=1e-9)


def test_the_labels_of_the_cache_are_the_next_inputs(tmp_path: Path) -> None:
    cache = counting_cache(tmp_path)
    shards = range(len(cache.catalogue().shards("counting")))
    inputs = np.concatenate([cache.read_inputs("counting", shard) for shard in shards]).ravel()
    labels = np.concatenate([cache.read_labels("counting", shard) for shard in shards]).ravel()
    known = labels >= 0
    assert labels[known].tolist() == np.append(inputs[1:], -1)[known].tolist()
    assert set(inputs[:-1][~known[:-1]].tolist()) == {END}


def test_the_teachers_columns_are_means_over_the_positions_that_count(tmp_path: Path) -> None:
    cache = counting_cache(tmp_path, counting_teacher(scale=2.0))
    commit = cache.commit(ShardKey("counting", "right", PLAIN, 0), with_table=True)
    labels = cache.read_labels("counting", 0)
    known = labels >= 0
    logits = np.zeros((*labels.shape, 10))
    logits[known] = cache.read_targets("counting", "right", 0)["logits"]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    of_label = np.take_along_axis(log_p, np.maximum(labels, 0)[..., None], -1)[..., 0]
    expected = np.where(known, of_label, 0).sum(1) / known.sum(1)
    assert commit.table["label_log_probability"].to_pylist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert commit.table["top"].null_count == len(labels)
