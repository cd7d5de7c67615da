"""A model whose layers are in several places says what it says in one; tried on CPU and disk alone."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from storage.errors import BadRequest
from teacher_cache.building.memory import _sizes
from teacher_cache.building.prepared import BuildRequest
from teacher_cache.building.survey import prepare_build
from teacher_cache.teachers.loading import load_teacher
from teacher_cache.teachers.options import TeacherOptions
from tests.teacher_cache.teachers.test_transformers import IDS, TEACHER, TEXT, edit, folder, options, saved
from tests.teacher_cache.toys import build, write_job

__all__ = ["folder", "saved"]  # fixtures

CPU = torch.device("cpu")
MAPS: dict[str, Any] = {
    "auto": "auto",
    "cpu": {"": "cpu"},
    "disk": {"": "disk"},
    "a layer on disk": {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    },
    "the tied head on disk": {
        "model.embed_tokens": "disk",
        "model.layers": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "disk",
    },
}
FEATURES = 'features = { last = { layer = "model.layers.1", pool = "none", dtype = "fp32" } }\n'


@pytest.fixture
def offloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    (path := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def built(folder: Path, name: str, section: str) -> dict[str, torch.Tensor]:
    report = build(write_job(folder.parent, TEXT, TEACHER + FEATURES + section, cache=name))
    assert report.exit_code == 0, report
    cache = Cache.open(str(folder.parent / name))
    stored = cache.read_targets("verse", "llama", 0, names=("logits", "feature/last"))
    return {name: torch.from_numpy(values) for name, values in stored.items()}


@pytest.mark.parametrize("places", MAPS.values(), ids=MAPS)
def test_layers_in_several_places_say_what_they_say_in_one(folder: Path, offloaded: Path, places: Any) -> None:
    said = '"auto"' if places == "auto" else "{ " + ", ".join(f'"{k}" = "{v}"' for k, v in places.items()) + " }"
    spread, whole = built(folder, "spread", f"device_map = {said}\n"), built(folder, "whole", "")
    for name, values in whole.items():
        torch.testing.assert_close(spread[name], values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("places", MAPS.values(), ids=MAPS)
def test_its_weights_are_digested_as_they_are_loaded(folder: Path, offloaded: Path, places: Any) -> None:
    teacher = load_teacher(options(folder, device_map=places), CPU)
    assert teacher.weights == load_teacher(options(folder), CPU).weights


def test_what_is_on_the_disk_is_in_no_memory_and_its_folder_goes_with_the_teacher(
    folder: Path, offloaded: Path
) -> None:
    teacher = load_teacher(options(folder, device_map=MAPS["a layer on disk"]), CPU)
    on_disk = {name for name, value in teacher.model.named_parameters() if value.device.type == "meta"}
    assert on_disk
    assert all(name.startswith("model.layers.1.") for name in on_disk), on_disk
    (weights,) = offloaded.iterdir()
    assert any(weights.iterdir())
    del teacher
    gc.collect()
    assert not any(offloaded.iterdir())


@pytest.mark.parametrize("places", [MAPS["a layer on disk"], MAPS["the tied head on disk"], MAPS["disk"]])
@pytest.mark.parametrize("scaled", [False, True])
def test_its_head_is_asked_apart_from_its_body(folder: Path, offloaded: Path, places: Any, scaled: bool) -> None:
    if scaled:  # behind its head, so that the whole model is its own head
        edit(
            folder / "config.json", model_type="granite", architectures=["GraniteForCausalLM"], logits_scaling=2.0,
            embedding_multiplier=1.0, residual_multiplier=1.0, attention_multiplier=0.3,
        )  # fmt: skip
    cache = folder.parent / "cache"
    build(write_job(folder.parent, TEXT))
    dataset = Cache.open(str(cache)).dataset("verse")
    rows = torch.from_numpy(Cache.open(str(cache)).read_inputs("verse", 0))[:4]
    teacher, whole = (load_teacher(options(folder, device_map=each), CPU) for each in (places, None))
    torch.testing.assert_close(teacher(rows, dataset)[0], whole(rows, dataset)[0], rtol=1e-5, atol=1e-5)
    assert teacher._parts["verse"] is not None


def test_where_layers_are_is_not_part_of_the_promise(folder: Path) -> None:
    assert options(folder, device_map="auto").promise(IDS).fingerprint == options(folder).promise(IDS).fingerprint


def test_a_worker_is_bounded_as_if_all_were_in_its_memory(folder: Path, offloaded: Path) -> None:
    bounds = []
    for section in ("", 'device_map = { "" = "disk" }\n'):
        job = read_job(path := write_job(folder.parent, TEXT, TEACHER + section), CacheJob)
        request = BuildRequest(
            cache=job.cache, sources=job.sources, teachers=tuple(job.teacher), views=job.views, job=str(path)
        )
        prepared = prepare_build(request)
        (stage,) = (stage for stage in prepared.stages if stage.teacher is not None)
        bounds.append(_sizes(stage, prepared))
    assert bounds[0].weights == bounds[1].weights > 0
    assert bounds[0].activations == bounds[1].activations > 0
    assert not any(offloaded.iterdir())


def test_its_remarks_stay_off_the_terminal(folder: Path, offloaded: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_teacher(options(folder, device_map=MAPS["a layer on disk"]), CPU)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("places", "what", "found"),
    [
        ({"model.layer.0": "cpu", "model": "cpu"}, "does not have", "model.layer.0"),
        ({"model": "cpu", "lm_head": "cuda:7"}, "a GPU that cannot be used here", "cuda:7, of 0"),
        ({"model": "cpu", "model.norm": "disk", "lm_head": "cpu"}, "twice where they are", "model.norm, and"),
        ({"": "cpu", "lm_head": "disk"}, "twice where they are", "lm_head, and"),
        ({"model.layers.0": "disk"}, "not where they are", "model.layers.1"),
    ],
)
def test_a_place_that_is_not_there_is_refused(
    folder: Path, offloaded: Path, places: dict[str, str], what: str, found: str
) -> None:
    with pytest.raises(BadRequest, match=what) as caught:
        load_teacher(options(folder, device_map=places), CPU)
    assert found in str(caught.value.found)
    assert not any(offloaded.iterdir())


@pytest.mark.parametrize("places", ["balanced", {"": "tpu"}, {"": "cuda"}, {}, 0])
def test_another_kind_of_place_is_refused(tmp_path: Path, places: Any) -> None:
    with pytest.raises(ValueError, match="device_map"):
        options(tmp_path, device_map=places)


def test_a_factory_puts_its_model_nowhere_else() -> None:
    with pytest.raises(ValueError, match="`device_map` belongs to a `transformers`"):
        TeacherOptions(name="t", factory="m:f", device_map="auto")
