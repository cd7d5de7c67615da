from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch.nn import functional

from storage.cache import Cache
from storage.errors import DivergedLoss, Interrupted
from storage.inputs.arguments import to_float
from student_train.feed.batches import ArrayKey, Needs
from student_train.feed.selection import select_rows
from student_train.options.sections import StudentOptions
from student_train.run_files.records import RunRecord, read_record
from student_train.running.events import EpochDone, Event, Progress
from student_train.running.train import train_students
from student_train.stepping.average import WeightAverage
from student_train.stepping.gradients.rows import Step
from student_train.stepping.tally import Tally
from student_train.students import Blueprint, build_student, load_student
from tests.student_train.toys import HINT, KD, LABELS, epoch_order, request_of, student

EVERYTHING: dict[str, Any] = {
    "objective": [LABELS | {"weight": 0.5, "smoothing": 0.1}, KD, HINT],
    "options": {"hidden": [16], "dropout": 0.2},
    "ema_decay": 0.9,
    "clip_norm": 1.0,
    "warmup_epochs": 0.5,
    "patience_epochs": 3,
}


def train(cache: Cache, runs: Path, options: StudentOptions, **keywords: Any) -> RunRecord:
    summary = train_students(request_of(cache, runs, options, **keywords.pop("data", {})), **keywords)
    for error in summary.errors.values():
        raise error
    return summary.records[0]


def weights(runs: Path, name: str = "a") -> bytes:
    return (runs / name / "student.safetensors").read_bytes()


def stop_after(steps: int) -> Callable[[], bool]:
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls == steps

    return stop


def test_the_loop_is_the_one_that_a_reader_would_write(toy_cache: Cache, tmp_path: Path) -> None:
    options = student(objective=[LABELS, KD], weight_decay=0.0, schedule="constant")
    train(toy_cache, tmp_path, options)

    selection = select_rows(toy_cache.samples(), "toy/train", Needs(labels=True))
    rows = [start * 50 + row for start, part in enumerate(selection.rows) for row in part.tolist()]
    inputs = torch.cat([torch.from_numpy(toy_cache.read_inputs("toy", s).copy()) for s in range(5)])[rows]
    logits = torch.cat([torch.from_numpy(toy_cache.read_targets("toy", "sage", s)["logits"].copy()) for s in range(5)])[
        rows
    ]
    torch.manual_seed(0)
    spec = Blueprint(
        architecture="mlp", options={"hidden": [16]}, num_classes=4, input_shape=(1, 6, 6), mean=(0.5,), std=(0.5,)
    )
    model = build_student(spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    for epoch in range(3):
        order = torch.from_numpy(epoch_order(selection.shard_sizes_S, seed=0, epoch=epoch, window_shards=16))
        for batch in order.split(32):
            student_BC = model(to_float(inputs[batch]))
            labels = functional.cross_entropy(student_BC, torch.from_numpy(selection.labels_N)[batch])
            p, log_q = (logits[batch].float() / 2).softmax(1), (student_BC / 2).log_softmax(1)
            loss = labels + 4 * (p * (p.log() - log_q)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    found = load_student(tmp_path / "a").state_dict()
    for name, expected in model.state_dict().items():
        assert torch.allclose(found[name], expected, atol=1e-5), name


@pytest.mark.parametrize("objective", [[LABELS], [KD], [LABELS, KD, HINT]])
def test_a_student_learns(toy_cache: Cache, tmp_path: Path, objective: list[dict[str, Any]]) -> None:
    record = train(toy_cache, tmp_path, student(objective=objective, epochs=8))
    assert record.accuracy is not None
    assert record.accuracy > 0.9


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "cnn", "options": {"widths": [4, 8]}},
        {"architecture": "resnet", "options": {"depth": 8, "width": 4}, "optimizer": "sgd"},
        {"autocast": "bf16"},
        {"optimizer": "sgd", "momentum": 0.0},
        EVERYTHING,
    ],
)
def test_two_runs_give_the_same_bytes(toy_cache: Cache, tmp_path: Path, options: dict[str, Any]) -> None:
    for runs in ("one", "two"):
        train(toy_cache, tmp_path / runs, student(**options))
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


def test_another_seed_gives_another_student(toy_cache: Cache, tmp_path: Path) -> None:
    for seed in (0, 1):
        train(toy_cache, tmp_path / str(seed), student(seed=seed))
    assert weights(tmp_path / "0") != weights(tmp_path / "1")


