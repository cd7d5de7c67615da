"""What a job leaves open: a temperature, and whether a layer is compared with a feature itself."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from storage.cache import Cache
from storage.errors import BadRequest, StaleCache
from storage.format.sealed import read_json, seal_json
from storage.inputs.arguments import to_float
from student_train.options.sections import StudentOptions
from student_train.preparing.dry_run import dry_run
from student_train.running import events
from student_train.running.train import train_students
from student_train.students import load_student
from tests.student_train.losses.toys import compare, feature_loss, normal
from tests.student_train.toys import HINT, KD, LABELS, Recipe, request_of, student, write_cache

PROJECTED = ["hint", "cosine", "vid"]
WIDTH = 15  # of the toy feature of rows with three channels


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return write_cache(tmp_path_factory.mktemp("coloured"), Recipe(shape=(3, 6, 6)))


def learner(name: str = "a", *, loss: str = "cosine", hidden: int = WIDTH, **term: Any) -> StudentOptions:
    options: dict[str, Any] = {"hidden": [hidden]}
    return student(name, options=options, objective=[LABELS, HINT | {"loss": loss} | term], epochs=30)


def cosine_as_exported(cache: Cache, runs: Path, name: str = "a") -> float:
    """Return the mean cosine of an exported student's layer and the feature, over the rows of a shard."""
    model = load_student(runs / name)
    seen: list[torch.Tensor] = []
    model.get_submodule("network.hidden1").register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        model(to_float(torch.from_numpy(cache.read_inputs("toy", 0))))
    feature = cache.read_targets("toy", "sage", 0, names=["feature/pooled"])["feature/pooled"]
    return float(functional.cosine_similarity(seen[0], torch.from_numpy(feature).float(), dim=1).mean())


def test_a_student_of_the_teachers_width_ends_near_its_embedding_as_it_is_exported(
    coloured: Cache, tmp_path: Path
) -> None:
    asked = request_of(coloured, tmp_path, learner("open"), learner("mapped", projection=True))
    assert train_students(asked).errors == {}
    ended = {name: cosine_as_exported(coloured, tmp_path, name) for name in ("open", "mapped")}
    assert ended["open"] > 0.95
    assert ended["mapped"] < 0.9


@pytest.mark.parametrize("loss", PROJECTED)
def test_without_a_projection_the_layer_itself_is_compared(loss: str) -> None:
    made = feature_loss(loss, (6,), (6,))
    assert [name for name, _ in made.named_parameters() if name.startswith("projection")] == []
    layer = normal(5, 6)
    assert compare(made, layer, layer) <= compare(made, layer, layer + 1)
    mapped = feature_loss(loss, (6,), (6,), projection=True)
    assert mapped.projection.weight.shape == (6, 6)
    assert feature_loss(loss, (4,), (6,)).projection.weight.shape == (6, 4)


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"), [((4, 3, 3), (4, 2, 2)), ((4, 3, 3), (4,)), ((7, 4), (4,))]
)
def test_a_map_is_pooled_to_the_features_size_and_not_projected(
    student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]
) -> None:
    made = feature_loss("hint", student_shape, teacher_shape)
    assert list(made.parameters()) == []
    assert made.project(normal(2, *student_shape)).shape == (2, *teacher_shape)


@pytest.mark.parametrize("loss", PROJECTED)
def test_no_projection_where_widths_differ_is_refused_with_both(loss: str, coloured: Cache, tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as refused:
        dry_run(request_of(coloured, tmp_path, learner(loss=loss, hidden=7, projection=False)))
    error = refused.value
    assert error.found == f"the layer has shape (7,), the feature ({WIDTH},)"
    assert error.expected == f"one width, as projection = false wants: the layer has 7, the feature {WIDTH}"


def test_what_was_decided_is_told_in_the_plan_in_the_record_and_in_the_job_that_repeats_it(
    coloured: Cache, tmp_path: Path
) -> None:
    asked = request_of(coloured, tmp_path, learner())
    note = f"cosine:sage/pooled: projection = false, for layer and feature are both {WIDTH} wide"
    assert dry_run(asked).warnings == (f"note: {note}",)
    told: list[events.Event] = []
    record = train_students(asked, report=told.append).records[0]
    assert [event for event in told if isinstance(event, events.LeftOpen)] == [events.LeftOpen(("a",), note)]
    assert record.identity["student"]["objective"][1]["projection"] is False
    job = tomllib.loads((tmp_path / "a/job.toml").read_text())
    assert job["student"][0]["objective"][1]["projection"] is False
    again = [StudentOptions.model_validate(section) for section in job["student"]]
    assert train_students(request_of(coloured, tmp_path, *again)).records[0] == record  # it is the same run


def make_older(run: Path) -> None:
    """Leave out of a record what a record of before would not say."""
    record = read_json(run / "run.json")
    record["identity"]["student"]["objective"][1].pop("projection", None)
    (run / "run.json").write_bytes(seal_json(record))


def test_a_run_from_before_whose_map_was_learned_is_not_taken_for_one_without(coloured: Cache, tmp_path: Path) -> None:
    train_students(request_of(coloured, tmp_path, learner()))
    make_older(tmp_path / "a")
    with pytest.raises(StaleCache, match="projection"):
        dry_run(request_of(coloured, tmp_path, learner()))
    (foreseen,) = dry_run(request_of(coloured, tmp_path, learner(projection=True))).students
    assert foreseen.action == "skip"  # what it was, said


def test_a_run_from_before_where_widths_differ_is_still_that_run(coloured: Cache, tmp_path: Path) -> None:
    train_students(request_of(coloured, tmp_path, learner(hidden=7)))
    make_older(tmp_path / "a")
    for options in (learner(hidden=7), learner(hidden=7, projection=True)):
        (foreseen,) = dry_run(request_of(coloured, tmp_path, options)).students
        assert foreseen.action == "skip"


def test_images_keep_the_temperature_that_kd_always_had(coloured: Cache, tmp_path: Path) -> None:
    left_out = {key: value for key, value in KD.items() if key != "temperature"}
    asked = request_of(coloured, tmp_path, student("a", objective=[left_out]))
    assert dry_run(asked).warnings == ()
    record = train_students(asked).records[0]
    assert record.identity["student"]["objective"][0]["temperature"] == 4.0
