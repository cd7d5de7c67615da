"""Rows of a batch that go through the network a part at a time: the same weights, in less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from storage.cache import Cache
from storage.encodings import SparseEncoding
from storage.errors import BadRequest
from student_train.options.sections import FleetOptions, StudentOptions
from student_train.preparing.prepare import prepare
from student_train.preparing.request import Request
from student_train.preparing.weighing.step_memory import measure_step
from student_train.running.events import Event, StackingChosen
from student_train.running.train import train_students
from tests.language.toys import END, IDS, TEACHERS, counting_teacher, small_gpt
from tests.student_train.toys import HINT, KD, LABELS, Recipe, request_of, student, write_cache
from tests.teacher_cache.toys import build, write_job

SGD: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.05, "epochs": 2, "evaluate_every_steps": 4}
SPARSE = 'encoding = { kind = "sparse", k = 3, n = 4, values = "8bit", temperatures = [1.0, 2.0] }'
TOKENS_KD = {"loss": "kd", "teacher": "sparse", "temperature": 2.0}


@pytest.fixture(scope="module")
def sparse_cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    encoding = SparseEncoding(k=2, values="8bit", temperatures=[1.0, 2.0])
    return write_cache(tmp_path_factory.mktemp("sparse"), Recipe(encoding=encoding))


@pytest.fixture(scope="module")
def tokens_cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Blocks of which each has another number of positions that count; the last has next to none."""
    folder = tmp_path_factory.mktemp("tokens")
    random = np.random.default_rng(0)
    np.save(folder / "t.npy", random.integers(0, IDS, 60 * 12 - 9).astype(np.uint16))
    (folder / "counting.py").write_text(TEACHERS)
    section = (
        f'[[dataset]]\nname = "t"\nkind = "tokens"\npath = "t.npy"\nvocabulary = {IDS}\nblock = 12\n'
        f"end_of_text = {END}\nvalidation = 0.25\nrows_per_shard = 16\n"
    )
    report = build(write_job(folder, section, counting_teacher("sparse", scale=3.0, extra=SPARSE)))
    assert report.exit_code == 0, report
    return Cache.open(str(folder / "cache"))


def train(cache: Cache, runs: Path, *students: StudentOptions, stacking: str = "never", dataset: str = "toy") -> None:
    events: list[Event] = []
    asked = request_of(cache, runs, *students, train=f"{dataset}/train", validation=f"{dataset}/validation")
    fleet = FleetOptions.model_validate({"stacking": stacking})
    summary = train_students(Request(asked.cache, runs, asked.data, asked.students, "cpu", fleet), report=events.append)
    for error in summary.errors.values():
        raise error
    stacked = [event.stacked for event in events if isinstance(event, StackingChosen)]
    assert stacked == ([True] if stacking == "always" else [])


def assert_same(runs: Path, name: str = "a", *, weights: float = 1e-6) -> None:
    """Check weights and figures of the runs `parts` and `whole`."""
    found, expected = (load_file(runs / each / name / "student.safetensors") for each in ("parts", "whole"))
    for key, values in expected.items():
        assert torch.allclose(found[key], values, rtol=0, atol=weights), (key, (found[key] - values).abs().max())
    tables = [pl.read_parquet(runs / each / name / "metrics.parquet") for each in ("parts", "whole")]
    columns = [name for name in tables[0].columns if name.startswith(("train", "term", "share", "cross"))]
    for column in columns:
        assert tables[0][column].to_list() == pytest.approx(tables[1][column].to_list(), rel=1e-4), column


