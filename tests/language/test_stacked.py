"""Students of tokens as one program end where they would have ended alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from storage.cache import Cache
from storage.errors import Interrupted
from student_train.feed.batches import Batch
from student_train.losses.together import labels_and_kd
from student_train.options.sections import FleetOptions, StudentOptions
from student_train.preparing.request import Request
from student_train.run_files.records import RunRecord
from student_train.running.events import Event, StackingChosen, StackTakenApart
from student_train.running.train import train_students
from student_train.stepping.stack.model import StackedModel
from student_train.stepping.stack.stack import Stack
from student_train.stepping.state import TrainState
from student_train.students import Blueprint
from tests.language.toys import END, IDS, TEACHERS, counting_teacher, small_gpt, write_counting
from tests.language.toys import request as request_of
from tests.student_train.running.test_loop import stop_after
from tests.teacher_cache.toys import build, write_job

LABELS: dict[str, Any] = {"loss": "labels"}
KD: dict[str, Any] = {"loss": "kd", "teacher": "sparse", "temperature": 2.0}
DENSE_KD = KD | {"teacher": "dense", "temperature": 1.0}
SGD = {"optimizer": "sgd", "learning_rate": 0.05}
UNTIED = {"options": {"depth": 1, "width": 8, "heads": 2, "tied": False}}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Random documents of a vocabulary of ten; some positions, of what is after the last, do not count."""
    folder = tmp_path_factory.mktemp("tokens")
    random = np.random.default_rng(0)
    np.save(folder / "t.npy", random.integers(0, IDS, 60 * 12 - 5).astype(np.uint16))
    (folder / "counting.py").write_text(TEACHERS)
    section = (
        f'[[dataset]]\nname = "t"\nkind = "tokens"\npath = "t.npy"\nvocabulary = {IDS}\nblock = 12\n'
        f"end_of_text = {END}\nvalidation = 0.25\nrows_per_shard = 16\n"
    )
    sparse = counting_teacher("sparse", scale=3.0, extra=SPARSE)
    report = build(write_job(folder, section, counting_teacher("dense", scale=2.0), sparse))
    assert report.exit_code == 0, report
    return Cache.open(str(folder / "cache"))


SPARSE = 'encoding = { kind = "sparse", k = 3, n = 4, values = "8bit", temperatures = [1.0, 2.0] }'


def train(
    cache: Cache, runs: Path, students: list[StudentOptions], stacking: str = "always", **keywords: Any
) -> tuple[list[RunRecord], list[bool]]:
    """Train; return the records, and for each group of students whether it was stacked."""
    records, choices = train_and_tell(cache, runs, students, stacking, **keywords)
    return records, [choice.stacked for choice in choices]


def train_and_tell(
    cache: Cache, runs: Path, students: list[StudentOptions], stacking: str, dataset: str = "t", **keywords: Any
) -> tuple[list[RunRecord], list[StackingChosen]]:
    """Train on a dataset; return the records, and what was chosen for each group of students."""
    events: list[Event] = []
    asked = request_of(cache, runs, *students, train=f"{dataset}/train", validation=f"{dataset}/validation")
    fleet = FleetOptions.model_validate({"stacking": stacking})
    summary = train_students(
        Request(asked.cache, runs, asked.data, asked.students, "cpu", fleet), report=events.append, **keywords
    )
    for error in summary.errors.values():
        raise error
    assert [event.why for event in events if isinstance(event, StackTakenApart)] == []
    return list(summary.records), [event for event in events if isinstance(event, StackingChosen)]


def assert_same(one: Path, other: Path, students: list[StudentOptions]) -> None:
    for each in students:
        found, expected = (load_file(runs / each.name / "student.safetensors") for runs in (one, other))
        for name, values in expected.items():
            assert torch.allclose(found[name], values, rtol=1e-3, atol=1e-4), (each.name, name)


