"""Students that are made from a classifier of images in a folder of transformers, or trained as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from storage.cache import Cache
from storage.errors import BadRequest
from storage.inputs.policy import ImagePolicy
from student_train.running.train import train_students
from student_train.students import Blueprint, load_student
from student_train.using.answering import load_answerer
from student_train.using.exporting.hub.pictures import processor_of
from student_train.using.exporting.hub.transformers import export_transformers
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
    if way == "units":  # beside the channels of its convolution, by a graph that takes an attention's width for neurons
        assert [told for told in found.told if "layers.0.attention.v_proj" in told and "--of heads" in told]


def test_it_is_quantised(folder: Path, tmp_path: Path) -> None:
    found, student = made(folder, tmp_path / "out", "quantize", QuantizeOptions("channel"))
    assert found.size.bytes < 0.6 * found.whole.bytes
    assert found.agreement > 0.6
    assert logits(folder, student).isfinite().all()


def trained_from(folder: Path, runs: Path, cut: Path) -> None:
    cache = Cache.open(str(folder / "cache"))
    (name,) = cache.catalogue().datasets
    asked = vector_student(
        architecture=None, options={}, start=str(cut), objective=[{"loss": "kd", "teacher": "bert"}], epochs=1
    )
    train_students(request(cache, runs, asked, train=f"{name}/train", validation=f"{name}/train"))


@pytest.mark.parametrize("way", ["every second block", "neurons"])
def test_what_was_cut_is_exported_as_a_folder_with_its_image_processor(folder: Path, tmp_path: Path, way: str) -> None:
    import transformers

    made(folder, tmp_path / "cut", *WAYS[way])
    trained_from(folder, tmp_path / "runs", tmp_path / "cut")
    found = export_transformers(tmp_path / "runs" / "small", tmp_path / "out")
    assert found.kind == "ViTForImageClassification"
    assert "logits of 60 held rows of digits/train" in found.told[0]
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    if way == "neurons":
        assert model.config.intermediate_size < 32
    else:
        assert model.config.num_hidden_layers == 2
    assert tuple(model.config.id2label.values()) == tuple(str(digit) for digit in range(10))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert [*processor.image_mean, *processor.image_std] == [0.25, 0.5]
    cache = Cache.open(str(folder / "cache"))
    pictures = [Image.fromarray(pixels_CHW[0]) for pixels_CHW in np.asarray(cache.read_inputs("digits", 0))]
    with torch.inference_mode():
        said_BC = model(**processor(pictures, return_tensors="pt")).logits
    own_BC = logits(folder, load_student(tmp_path / "runs" / "small"))
    torch.testing.assert_close(said_BC, own_BC, atol=1e-5, rtol=1e-4)
    assert export_transformers(tmp_path / "runs" / "small", tmp_path / "out").done_before


@pytest.mark.parametrize("way", ["heads", "lower rank"])
def test_layers_that_no_config_builds_are_not_exported_as_a_folder(folder: Path, tmp_path: Path, way: str) -> None:
    made(folder, tmp_path / "cut", *WAYS[way])
    trained_from(folder, tmp_path / "runs", tmp_path / "cut")
    with pytest.raises(BadRequest, match="has no equal in transformers") as refused:
        export_transformers(tmp_path / "runs" / "small", tmp_path / "out")
    assert str(refused.value.found).startswith("layer model.vit.")
    assert not (tmp_path / "out").exists()


SAID: dict[str, Any] = {"channels": 3, "size": 24, "orientation": "exif", "background": [255, 255, 255]}


@pytest.mark.parametrize(
    ("said", "shape", "expected", "told"),
    [
        ({}, (3, 24, 24), {"do_resize": True, "resample": 2, "size": {"height": 24, "width": 24}}, "24×24 by bilinear"),
        ({"filter": "lanczos"}, (3, 24, 24), {"resample": 1, "do_convert_rgb": True}, "by lanczos"),
        (
            {"resize": "crop"},
            (3, 24, 24),
            {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
            "the middle of other shapes",
        ),
        ({"resize": "fit"}, (3, 24, 24), {"do_resize": False}, 'no image processor has resize = "fit"'),
        ({"resize": "crop", "size": [24, 30]}, (3, 24, 30), {"do_resize": False}, "must have 30×24 pixels"),
        ({"size": None}, (3, 24, 24), {"do_resize": False}, "must have 24×24 pixels"),
    ],
)
def test_an_image_processor_says_what_the_dataset_does_to_pictures(
    said: dict[str, Any], shape: tuple[int, ...], expected: dict[str, Any], told: str
) -> None:
    blueprint = Blueprint(
        architecture="cnn", num_classes=2, input_shape=shape, mean=(0.5,), std=(0.25,), source=SAID | said
    )
    found, text = processor_of(blueprint)
    assert found | expected == found
    assert (found["image_mean"], found["image_std"]) == ([0.5] * 3, [0.25] * 3)
    assert told in text
    assert text.endswith("not a background")


@pytest.mark.parametrize(("resize", "filter_"), [("stretch", "bilinear"), ("stretch", "bicubic"), ("crop", "bilinear")])
def test_pictures_of_any_size_become_nearly_the_same_inputs_there(resize: str, filter_: str, tmp_path: Path) -> None:
    import transformers

    draw = np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(256, size=(5, 7, 3), dtype=np.uint8))
    picture = coarse.resize((70, 50), Image.Resampling.BICUBIC)
    source = SAID | {"resize": resize, "filter": filter_}
    blueprint = Blueprint(
        architecture="cnn", num_classes=2, input_shape=(3, 24, 24), mean=(0.0,), std=(1.0,), source=source
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor_of(blueprint)[0]))
    there = transformers.AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt")["pixel_values"]
    own = torch.from_numpy(ImagePolicy.promised(source).sized(picture).copy()) / 255
    assert float((there[0] - own).abs().mean()) < (
        0.004 if resize == "stretch" else 0.04
    )  # a grey value; a pixel aside


def test_a_job_cuts_one_by_the_numbers_of_its_layers(folder: Path, tmp_path: Path) -> None:
    cache = Cache.open(str(folder / "cache"))
    asked = vector_student(
        architecture="transformers",
        path=str(folder / "vit"),
        options={"num_hidden_layers": 2},
        start={"layers": [0, 2]},
        objective=[{"loss": "kd", "teacher": "bert"}],
        epochs=1,
        learning_rate=1e-9,
    )
    train_students(request(cache, tmp_path / "runs", asked, train="digits/train", validation="digits/train"))
    cut = made(folder, tmp_path / "cut", *WAYS["every second block"])[1]
    found = logits(folder, load_student(tmp_path / "runs" / "small"))
    torch.testing.assert_close(found, logits(folder, cut), atol=1e-4, rtol=1e-3)


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
    odd = vector_student(
        architecture="transformers", path=str(folder / "vit"), options={"image_size": 16},
        objective=[{"loss": "kd", "teacher": "bert"}], epochs=1,
    )  # fmt: skip
    with pytest.raises(BadRequest, match="pictures are others than those of the dataset"):
        train_students(request(cache, tmp_path / "odd", odd, train=train, validation=held))