@pytest.mark.parametrize("micro", [8, 5])  # 5: it does not divide 32, nor 192
@pytest.mark.parametrize(
    "options",
    [
        {"objective": [LABELS | {"smoothing": 0.1}]},
        {"objective": [LABELS, KD], "clip_norm": 0.5, "ema_decay": 0.9, "momentum": 0.0},
        {"objective": [LABELS, HINT], "weight_decay": 0.1},
    ],
    ids=["labels", "kd, clipped, averaged", "features"],
)
def test_parts_of_a_batch_end_at_the_weights_of_the_whole(
    toy_cache: Cache, tmp_path: Path, options: dict[str, Any], micro: int
) -> None:
    train(toy_cache, tmp_path / "whole", student(**SGD | options))
    train(toy_cache, tmp_path / "parts", student(**SGD | options, micro_batch_size=micro))
    assert_same(tmp_path)


def test_sparse_targets_teach_in_parts_too(sparse_cache: Cache, tmp_path: Path) -> None:
    objective = [LABELS, KD, KD | {"temperature": 1.0}]
    train(sparse_cache, tmp_path / "whole", student(**SGD, objective=objective))
    train(sparse_cache, tmp_path / "parts", student(**SGD, objective=objective, micro_batch_size=8))
    assert_same(tmp_path)


@pytest.mark.parametrize("micro", [1, 4])
def test_of_tokens_a_part_weighs_what_its_labelled_positions_are(
    tokens_cache: Cache, tmp_path: Path, micro: int
) -> None:
    options: dict[str, Any] = SGD | {"objective": [{"loss": "labels"}, TOKENS_KD], "batch_size": 16, "clip_norm": 0.1}
    train(tokens_cache, tmp_path / "whole", small_gpt("a", **options), dataset="t")
    train(tokens_cache, tmp_path / "parts", small_gpt("a", **options, micro_batch_size=micro), dataset="t")
    assert_same(tmp_path)


def test_stacked_students_go_in_parts_too(toy_cache: Cache, tokens_cache: Cache, tmp_path: Path) -> None:
    rows = [student(f"s{i}", **SGD, objective=[LABELS, KD], seed=i, micro_batch_size=5) for i in range(2)]
    objective = [{"loss": "labels"}, TOKENS_KD]
    tokens = [small_gpt(f"t{i}", **SGD, objective=objective, seed=i, micro_batch_size=3) for i in range(2)]
    for cache, students, dataset in ((toy_cache, rows, "toy"), (tokens_cache, tokens, "t")):
        train(cache, tmp_path / "parts", *students, stacking="always", dataset=dataset)
        train(cache, tmp_path / "whole", *students, dataset=dataset)
        for each in students:
            assert_same(tmp_path, each.name, weights=1e-4)


BATCH_NORM = {"architecture": "cnn", "options": {"widths": [4]}}


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"objective": [HINT | {"loss": "rkd"}, LABELS]}, "rkd with micro_batch_size = 8"),
        ({"objective": [KD | {"loss": "dist"}]}, "dist with micro_batch_size = 8"),
        (BATCH_NORM, "network.stage1.1, and micro_batch_size = 8"),
    ],
)
def test_what_compares_rows_is_refused(toy_cache: Cache, tmp_path: Path, options: dict[str, Any], found: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        train(toy_cache, tmp_path, student(**options, micro_batch_size=8))
    assert refusal.value.found == found


@pytest.mark.parametrize("dataset", ["toy", "t"])
def test_the_bound_on_memory_knows_of_parts(
    toy_cache: Cache, tokens_cache: Cache, tmp_path: Path, dataset: str
) -> None:
    def activations(micro: int | None) -> int:
        wide: dict[str, Any] = {"batch_size": 32, "micro_batch_size": micro}
        if dataset == "toy":
            each = student(**wide, options={"hidden": [512, 512]})
        else:
            each = small_gpt(**wide, options={"depth": 2, "width": 64, "heads": 2}, objective=[{"loss": "labels"}])
        cache = toy_cache if dataset == "toy" else tokens_cache
        rows = {"train": f"{dataset}/train", "validation": f"{dataset}/validation"}
        (prepared,) = prepare(request_of(cache, tmp_path, each, **rows))
        step = measure_step(prepared)
        return step.activations - step.batch

    assert activations(4) < 0.2 * activations(None)
    assert activations(32) == activations(None)