@pytest.mark.parametrize(
    ("common", "own"),
    [
        (SGD | {"objective": [LABELS]}, [{"seed": 0}, {"seed": 1}, {"seed": 2}]),
        (SGD | UNTIED | {"objective": [LABELS]}, [{"learning_rate": 0.02}, {"weight_decay": 0.1}]),
        (
            {"objective": [LABELS, DENSE_KD], "clip_norm": 0.5},
            [{"seed": 0}, {"ema_decay": None}, {"learning_rate": 0.003}],
        ),
        ({"objective": [LABELS, KD], "ema_decay": 0.9}, [{"seed": 4}, {"ema_decay": 0.5}]),
        (SGD, [{"objective": [LABELS | {"weight": w}, KD | {"temperature": t}]} for w, t in ((1, 1), (2, 2), (3, 2))]),
    ],
)
def test_stacked_students_of_tokens_end_as_alone(
    cache: Cache, tmp_path: Path, common: dict[str, Any], own: list[dict[str, Any]]
) -> None:
    students = [small_gpt(f"s{i}", **common | each) for i, each in enumerate(own)]
    records, stacked = train(cache, tmp_path / "stacked", students)
    assert stacked == [True]
    alone, stacked = train(cache, tmp_path / "alone", students, stacking="never")
    assert stacked == []
    assert_same(tmp_path / "stacked", tmp_path / "alone", students)
    for figure in ("accuracy", "cross_entropy", "calibration_error"):
        found, expected = ([getattr(record, figure) for record in each] for each in (records, alone))
        assert found == pytest.approx(expected, rel=1e-2, abs=1e-2), figure


