"""Figures of language models on held rows: perplexity, and how far a student is from its teacher, token by token."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from jobs.show.train_progress import _figures
from storage.cache import Cache
from storage.format.objects import LocalObjects
from storage.format.sealed import seal, seal_json
from student_train.comparing.compared import compare_settings
from student_train.comparing.runs import gather_runs
from student_train.comparing.values import as_values
from student_train.preparing.dry_run import dry_run
from student_train.report.contents import gather
from student_train.report.page import render
from student_train.run_files.history import read_metrics
from student_train.run_files.records import RunRecord
from student_train.running import events
from student_train.running.train import train_students
from student_train.students import load_student
from tests.conftest import Program
from tests.language.toys import counting_cache, counting_teacher, request, small_gpt

SPARSE = 'encoding = { kind = "sparse", k = 1, temperatures = [1, 2] }'
DRAWS = 'encoding = { kind = "sparse", n = 4 }'
LABELS = {"loss": "labels"}
NATS = 2e-3  # of targets in half precision


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return counting_cache(tmp_path_factory.mktemp("counting"), counting_teacher(scale=3.0), rows=40)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return counting_cache(tmp_path_factory.mktemp("sparse"), counting_teacher(scale=3.0, extra=SPARSE), rows=40)


def trained(cache: Cache, runs: Path, **options: Any) -> RunRecord:
    data = options.pop("data", {})
    summary = train_students(request(cache, runs, small_gpt(**options), **data))
    for error in summary.errors.values():
        raise error
    return summary.records[0]


def held_tokens(cache: Cache, dataset: str = "counting") -> tuple[Tensor, Tensor]:
    """Return the inputs and labels of the held blocks, (B, L) each."""
    rows = cache.samples().of(dataset).filter(pl.col("split") == "validation").select("shard", "row").rows()
    starts = {shard.shard: shard.start for shard in cache.catalogue().shards(dataset)}
    read = (cache.read_inputs, cache.read_labels)
    parts = [np.stack([of(dataset, shard)[row - starts[shard]].astype(np.int64) for shard, row in rows]) for of in read]
    return torch.from_numpy(parts[0]), torch.from_numpy(parts[1])


def by_hand(cache: Cache, runs: Path, dataset: str = "counting", step: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities of teacher and student at each labelled held token, (N, C) each, and labels (N,)."""
    tokens_BL, labels_BL = held_tokens(cache, dataset)
    known_BL = labels_BL >= 0
    following_BL = (tokens_BL + step) % 10
    log_p = (3.0 * torch.nn.functional.one_hot(following_BL, 10).float()).log_softmax(dim=-1)  # as `toys.Counting`
    with torch.no_grad():
        log_q = load_student(runs / "gpt")(tokens_BL).log_softmax(dim=-1)
    return log_p[known_BL], log_q[known_BL], labels_BL[known_BL]


def test_the_divergence_from_dense_targets_is_that_over_all_classes(cache: Cache, tmp_path: Path) -> None:
    record = trained(cache, tmp_path)
    log_p_NC, log_q_NC, _ = by_hand(cache, tmp_path)
    expected = float((log_p_NC.exp() * (log_p_NC - log_q_NC)).sum(dim=1).mean())
    assert record.kl == pytest.approx(expected, abs=NATS)
    assert record.kl_over == "teacher right, over all classes"


def test_the_divergence_from_sparse_targets_has_the_rest_as_one_bucket_and_is_called_so(
    sparse: Cache, tmp_path: Path
) -> None:
    record = trained(sparse, tmp_path)
    log_p_NC, log_q_NC, _ = by_hand(sparse, tmp_path)
    top_N1 = log_p_NC.argmax(dim=1, keepdim=True)
    p_N1, q_N1 = log_p_NC.exp().gather(1, top_N1), log_q_NC.exp().gather(1, top_N1)
    p_N2, q_N2 = torch.cat([p_N1, 1 - p_N1], dim=1), torch.cat([q_N1, 1 - q_N1], dim=1)
    assert record.kl == pytest.approx(float((p_N2 * (p_N2 / q_N2).log()).sum(dim=1).mean()), abs=NATS)
    assert record.kl < float((log_p_NC.exp() * (log_p_NC - log_q_NC)).sum(dim=1).mean()) - NATS
    assert record.kl_over == (
        "teacher right, over its largest class and the rest as one bucket, which is never more than over all"
    )


