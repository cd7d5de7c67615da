"""Figures of language models on the held rows of each of several datasets, each with its own teacher."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from storage.cache import Cache
from storage.format.sealed import seal_json
from student_train.comparing.compared import compare_settings
from student_train.comparing.runs import gather_runs
from student_train.comparing.values import as_values
from student_train.options.sections import StudentOptions
from student_train.report.contents import gather
from student_train.report.page import render
from student_train.run_files.history import read_metrics
from student_train.run_files.records import EpochMetrics, RunRecord
from student_train.running.measuring.evaluate import Sums
from student_train.running.tracking.listening import epoch_points
from student_train.running.train import train_students
from student_train.stepping.parallel import ALONE
from student_train.students import Blueprint, build_student
from tests.conftest import Program
from tests.language.test_figures import LABELS, NATS, by_hand
from tests.language.toys import IDS, TEACHERS, counting_teacher, request, small_gpt
from tests.student_train.stepping.test_parallel import torchrun, write
from tests.teacher_cache.toys import build, write_job

STEPS = {"up": 1, "down": 9}  # of what follows in each dataset: one more, one less
ROWS = {"up": 24, "down": 44}
HELD = {"up": 10, "down": 19}  # by the digests of their samples
OWN = {"up": "climber", "down": "diver"}
TAUGHT = [{"loss": "kd", "teacher": OWN, "temperature": 1.0}]
FIGURES = ("accuracy", "agreement", "cross_entropy", "kl", "perplexity")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("both")
    (folder / "counting.py").write_text(TEACHERS)
    sections = []
    for name, step in STEPS.items():
        np.save(folder / f"{name}.npy", (step * np.arange(12 * ROWS[name]) % IDS).astype(np.uint16))
        sections.append(
            f'[[dataset]]\nname = "{name}"\nkind = "tokens"\npath = "{name}.npy"\nvocabulary = {IDS}\nblock = 12\n'
            "validation = 0.25\nrows_per_shard = 6\n"
        )
    teachers = [
        counting_teacher(OWN[name], extra=f'datasets = ["{name}"]', step=step, scale=3.0)
        for name, step in STEPS.items()
    ]
    assert build(write_job(folder, "".join(sections), *teachers)).exit_code == 0
    return Cache.open(str(folder / "cache"))


def small(**options: Any) -> StudentOptions:
    # no end of text: these streams have none
    return small_gpt(**{"objective": TAUGHT, "options": {"depth": 1, "width": 8, "heads": 2}} | options)


def trained(cache: Cache, runs: Path, **options: Any) -> RunRecord:
    data = {"train": ["up/train", "down/train"], "validation": ["up/validation", "down/validation"]}
    data |= options.pop("data", {})
    summary = train_students(request(cache, runs, small(**options), **data))
    for error in summary.errors.values():
        raise error
    return summary.records[0]


@pytest.mark.parametrize("dataset", STEPS)
def test_each_dataset_has_the_figures_of_its_own_tokens_beside_its_own_teacher(
    both: Cache, tmp_path: Path, dataset: str
) -> None:
    own = trained(both, tmp_path).by_dataset[dataset]
    log_p_NC, log_q_NC, labels_N = by_hand(both, tmp_path, dataset, STEPS[dataset])
    nats = float(-log_q_NC.gather(1, labels_N[:, None]).mean())
    assert own.cross_entropy == pytest.approx(nats, rel=1e-5)
    assert own.perplexity == pytest.approx(math.exp(nats), rel=1e-5)
    assert own.accuracy == pytest.approx(float((log_q_NC.argmax(1) == labels_N).double().mean()))
    assert own.agreement == pytest.approx(float((log_p_NC.argmax(1) == log_q_NC.argmax(1)).double().mean()))
    assert own.kl == pytest.approx(float((log_p_NC.exp() * (log_p_NC - log_q_NC)).sum(1).mean()), abs=NATS)
    assert own.rows == both.samples().of(dataset).filter(split="validation").height


def test_a_part_of_the_logits_at_a_time_gives_the_same_figures(
    both: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(both, tmp_path / "whole").by_dataset
    # parts that end within a row, and batches that hold rows of both datasets
    monkeypatch.setattr("student_train.students.parts.part_size", lambda *_: 7)
    parts = trained(both, tmp_path / "parts").by_dataset
    for dataset in STEPS:
        for name in FIGURES:
            assert getattr(parts[dataset], name) == pytest.approx(getattr(whole[dataset], name), rel=1e-4)


def test_together_they_are_the_figures_of_all_rows(both: Cache, tmp_path: Path) -> None:
    record = trained(both, tmp_path)
    tokens = {dataset: len(by_hand(both, tmp_path, dataset)[2]) for dataset in STEPS}
    for name in ("accuracy", "agreement", "cross_entropy", "kl"):
        each = [getattr(record.by_dataset[dataset], name) for dataset in STEPS]
        mean = np.average(each, weights=list(tokens.values()))
        assert getattr(record, name) == pytest.approx(mean, rel=1e-5)
        assert each[0] != each[1]


def test_streamed_rows_have_the_figures_of_resident_ones(both: Cache, tmp_path: Path) -> None:
    device, stream = (trained(both, tmp_path / at, data={"residency": at}) for at in ("device", "stream"))
    assert device.by_dataset == stream.by_dataset


def test_two_processes_have_the_figures_of_one(both: Cache, tmp_path: Path) -> None:
    alone = trained(both, tmp_path / "one")
    path = write(tmp_path, both, "up", small().model_dump(mode="json", exclude_none=True))
    job = path.read_text()
    for half in ("train", "validation"):
        job = job.replace(f'"up/{half}"', f'["up/{half}", "down/{half}"]')
    path.write_text(job)
    done = torchrun(path)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)["students"]
    for dataset, own in alone.by_dataset.items():
        assert record["by_dataset"][dataset]["rows"] == own.rows
        for name in FIGURES:
            assert record["by_dataset"][dataset][name] == pytest.approx(getattr(own, name), rel=1e-3)


def test_every_epoch_has_them_and_trackers_are_told(both: Cache, tmp_path: Path) -> None:
    record = trained(both, tmp_path, epochs=3)
    metrics = read_metrics(tmp_path / "gpt")
    assert metrics is not None
    for dataset, own in record.by_dataset.items():
        for name in FIGURES:
            column = metrics[f"{name} of {dataset}"]
            assert (len(column), column.dtype, column[-1]) == (3, pl.Float64, getattr(own, name))
    (run,) = gather_runs(tmp_path)
    assert run.by_dataset == record.by_dataset
    last = record.model_dump(include={"by_dataset", "accuracy"})
    about = {"epoch": 1, "train_loss": 1.0, "terms": {}, "shares": {}, "learning_rate": 0.1, "seconds": 1.0}
    points = epoch_points(tmp_path / "gpt", EpochMetrics(**last | about, rows_per_s=1.0))
    told = {point.tag: point.value for point in points}
    assert told["epoch/kl_of_up"] == record.by_dataset["up"].kl
    assert all(isinstance(value, float) for value in told.values())


def test_labels_alone_are_measured_beside_the_teacher_of_each(both: Cache, tmp_path: Path) -> None:
    record = trained(both, tmp_path, objective=[LABELS])
    assert all(own.kl is not None and own.agreement is not None for own in record.by_dataset.values())


def test_compare_and_the_page_tell_them_in_a_table_of_their_own(program: Program, both: Cache, tmp_path: Path) -> None:
    for name, objective in (("labels", [LABELS]), ("kd", TAUGHT)):
        for seed in (0, 1):
            trained(both, tmp_path, name=f"{name}-seed_{seed}", seed=seed, objective=objective)
    ended = program("student", "compare", tmp_path)
    assert ended.code == 0
    assert max(map(len, ended.out.splitlines())) <= 80
    (found,) = compare_settings(gather_runs(tmp_path))
    assert found.datasets == HELD
    lines = [line.split() for line in ended.out.split("by dataset:")[1].splitlines()]
    values = as_values(found)
    assert values["held_rows_by_dataset"] == HELD
    page = render(gather(tmp_path)).split("<h3>By dataset</h3>")[1].split("</table>")[0]
    for dataset, rows in found.datasets.items():
        place = lines.index([f"{dataset},", str(rows), "rows"])
        for number, setting in enumerate(values["settings"], 1):
            means = setting["by_dataset"][dataset]["means"]
            shown = f"{means['cross_entropy']:.3f}"
            assert lines[place + number][0] == str(number)
            assert {shown, f"{means['perplexity']:.4g}", f"{means['kl']:.3g}"} <= set(lines[place + number])
            assert f"{100 * means['agreement']:.2f}" in lines[place + number]
            assert f"{shown} ± " in page
            assert f"{means['kl']:.4f}" in page
        assert lines[place + 3][:2] == ["teacher", OWN[dataset]]
        assert f"teacher {OWN[dataset]}" in page
    assert {"ppl", "KL"} <= {word for line in lines for word in line}


def test_one_setting_of_many_words_fits_a_terminal_too(program: Program, both: Cache, tmp_path: Path) -> None:
    trained(both, tmp_path, name="a-student-whose-name-is-as-long-as-a-name-of-a-student-may-be-64")
    ended = program("student", "compare", tmp_path)
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "up, 10 rows" in ended.out


def test_of_one_dataset_nothing_of_it_is_written_nor_told(program: Program, both: Cache, tmp_path: Path) -> None:
    data = {"train": "up/train", "validation": "up/validation"}
    record = trained(both, tmp_path, objective=[LABELS], data=data)
    assert record.by_dataset == {}
    assert "by_dataset" not in (tmp_path / "gpt/run.json").read_text()
    metrics = read_metrics(tmp_path / "gpt")
    assert metrics is not None
    assert not [name for name in metrics.columns if " of " in name]
    assert "by dataset" not in program("student", "compare", tmp_path).out
    assert "By dataset" not in render(gather(tmp_path))


def test_a_run_from_before_there_were_these_is_compared_without(program: Program, both: Cache, tmp_path: Path) -> None:
    trained(both, tmp_path)
    path = tmp_path / "gpt/run.json"
    record = {name: value for name, value in json.loads(path.read_text()).items() if name != "digest"}
    del record["by_dataset"]
    path.write_bytes(seal_json(record))
    (run,) = gather_runs(tmp_path)
    assert (run.faults, run.by_dataset) == ((), {})
    assert "by dataset" not in program("student", "compare", tmp_path).out
    assert "By dataset" not in render(gather(tmp_path))


def test_a_loss_that_is_not_finite_is_of_its_own_dataset_alone() -> None:
    two = Blueprint(architecture="mlp", num_classes=2, input_shape=(1, 2, 2), mean=(0.5,), std=(0.5,))
    sums = Sums(1, build_student(two), {"up": 2, "down": 1})
    labels_B = torch.tensor([0, 1, 0])
    logits_MBC = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [-math.inf, 0.0]]])
    sums.add(logits_MBC, labels_B, labels_B[None], torch.tensor([0, 0, 1]))
    (found,) = sums.figures(ALONE)
    assert found.by_dataset["up"].cross_entropy == pytest.approx(math.log(2))
    assert found.by_dataset["down"].cross_entropy == math.inf