@pytest.mark.parametrize("size", [1, 7])
def test_a_stack_computes_its_losses_on_a_part_of_the_positions_at_a_time(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    students = [small_gpt(f"s{i}", objective=[LABELS, KD], seed=i, **SGD) for i in range(2)]
    train(cache, tmp_path / "whole", students)
    seen: list[int] = []
    monkeypatch.setattr("student_train.stepping.stack.step.part_size", lambda *_: size)
    scores = StackedModel.scores

    def noting(self: StackedModel, hidden_MND: torch.Tensor) -> torch.Tensor:
        seen.append(hidden_MND.shape[1])
        return scores(self, hidden_MND)

    monkeypatch.setattr(StackedModel, "scores", noting)
    train(cache, tmp_path / "parts", students)
    assert set(seen) <= set(range(1, size + 1))
    assert size in seen
    assert_same(tmp_path / "parts", tmp_path / "whole", students)


def test_an_interrupted_stack_of_tokens_goes_on_to_the_same_weights(cache: Cache, tmp_path: Path) -> None:
    students = [small_gpt(f"s{i}", objective=[LABELS, KD], seed=i) for i in range(3)]
    train(cache, tmp_path / "whole", students)
    with pytest.raises(Interrupted):
        train(cache, tmp_path / "parts", students, stop=stop_after(12 + 4))
    _, stacked = train(cache, tmp_path / "parts", students, stacking="auto")
    assert stacked == [True]
    for each in students:
        found, expected = (
            (tmp_path / how / each.name / "student.safetensors").read_bytes() for how in ("parts", "whole")
        )
        assert found == expected


def test_a_batch_of_padding_changes_no_student() -> None:
    """Nothing counts in it; weights that decay, and momentum that goes on, would tell."""
    options = small_gpt(objective=[LABELS], weight_decay=0.5, **SGD)
    spec = Blueprint(
        architecture="gpt", options=options.options, num_classes=IDS, input_shape=(12,), mean=None, std=None
    )
    states = [
        TrainState.fresh(options.model_copy(update={"seed": seed}), spec, {}, torch.device("cpu")) for seed in (0, 1)
    ]
    stack = Stack(states)
    tokens_BL = torch.randint(0, IDS, (4, 12), generator=torch.Generator().manual_seed(0))
    stack.step([Batch(tokens_BL, tokens_BL)], [0.05, 0.05], 0, measure_shares=False)
    before = [copy.deepcopy(state.tensors()) for state in states]
    nothing = Batch(tokens_BL, torch.full_like(tokens_BL, -1))
    for measure_shares in (False, True):
        step = stack.step([nothing], [0.05, 0.05], 1, measure_shares=measure_shares)
        assert step.rows == 0
        assert torch.equal(step.loss, torch.zeros(2))
    for state, kept in zip(states, before, strict=True):
        assert all(torch.equal(values, kept[name]) for name, values in state.tensors().items())


def test_dropout_in_a_gpt_is_not_stacked(cache: Cache, tmp_path: Path) -> None:
    options = {"depth": 1, "width": 8, "heads": 2, "dropout": 0.1}
    students = [small_gpt(f"s{i}", objective=[LABELS], seed=i, options=options) for i in range(2)]
    assert train(cache, tmp_path, students)[1] == [False]


@pytest.mark.parametrize("stacking", ["always", "never"])
def test_terms_computed_together_teach_what_they_teach_apart(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stacking: str
) -> None:
    students = [small_gpt(f"s{i}", objective=[LABELS, KD | {"temperature": 1.0}], seed=i, **SGD) for i in range(2)]
    train(cache, tmp_path / "apart", students, stacking="never")
    calls: list[int] = []

    def counting(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(1)
        return labels_and_kd(*given)

    monkeypatch.setattr("student_train.losses.together.FEWEST_CLASSES", 0)
    monkeypatch.setattr("student_train.losses.together.labels_and_kd", counting)
    train(cache, tmp_path / "together", students, stacking=stacking)
    assert calls
    assert_same(tmp_path / "together", tmp_path / "apart", students)


HINT: dict[str, Any] = {"loss": "hint", "teacher": "deep", "feature": "mid"}


@pytest.fixture(scope="module")
def with_features(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Return a cache with a layer of a teacher."""
    folder = tmp_path_factory.mktemp("features")
    teacher = '[[teacher]]\nname = "deep"\nfactory = "counting.py:deep"\n'
    feature = '[teacher.features.mid]\nlayer = "table"\npool = "none"\n'
    section = write_counting(folder)
    (folder / "counting.py").write_text(TEACHERS + DEEP)
    report = build(write_job(folder, section, teacher + feature))
    assert report.exit_code == 0, report
    return Cache.open(str(folder / "cache"))


DEEP = """

class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.out = nn.Embedding(10, 6), nn.Linear(6, 10)

    def forward(self, tokens):
        return self.out(self.table(tokens))


def deep():
    return Deep()
"""


@pytest.mark.parametrize("optimizer", [SGD, {"learning_rate": 0.01}])
def test_layers_above_all_losses_do_not_decay_in_a_stack(
    with_features: Cache, tmp_path: Path, optimizer: dict[str, Any]
) -> None:
    objective = [HINT | {"student_layer": "network.body.blocks.0"}]
    options = {"depth": 2, "width": 8, "heads": 2}
    common = optimizer | {"objective": objective, "options": options, "weight_decay": 0.5}
    students = [small_gpt(f"s{i}", seed=i, **common) for i in range(2)]
    assert train(with_features, tmp_path / "stacked", students, dataset="counting")[1] == [True]
    train(with_features, tmp_path / "alone", students, "never", dataset="counting")
    assert_same(tmp_path / "stacked", tmp_path / "alone", students)


def test_students_that_learn_from_different_layers_are_different_stacks(with_features: Cache, tmp_path: Path) -> None:
    options = {"depth": 2, "width": 8, "heads": 2}
    students = [
        small_gpt(
            f"s{i}", seed=i, objective=[HINT | {"student_layer": f"network.body.blocks.{i % 2}"}], options=options
        )
        for i in range(4)
    ]
    _, chosen = train_and_tell(with_features, tmp_path, students, "always", "counting")
    assert [(choice.students, choice.stacked) for choice in chosen] == [(("s0", "s2"), True), (("s1", "s3"), True)]


def test_a_heads_buffers_are_each_students_own(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SCALED)
    own = {"architecture": f"{tmp_path}/own.py:scaled", "options": {}, "objective": [LABELS]}
    students = [small_gpt(f"s{i}", seed=i, **own, **SGD) for i in range(2)]
    assert train(cache, tmp_path / "stacked", students)[1] == [True]
    train(cache, tmp_path / "alone", students, stacking="never")
    assert_same(tmp_path / "stacked", tmp_path / "alone", students)


SCALED = """
import torch
from torch import nn


class Head(nn.Module):
    def __init__(self, ids):
        super().__init__()
        self.out = nn.Linear(8, ids)
        self.register_buffer("scale", 1 + 2 * torch.rand(ids))

    def forward(self, hidden):
        return self.out(hidden) * self.scale


def scaled(num_classes, input_shape):
    network = nn.Sequential()
    network.add_module("body", nn.Embedding(num_classes, 8))
    network.add_module("head", Head(num_classes))
    return network
"""


@pytest.mark.slow
@pytest.mark.parametrize("stacking", ["always", "never"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch's own compiler
def test_compiled_students_of_tokens_with_several_terms_learn_the_same(
    cache: Cache, tmp_path: Path, stacking: str
) -> None:
    students = [small_gpt(f"s{i}", objective=[LABELS, KD], seed=i, compile=True, **SGD) for i in range(2)]
    train(cache, tmp_path / "compiled", students, stacking)
    train(cache, tmp_path / "eager", [each.model_copy(update={"compile": False}) for each in students], "never")
    assert_same(tmp_path / "compiled", tmp_path / "eager", students)