@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_residency_does_not_change_what_is_computed(toy_cache: Cache, tmp_path: Path, options: dict[str, Any]) -> None:
    for residency in ("device", "stream"):
        train(toy_cache, tmp_path / residency, student(**options), data={"residency": residency, "window_shards": 2})
    assert weights(tmp_path / "device") == weights(tmp_path / "stream")


@pytest.mark.parametrize(
    ("residency", "steps"),
    [*(("device", steps) for steps in (1, 4, 6, 7, 8, 9, 15, 24)), ("stream", 3), ("stream", 15)],
)
def test_a_stopped_run_goes_on_to_the_very_same_weights(
    toy_cache: Cache, tmp_path: Path, steps: int, residency: str
) -> None:
    # 6 steps an epoch and 2 evaluation batches: stops in the middle of epochs, at their ends, and while evaluating.
    # `stop` is asked once for each shard that is loaded, too, where rows are resident.
    data = {"residency": residency, "window_shards": 2}
    options = student(**EVERYTHING)
    train(toy_cache, tmp_path / "whole", options, data=data)
    loading = 10 if residency == "device" else 0
    with pytest.raises(Interrupted):
        train(toy_cache, tmp_path / "stopped", options, data=data, stop=stop_after(loading + steps))
    train(toy_cache, tmp_path / "stopped", options, data=data)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_a_stopped_run_reports_the_same_figures_as_a_whole_one(toy_cache: Cache, tmp_path: Path) -> None:
    options = student(**EVERYTHING)
    whole = train(toy_cache, tmp_path / "whole", options)
    with pytest.raises(Interrupted):
        train(toy_cache, tmp_path / "stopped", options, stop=stop_after(20))
    stopped = train(toy_cache, tmp_path / "stopped", options)
    assert stopped.accuracy == whole.accuracy
    timed = ("seconds", "rows_per_s")
    one, other = (pl.read_parquet(tmp_path / r / "a/metrics.parquet").drop(timed) for r in ("whole", "stopped"))
    assert one.equals(other)


def test_metrics_have_a_row_per_epoch_and_a_column_per_term(toy_cache: Cache, tmp_path: Path) -> None:
    train(toy_cache, tmp_path, student(objective=[LABELS | {"weight": 0.5}, KD]))
    table = pl.read_parquet(tmp_path / "a/metrics.parquet")
    assert table["epoch"].to_list() == [1, 2, 3]
    total = table["term labels"] * 0.5 + table["term kd:sage"]
    assert table["train_loss"].to_list() == pytest.approx(total.to_list(), rel=1e-5)
    shares = table["share labels"] + table["share kd:sage"]
    assert (shares.to_list(), table["share labels"].min() > 0) == (pytest.approx([1.0] * 3), True)


def test_the_record_is_of_the_exported_weights(toy_cache: Cache, tmp_path: Path) -> None:
    record = train(toy_cache, tmp_path, student(**EVERYTHING, epochs=6))
    selection = select_rows(toy_cache.samples(), "toy/validation", Needs(labels=True))
    inputs = torch.cat([torch.from_numpy(toy_cache.read_inputs("toy", s).copy()) for s in range(5)])[4::5]
    logits_BC = load_student(tmp_path / "a")(to_float(inputs))
    labels_B = torch.from_numpy(selection.labels_N)
    assert record.accuracy == (logits_BC.argmax(1) == labels_B).double().mean().item()
    assert record.cross_entropy == pytest.approx(functional.cross_entropy(logits_BC, labels_B).item(), rel=1e-5)


def test_patience_ends_a_run_that_no_longer_improves(toy_cache: Cache, tmp_path: Path) -> None:
    record = train(toy_cache, tmp_path, student(epochs=30, patience_epochs=2, options={"hidden": [64]}))
    assert record.epoch is not None
    assert (record.epochs, record.epochs < 30) == (record.epoch + 2, True)


def test_a_student_without_a_teacher_has_no_agreement(toy_cache: Cache, tmp_path: Path) -> None:
    assert train(toy_cache, tmp_path, student()).agreement is None


def test_agreement_is_with_the_teacher_of_the_objective(toy_cache: Cache, tmp_path: Path) -> None:
    record = train(toy_cache, tmp_path, student(objective=[KD], epochs=8))
    samples = toy_cache.samples().of("toy", ["sage"]).filter(pl.col("split") == "validation")
    inputs = torch.cat([torch.from_numpy(toy_cache.read_inputs("toy", s).copy()) for s in range(5)])[4::5]
    chosen = load_student(tmp_path / "a")(to_float(inputs)).argmax(1)
    assert record.agreement == (chosen == torch.tensor(samples["sage_top"].to_list())).double().mean().item()


