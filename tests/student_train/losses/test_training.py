"""Every loss trains a student, from a real cache, beside labels; and its memory is measured without a step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from storage.cache import Cache
from storage.encodings import SparseEncoding
from student_train.losses import LOSSES
from student_train.preparing.prepare import prepare
from student_train.preparing.weighing.step_memory import measure_step
from student_train.running.train import train_students
from tests.student_train.losses.toys import SOFT
from tests.student_train.toys import LABELS, Recipe, request_of, student, write_cache
from tests.tables.toys import HOUSES_STUDENTS
from tests.vectors.toys import EVERY_LOSS

FEATURES = {"teacher": "sage", "feature": "pooled", "student_layer": "network.hidden1"}
OPTIONS: dict[str, dict[str, Any]] = {
    "labels": {},
    **{loss: {"teacher": "sage"} | options for loss, options in SOFT.items()},
    **{loss: {"teacher": "sage"} for loss in ("random_sampling", "stratified", "logit_mse")},
    **dict.fromkeys(("hint", "cosine", "vid", "rkd", "crd"), FEATURES),
    **dict.fromkeys(("similarity", "pkt"), FEATURES | {"weight": 300.0}),  # their gradients are that small
    "attention": {"teacher": "sage", "feature": "map", "student_layer": "network.stage1"},
}
ENCODINGS = {
    "random_sampling": SparseEncoding(n=4),
    "stratified": SparseEncoding(k=2, n=2),
    "sparse": SparseEncoding(k=2, temperatures=[2.0], standardised_temperatures=[2.0]),
}
CASES = [(loss, "dense") for loss in OPTIONS if loss not in ENCODINGS] + [(loss, "sparse") for loss in SOFT]
CASES += [(loss, loss) for loss in ("random_sampling", "stratified")]


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory, toy_cache: Cache) -> dict[str, Cache]:
    folder = tmp_path_factory.mktemp("encodings")
    kept = {name: write_cache(folder / name, Recipe(encoding=encoding)) for name, encoding in ENCODINGS.items()}
    return kept | {"dense": toy_cache}


def test_every_loss_is_tried() -> None:
    of_numbers = set(re.findall(r'loss = "(\w+)"', HOUSES_STUDENTS))
    assert {loss for loss, _ in CASES} | {term["loss"] for term in EVERY_LOSS} | of_numbers == LOSSES.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "encoding"), CASES)
def test_it_trains_a_student_beside_labels(caches: dict[str, Cache], tmp_path: Path, loss: str, encoding: str) -> None:
    architecture = {"architecture": "cnn", "options": {"widths": [4]}} if loss == "attention" else {}
    objective = [LABELS, {"loss": loss} | OPTIONS[loss]]
    options = student(objective=objective, epochs=3, **architecture)
    request = request_of(caches[encoding], tmp_path, options)
    assert measure_step(prepare(request)[0]).activations > 0
    (record,) = train_students(request).records
    metrics = pl.read_parquet(tmp_path / "a" / "metrics.parquet")
    *_, name = (column.removeprefix("term ") for column in metrics.columns if column.startswith("term "))
    first, *_, last = metrics[f"term {name}"].to_list()
    assert record.status == "finished"
    assert last < first
    assert metrics[f"share {name}"].min() > 0.001  # type: ignore[operator]
