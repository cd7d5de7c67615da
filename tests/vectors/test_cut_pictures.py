"""Students that are made from a classifier of images in a folder of transformers, or trained as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage.cache import Cache
from storage.errors import BadRequest
from student_train.running.train import train_students
from student_train.using.answering import load_answerer
from student_train.using.exporting.transformers import export_transformers
from teacher_cache.making.sizes import Target
from teacher_cache.making.ways.copying import CopyOptions
from teacher_cache.making.ways.lowrank import LowRankOptions
from teacher_cache.making.ways.prune import PruneOptions
from teacher_cache.making.ways.quantize import QuantizeOptions
from tests.teacher_cache.toys import build, write_digits, write_job
from tests.vectors.test_cut_encoders import made
from tests.vectors.toys import request, vector_student


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small ViT, a job and its whole cache; do not change it."""
    import transformers

    folder = tmp_path_factory.mktemp("vit")
    config = transformers.AutoConfig.for_model(
        "vit", hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32, image_size=8,
        patch_size=4, num_channels=1, num_labels=10, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(folder / "vit")
    said = {"do_normalize": True, "image_mean": [0.25], "image_std": [0.5], "do_rescale": True}
    (folder / "vit/preprocessor_config.json").write_text(json.dumps(said))
    teacher = '[[teacher]]\nname = "bert"\nkind = "transformers"\npath = "vit"\n'
    assert build(write_job(folder, write_digits(folder, 60), teacher)).exit_code == 0
    return folder


WAYS: dict[str, tuple[str, Any]] = {
    "every second block": ("copy", CopyOptions(2, None, 1.0, "first")),
    "heads": ("prune", PruneOptions(Target("parameters", 0.85), "taylor", 0, "heads")),
    "neurons": ("prune", PruneOptions(Target("parameters", 0.8), "magnitude", 0, "neurons")),
    "units": ("prune", PruneOptions(Target("flops", 0.7), "taylor", 0)),
    "blocks": ("prune", PruneOptions(Target("parameters", 0.8), "activation", 0, "blocks")),
    "lower rank": ("lowrank", LowRankOptions(Target("parameters", 0.8), None, "plain")),
}


def logits(folder: Path, student: Any) -> torch.Tensor:
    cache = Cache.open(str(folder / "cache"))
    (name,) = cache.catalogue().datasets
    with torch.inference_mode():
        said_BC: torch.Tensor = student(torch.from_numpy(np.asarray(cache.read_inputs(name, 0))).float() / 255)
    return said_BC


def test_a_copy_says_what_the_teacher_says_behind_its_normalisation(folder: Path, tmp_path: Path) -> None:
    found, student = made(folder, tmp_path / "out", "copy", CopyOptions(None, None, 1.0, "first"))
    assert found.agreement == 1.0
    assert (student.blueprint.mean, student.blueprint.std) == ((0.25,), (0.5,))
    cache = Cache.open(str(folder / "cache"))
    (name,) = cache.catalogue().datasets
    stored_BC = torch.from_numpy(cache.read_targets(name, "bert", 0)["logits"])
    torch.testing.assert_close(logits(folder, student), stored_BC, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_each_way_makes_a_smaller_classifier_that_is_loaded_again(folder: Path, tmp_path: Path, way: str) -> None:
    found, student = made(folder, tmp_path / "out", *WAYS[way])
    assert found.size.parameters < found.whole.parameters
    assert logits(folder, student).isfinite().all()
    if way == "heads":
        network: Any = student.network
        assert {layer.attention.q_proj.weight.shape[0] for layer in network.model.vit.layers} == {8}
    if way in ("neurons", "units"):
        changed = {change.layer.rpartition(".")[2] for change in student.blueprint.changes}
        assert {"fc1", "fc2"} <= changed
        assert not {"q_proj", "k_proj", "v_proj"} & changed
        assert [told for told in found.told if "layers.0.attention.v_proj" in told and "--of heads" in told]


def test_it_is_quantised(folder: Path, tmp_path: Path) -> None:
    found, student = made(folder, tmp_path / "out", "quantize", QuantizeOptions("channel"))
    assert found.size.bytes < 0.6 * found.whole.bytes
    assert found.agreement > 0.6
    assert logits(folder, student).isfinite().all()


def test_one_is_trained_from_its_folder_and_answers(folder: Path, tmp_path: Path) -> None:
    cache = Cache.open(str(folder / "cache"))
    (name,) = cache.catalogue().datasets
    asked = vector_student(
        architecture="transformers",
        path=str(folder / "vit"),
        options={"num_hidden_layers": 1},
        objective=[{"loss": "kd", "teacher": "bert"}],
        epochs=1,
    )
    train, held = f"{name}/train", f"{name}/train"
    (record,) = train_students(request(cache, tmp_path / "runs", asked, train=train, validation=held)).records
    assert record.status == "finished"
    answerer = load_answerer(tmp_path / "runs" / "small", device="cpu")
    assert logits(folder, answerer.student).shape == (16, 10)
    with pytest.raises(BadRequest, match="has no equal in transformers") as refused:
        export_transformers(tmp_path / "runs" / "small", tmp_path / "out")
    assert refused.value.found == "classes of pictures"
    odd = vector_student(
        architecture="transformers", path=str(folder / "vit"), options={"image_size": 16},
        objective=[{"loss": "kd", "teacher": "bert"}], epochs=1,
    )  # fmt: skip
    with pytest.raises(BadRequest, match="pictures are others than those of the dataset"):
        train_students(request(cache, tmp_path / "odd", odd, train=train, validation=held))