def test_a_diverged_student_says_so_and_keeps_its_last_good_checkpoint(toy_cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(DivergedLoss, match="student a diverged in epoch") as refusal:
        train(toy_cache, tmp_path, student(optimizer="sgd", learning_rate=1000.0, epochs=9))
    assert refusal.value.found == "training loss = nan"
    record = read_record(tmp_path / "a")
    assert record is not None
    assert (record.status, record.error) == ("failed", str(refusal.value))


def test_the_learned_projection_is_not_exported(toy_cache: Cache, tmp_path: Path) -> None:
    train(toy_cache, tmp_path, student(objective=[HINT, LABELS]))
    assert {name.split(".")[0] for name in load_student(tmp_path / "a").state_dict()} == {"normalise", "network"}


def test_a_projection_is_trained_with_the_student(toy_cache: Cache, tmp_path: Path) -> None:
    train(toy_cache, tmp_path, student(objective=[HINT | {"weight": 10.0}], epochs=20, learning_rate=0.02))
    losses = pl.read_parquet(tmp_path / "a/metrics.parquet")["train_loss"]
    assert losses[-1] < losses[0] / 10


def test_the_average_follows_the_weights_slowly() -> None:
    spec = Blueprint(architecture="mlp", options={"hidden": []}, num_classes=1, input_shape=(1,), mean=(0,), std=(1,))
    model = build_student(spec)
    torch.nn.init.zeros_(model.network.head.weight)
    average = WeightAverage(model, decay=0.75)
    torch.nn.init.ones_(model.network.head.weight)
    found = []
    for step in (0, 1000, 1001):
        average.update(step)
        found.append(average.student.network.head.weight.item())
    assert found == pytest.approx([0.9, 0.925, 0.94375])  # (1 + 0) / (10 + 0), then 0.75


def test_a_tally_is_the_mean_over_rows() -> None:
    tally = Tally(1, ["x"], torch.device("cpu"))
    for rows, loss in ((3, 1.0), (1, 5.0)):
        tally.add(Step(torch.tensor(loss), [torch.tensor(10 * loss)], None, rows))
    assert tally.means() == [[2.0, 20.0]]


def test_a_tally_does_not_depend_on_when_it_is_read() -> None:
    losses = torch.rand(300, generator=torch.Generator().manual_seed(0))
    one, other = (Tally(1, ["x"], torch.device("cpu")) for _ in range(2))
    for i, loss in enumerate(losses):
        one.add(Step(loss, [loss], None, 7))
        other.add(Step(loss, [loss], None, 7))
        if i % 50 == 10:
            other.means()
    assert one.means() == other.means()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch's own compiler
def test_a_compiled_student_learns_the_same(toy_cache: Cache, tmp_path: Path) -> None:
    options = {"objective": [LABELS, HINT]}
    train(toy_cache, tmp_path / "eager", student(**options))
    train(toy_cache, tmp_path / "compiled", student(**options, compile=True))
    eager, compiled = (load_student(tmp_path / run / "a").state_dict() for run in ("eager", "compiled"))
    assert all(torch.allclose(eager[name], compiled[name], atol=1e-3) for name in eager)


def test_steps_are_reported_with_rates(toy_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("student_train.running.cohort.REPORT_EVERY_S", 0.0)
    events: list[Event] = []
    train(toy_cache, tmp_path, student(), report=events.append)
    steps = [event for event in events if isinstance(event, Progress)]
    assert [event.done_steps for event in steps] == list(range(1, 19))
    assert {event.total_steps for event in steps} == {18}
    assert [event.metrics.epoch for event in events if isinstance(event, EpochDone)] == [1, 2, 3]


def test_reporting_does_not_change_the_weights(
    toy_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(toy_cache, tmp_path / "quiet", student())
    monkeypatch.setattr("student_train.running.cohort.REPORT_EVERY_S", 0.0)
    train(toy_cache, tmp_path / "loud", student())
    assert weights(tmp_path / "quiet") == weights(tmp_path / "loud")


def test_a_key_is_written_as_a_path() -> None:
    assert str(ArrayKey("sage", "logits")) == "sage/logits"