def test_perplexity_is_the_power_of_the_cross_entropy_and_agreement_is_of_the_likeliest_token(
    cache: Cache, tmp_path: Path
) -> None:
    record = trained(cache, tmp_path)
    log_p_NC, log_q_NC, labels_N = by_hand(cache, tmp_path)
    nats = float(-log_q_NC.gather(1, labels_N[:, None]).mean())
    assert record.cross_entropy == pytest.approx(nats, rel=1e-5)
    assert record.perplexity == pytest.approx(math.exp(nats), rel=1e-5)
    alike = (log_p_NC.argmax(dim=1) == log_q_NC.argmax(dim=1)).double().mean()
    assert record.agreement == pytest.approx(float(alike))
    assert 0 < record.agreement < 1


def test_every_epoch_has_the_figures(cache: Cache, tmp_path: Path) -> None:
    record = trained(cache, tmp_path, epochs=3)
    metrics = read_metrics(tmp_path / "gpt")
    assert metrics is not None
    assert metrics.select("perplexity", "kl", "agreement").null_count().row(0) == (0, 0, 0)
    assert metrics.schema["kl"] == pl.Float64
    assert metrics["kl"][-1] == record.kl
    assert metrics["kl"][-1] < metrics["kl"][0]


@pytest.mark.parametrize("which", ["cache", "sparse"])
def test_streamed_held_rows_have_the_figures_of_resident_ones(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    of: Cache = request.getfixturevalue(which)
    device, stream = (trained(of, tmp_path / at, data={"residency": at}) for at in ("device", "stream"))
    assert (device.kl, device.agreement, device.perplexity) == (stream.kl, stream.agreement, stream.perplexity)


def test_a_student_of_labels_alone_is_measured_against_the_only_teacher_there_is(cache: Cache, tmp_path: Path) -> None:
    record = trained(cache, tmp_path, objective=[LABELS])
    assert record.kl is not None
    assert record.kl_over == "teacher right, over all classes"
    assert record.identity["teachers"] == {}


def test_of_several_teachers_none_is_chosen_for_a_student_of_labels_alone(tmp_path: Path) -> None:
    two = counting_cache(tmp_path, counting_teacher(), counting_teacher("left", step=2), rows=40)
    record = trained(two, tmp_path / "runs", objective=[LABELS])
    assert (record.kl, record.agreement, record.kl_over) == (None, None, None)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    left = counting_teacher("left", step=2, scale=3.0, extra=SPARSE)
    return counting_cache(tmp_path_factory.mktemp("two"), counting_teacher(scale=3.0), left, rows=40)


BOTH = [{"loss": "kd", "teacher": name, "weight": 0.5} for name in ("left", "right")]


def test_a_student_of_several_teachers_has_the_figures_beside_each(two: Cache, tmp_path: Path) -> None:
    record = trained(two, tmp_path, objective=BOTH)
    of = record.by_teacher
    assert list(of) == ["left", "right"]
    log_p_NC, log_q_NC, _ = by_hand(two, tmp_path)
    assert of["right"].kl == pytest.approx(float((log_p_NC.exp() * (log_p_NC - log_q_NC)).sum(1).mean()), abs=NATS)
    tops = {"right": log_p_NC.argmax(1), "left": by_hand(two, tmp_path, step=2)[0].argmax(1)}
    for name, top_N in tops.items():
        assert of[name].agreement == pytest.approx(float((top_N == log_q_NC.argmax(1)).double().mean()))
    assert (record.kl, record.agreement) == (of["left"].kl, of["left"].agreement)
    assert (of["right"].over, of["left"].over) == (
        "all classes",
        "its largest class and the rest as one bucket, which is never more than over all",
    )
    metrics = read_metrics(tmp_path / "gpt")
    assert metrics is not None
    assert metrics["kl beside right"][-1] == of["right"].kl


def test_of_one_teacher_nothing_is_apart(cache: Cache, tmp_path: Path) -> None:
    record = trained(cache, tmp_path)
    assert record.by_teacher == {}
    assert "by_teacher" not in json.loads((tmp_path / "gpt/run.json").read_text())


def test_compare_and_the_page_have_the_figures_beside_each_teacher(
    two: Cache, program: Program, tmp_path: Path
) -> None:
    record = trained(two, tmp_path / "runs", objective=BOTH)
    out = program("student", "compare", tmp_path / "runs").out
    assert "by teacher:" in out
    lines = [line.split() for line in out[out.index("by teacher:") :].splitlines()]
    for name in ("left", "right"):
        own, at = record.by_teacher[name], lines.index(["teacher", name])
        assert lines[at + 1] == ["1", "gpt", f"{own.kl:.3g}", f"{100 * (own.agreement or 0):.2f}"]
    assert "not with the others" not in out
    assert max(map(len, out.splitlines())) <= 80
    page = render(gather(tmp_path / "runs"))
    assert "<h3>By teacher</h3>" in page
    assert f'data-value="{record.by_teacher["right"].kl}"' in page
    (found,) = json.loads(program("student", "compare", tmp_path / "runs", "--json").out)["compared"]
    assert found["beside_teachers"][1] == {"teacher": "right", "kl_over": "all classes"}
    means = found["settings"][0]["by_teacher"]["right"]["means"]
    assert means == {"kl": record.by_teacher["right"].kl, "agreement": record.by_teacher["right"].agreement}


def test_progress_names_each_teacher(two: Cache, tmp_path: Path) -> None:
    told: list[events.Event] = []
    train_students(request(two, tmp_path, small_gpt(objective=BOTH)), report=told.append)
    *_, done = (event for event in told if isinstance(event, events.EpochDone))
    of = done.metrics.by_teacher
    assert _figures(done.metrics).endswith(f"KL {of['left'].kl:.3g} from left, {of['right'].kl:.3g} from right")


def test_a_teacher_that_nobody_can_be_measured_against_is_told(tmp_path: Path) -> None:
    drawn = counting_teacher("drawn", step=2, scale=3.0, extra=DRAWS)
    mixed = counting_cache(tmp_path, counting_teacher(scale=3.0), drawn, rows=40)
    objective = [BOTH[1], {"loss": "random_sampling", "teacher": "drawn", "weight": 0.5}]
    asked = request(mixed, tmp_path / "runs", small_gpt(objective=objective))
    (note,) = (note for note in dry_run(asked).warnings if note.startswith("note: no figures"))
    assert note.startswith(
        "note: no figures beside teacher drawn on the held rows: of teacher drawn is stored: 4 draws"
    )
    assert list(train_students(asked).records[0].by_teacher) == ["right"]


def test_a_run_in_steps_is_compared_in_steps(program: Program, two: Cache, tmp_path: Path) -> None:
    trained(two, tmp_path / "runs", objective=BOTH, epochs=None, max_steps=3)
    ended = program("student", "compare", tmp_path / "runs")
    lines = [line.split() for line in ended.out.splitlines()]
    (place,) = (place for place, line in enumerate(lines) if "steps" in line)
    assert lines[place + 2][lines[place].index("steps") - len(lines[place])] == "3"
    assert "epochs" not in ended.out  # of a job that says max_steps
    page = render(gather(tmp_path / "runs"))
    assert (">steps</button>" in page, ">epochs</button>" in page) == (True, False)


def test_of_runs_without_figures_by_teacher_it_is_told_with_which_they_are_compared(
    program: Program, two: Cache, tmp_path: Path
) -> None:
    """As those of before there were such figures."""
    trained(two, tmp_path / "runs", objective=BOTH)
    files = LocalObjects(tmp_path / "runs/gpt")
    values = json.loads(files.get("run.json"))
    values.pop("by_teacher")
    files.put("run.json", seal_json({key: value for key, value in values.items() if key != "digest"}))
    ended = program("student", "compare", tmp_path / "runs")
    told = "students of teachers left, right are compared with left alone, not with the others"
    assert told in " ".join(ended.out.split())
    assert "by teacher:" not in ended.out
    assert told[1:] in render(gather(tmp_path / "runs"))
    (compared,) = json.loads(program("student", "compare", tmp_path / "runs", "--json").out)["compared"]
    assert compared["alone_of_several"] == [{"teachers": ["left", "right"], "compared_with": "left"}]


def test_draws_alone_have_no_divergence_and_that_is_told(tmp_path: Path) -> None:
    drawn = counting_cache(tmp_path, counting_teacher(scale=3.0, extra=DRAWS), rows=40)
    asked = request(drawn, tmp_path / "runs", small_gpt(objective=[{"loss": "random_sampling", "teacher": "right"}]))
    why = (
        "of teacher right is stored: 4 draws from all classes, at temperature 1; "
        "label's probability and sum of squares at temperature 1, entropy, moments"
    )
    assert dry_run(asked).warnings == (f"note: no KL to a teacher on the held rows: {why}",)
    told: list[events.Event] = []
    record = train_students(asked, report=told.append).records[0]
    assert [event for event in told if isinstance(event, events.NotBesideTeacher)] == [
        events.NotBesideTeacher(("gpt",), why)
    ]
    assert (record.kl, record.agreement, record.kl_over) == (None, None, None)
    assert record.perplexity is not None


def test_a_teacher_that_lacks_held_shards_costs_no_training(tmp_path: Path) -> None:
    partial = counting_cache(tmp_path, counting_teacher(scale=3.0), rows=40)
    held = partial.samples().of("counting").filter(pl.col("split") == "validation")["shard"].unique().sort().to_list()
    (tmp_path / f"cache/counting/right/plain/{held[-1]:05d}.parquet").unlink()
    asked = request(partial, tmp_path / "runs", small_gpt(objective=[LABELS]), allow_partial=True)
    assert dry_run(asked).warnings == (
        f"note: no KL to a teacher on the held rows: teacher right lacks 1 of {len(held)} held shards",
    )
    assert train_students(asked).records[0].kl is None


def test_compare_and_the_page_tell_perplexity_and_divergence_and_over_what_they_are(
    program: Program, sparse: Cache, tmp_path: Path
) -> None:
    kd = [{"loss": "kd", "teacher": "right", "temperature": 1.0}]
    names = {"labels": [LABELS], "kd": kd}
    students = [
        small_gpt(f"{name}-seed_{seed}", seed=seed, objective=terms) for name, terms in names.items() for seed in (0, 1)
    ]
    train_students(request(sparse, tmp_path, *students))
    ended = program("student", "compare", tmp_path)
    assert ended.code == 0
    assert max(map(len, ended.out.splitlines())) <= 80
    text = " ".join(ended.out.split())
    for told in (
        "perplexity, exp of the cross-entropy in nats",
        "KL: of a student from teacher right, over its largest class and the rest as one bucket, which is never more "
        "than over all; mean over held tokens",
    ):
        assert told in text
    (found,) = compare_settings(gather_runs(tmp_path))
    _, labels_BL = held_tokens(sparse)
    labelled = int((labels_BL >= 0).sum())
    assert labelled < labels_BL.numel()
    assert f"over the same {labelled:,} tokens" in text  # tokens without a label have no part in a difference
    values = as_values(found)
    best = values["settings"][0]["means"]
    assert values["kl_over"] == found.kl_over != []
    assert best["perplexity"] == pytest.approx(math.exp(best["cross_entropy"]), rel=0.05)  # a mean of powers
    line = next(line for line in ended.out.splitlines() if line.startswith("1 "))
    assert f"{best['kl']:.3g}" in line.split()
    assert f"{best['perplexity']:.4g}" in line.split()
    page = render(gather(tmp_path))
    assert ">perplexity</button>" in page
    assert ">KL, nats</button>" in page
    assert f"{best['kl']:.4f}" in page


def test_a_run_from_before_there_were_these_figures_is_compared_and_drawn(cache: Cache, tmp_path: Path) -> None:
    trained(cache, tmp_path)
    folder = tmp_path / "gpt"
    record = json.loads((folder / "run.json").read_text())
    for name in ("kl", "perplexity", "kl_over"):
        del record[name]
    sealed = {name: value for name, value in record.items() if name != "digest"}
    (folder / "run.json").write_bytes(seal_json(sealed))
    metrics = read_metrics(folder)
    assert metrics is not None
    older = metrics.drop("kl", "perplexity").to_arrow()
    LocalObjects(folder).put("metrics.parquet", seal(older, {"format_version": 2}))
    (run,) = gather_runs(tmp_path)
    assert run.faults == ()
    assert run.history["kl"].null_count() == len(run.history)
    assert render(gather(tmp_path))
