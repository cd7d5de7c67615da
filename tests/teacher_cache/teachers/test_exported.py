"""Programs that torch exported, and TorchScript: code, which runs where a job names its digest, and nowhere else."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from storage.errors import BadTeacher, BadWeights
from teacher_cache.building.memory import project_worker
from teacher_cache.building.prepared import BuildRequest
from teacher_cache.building.survey import prepare_build
from teacher_cache.teachers.loading import load_teacher
from teacher_cache.teachers.options import TeacherOptions
from tests.teacher_cache.toys import build, digits, write_digits, write_job

CPU = torch.device("cpu")


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x.flatten(1)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A folder with a model as an exported program, one with a fixed batch, and as TorchScript."""
    folder, model, one = tmp_path_factory.mktemp("saved"), Toy().eval(), torch.rand(2, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        any_batch = ({0: torch.export.Dim("batch", min=1)},)
        torch.export.save(torch.export.export(model, (one,), dynamic_shapes=any_batch), folder / "toy.pt2")
        torch.export.save(torch.export.export(model, (one,)), folder / "fixed.pt2")
        torch.jit.trace(model, one).save(folder / "toy.pt")
    return folder, model


def load(path: Path, kind: str = "exported", **fields: Any) -> Any:
    """Load a file that is trusted, by the digest that its refusal tells."""
    options = TeacherOptions(name="toy", kind=kind, path=path, **fields)
    with pytest.raises(BadWeights, match="does not trust it") as refused:
        load_teacher(options, CPU)
    return load_teacher(options.model_copy(update={"trust": refused.value.found}), CPU)


@pytest.mark.parametrize(("name", "kind"), [("toy.pt2", "exported"), ("toy.pt", "torchscript")])
def test_a_trusted_program_says_what_its_model_says(
    saved: tuple[Path, nn.Module], tmp_path: Path, name: str, kind: str
) -> None:
    folder, model = saved
    section = f'[[teacher]]\nname = "toy"\nkind = "{kind}"\npath = "{folder}/{name}"\nbatch_size = 16\n'
    dataset = write_digits(tmp_path, 24, rows_per_shard=24)
    with pytest.raises(BadWeights, match="does not trust it") as refused:
        build(write_job(tmp_path, dataset, section))
    trust = str(refused.value.do).partition("    #")[0]  # as the error has it
    job = write_job(tmp_path, dataset, section + trust)
    build(job)
    stored = Cache.open(str(tmp_path / "cache")).read_targets("digits", "toy", 0)["logits"]
    with torch.inference_mode():
        expected = torch.cat([model(rows) for rows in (torch.from_numpy(digits(24)[0]) / 255).split(16)])
    assert np.allclose(stored, expected, atol=1e-6)


def test_layers_of_an_exported_program_have_their_names(saved: tuple[Path, nn.Module]) -> None:
    folder, model = saved
    teacher = load(folder / "toy.pt2", features={"hidden": {"layer": "body.1"}})
    heard: list[torch.Tensor] = []
    model.body[1].register_forward_hook(lambda _module, _inputs, output: heard.append(output))
    images = torch.rand(3, 1, 8, 8)
    with torch.inference_mode():
        model(images)
        teacher.model(images)
    assert torch.equal(teacher._captured["hidden"], heard[0])


def test_layers_of_torchscript_are_refused(saved: tuple[Path, nn.Module]) -> None:
    with pytest.raises(BadTeacher, match="cannot be tapped"):
        load(saved[0] / "toy.pt", "torchscript", features={"hidden": {"layer": "body.1"}})


def test_the_memory_of_both_is_bounded_beforehand(saved: tuple[Path, nn.Module], tmp_path: Path) -> None:
    for name, kind in (("toy.pt2", "exported"), ("toy.pt", "torchscript")):
        options = load(saved[0] / name, kind)._options
        read = read_job(write_job(tmp_path, write_digits(tmp_path, 16), ""), CacheJob)
        request = BuildRequest(cache=read.cache, sources=read.sources, teachers=(options,), job="job.toml")
        assert project_worker(prepare_build(request)).activations > 0


def test_a_program_of_a_fixed_batch_is_asked_in_such_batches(saved: tuple[Path, nn.Module]) -> None:
    folder, model = saved
    teacher, images = load(folder / "fixed.pt2").model, torch.rand(5, 1, 8, 8)
    with torch.inference_mode():
        for rows in (5, 4, 1):  # of two at a time
            assert torch.allclose(teacher(images[:rows]), model(images[:rows]), atol=1e-6)
    with pytest.raises(BadTeacher, match="takes 2 rows at a time cannot be tapped") as refused:
        load(folder / "fixed.pt2", features={"hidden": {"layer": "body.1"}})
    assert "dynamic_shapes" in str(refused.value)


def doctored(path: Path, change: Any) -> bytes:
    """Return an exported program with a member changed: (name, content) → content."""
    target = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as written:
        for each in source.infolist():
            written.writestr(each.filename, change(each.filename, source.read(each)))
    return target.getvalue()


def test_a_program_of_a_later_torch_is_named(saved: tuple[Path, nn.Module], tmp_path: Path) -> None:
    def later(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        about = json.loads(content)
        return json.dumps(about | {"torch_version": "9.1", "schema_version": {"major": 99, "minor": 3}}).encode()

    path = tmp_path / "later.pt2"
    path.write_bytes(doctored(saved[0] / "toy.pt2", later))
    with pytest.raises(BadTeacher, match="cannot load") as refused:
        load(path)
    assert "a program of torch 9.1, schema 99.3" in str(refused.value)


class Executes:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "executed")


def test_what_a_program_hides_is_not_executed_before_it_is_trusted(
    saved: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    proof, path = tmp_path / "proof", tmp_path / "doctored.pt2"
    hidden = pickle.dumps(Executes(proof))
    path.write_bytes(doctored(saved[0] / "toy.pt2", lambda name, content: hidden if "sample" in name else content))
    for trust in (None, f"sha256:{'0' * 64}"):
        with pytest.raises(BadWeights, match="does not trust it"):
            load_teacher(TeacherOptions(name="toy", kind="exported", path=path, trust=trust), CPU)
    assert not proof.exists()


@pytest.mark.parametrize("kind", ["exported", "torchscript"])
def test_what_is_no_program_is_told(tmp_path: Path, kind: str) -> None:
    (tmp_path / "toy.pt2").write_bytes(b"nothing of the kind")
    with pytest.raises(BadTeacher, match="cannot load"):
        load(tmp_path / "toy.pt2", kind)
