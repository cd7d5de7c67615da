"""Exported students: the same answers from the file alone, what goes along, nothing half written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from storage.errors import BadRequest
from student_train.run_files.records import Measured
from student_train.using.evaluating.evaluate import Evaluation
from student_train.using.exporting.models import check_same, compare
from student_train.using.exporting.quantizing import _changes
from student_train.using.exporting.rows import ComparedRows
from tests.conftest import Program
from tests.student_train.using.toys import DATASET, write_pictures
from tests.teacher_cache.toys import build, write_job

pytestmark = pytest.mark.slow

WITHOUT_TORCH = """
import json, sys
import numpy as np, onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1])
about = json.loads(session.get_modelmeta().custom_metadata_map["stillroom.preprocessing"])
side = about["samples"]["size"]
images = [Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BILINEAR) for path in sys.argv[2:]]
pixels = np.stack([np.asarray(image).transpose(2, 0, 1) for image in images]).astype(np.float32) / 255
(logits,) = session.run(None, {"inputs": pixels})
print(*[about["classes"][number] for number in logits.argmax(1)])
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of exports of the run, by format."""
    from student_train.using.exporting.models import export_model

    folder = tmp_path_factory.mktemp("exported")
    export_model(run, folder / "int8", "onnx", quantize="int8")
    for form in ("onnx", "pt2", "safetensors"):
        export_model(run, folder / form, form)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("new"), ("green", "red"), 3, seed=9)


def predictions(program: Program, place: Path, pictures: Path) -> list[tuple[str, float]]:
    ended = program("student", "predict", place, pictures, "--json")
    assert ended.code == 0, ended.err
    return [(row["class"], row["probability"]) for row in json.loads(ended.out)["predictions"]]


def test_predict_says_of_an_export_what_it_says_of_the_run(
    program: Program, run: Path, exported: Path, pictures: Path
) -> None:
    expected = predictions(program, run, pictures)
    for place in (exported / "onnx", exported / "onnx/model.onnx", exported / "safetensors"):
        found = predictions(program, place, pictures)
        assert [name for name, _ in found] == [name for name, _ in expected]
        assert [p for _, p in found] == pytest.approx([p for _, p in expected], abs=1e-5)
    assert [name for name, _ in predictions(program, exported / "int8", pictures)] == [name for name, _ in expected]


def test_onnxruntime_alone_answers_with_what_is_in_the_file(exported: Path, pictures: Path) -> None:
    images = sorted(map(str, pictures.glob("*/*.png")))
    command = [sys.executable, "-c", WITHOUT_TORCH, str(exported / "onnx/model.onnx"), *images]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout.split() == ["green"] * 3 + ["red"] * 3, ended.stderr


def test_what_goes_along_is_in_the_file_and_beside_it(exported: Path) -> None:
    import onnx

    said = {entry.key: entry.value for entry in onnx.load(exported / "onnx/model.onnx").metadata_props}
    about = json.loads(said["stillroom.preprocessing"])
    assert about["samples"]["size"] == 8
    assert (about["classes"], about["inputs"], about["input_shape"]) == (["blue", "green", "red"], "pixels", [3, 8, 8])
    for form in ("onnx", "int8", "pt2", "safetensors"):
        assert json.loads((exported / form / "preprocessing.json").read_text()) == about
        card = (exported / form / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: ")
        assert "\npipeline_tag: image-classification\n" in card
        assert '[[student]]\nname = "small"' in card
        assert "| the data | |" in card


def test_an_export_that_answers_with_nan_is_refused() -> None:
    rows = ComparedRows([torch.ones(1, 3)], "a row")
    difference, largest = compare(lambda given: given, lambda given: given * torch.nan, rows)
    with pytest.raises(BadRequest, match="does not say what the student says"):
        check_same(difference, largest, "a row")
    one_class_never = torch.tensor([[1.0, -torch.inf]])  # tolerance is no share of infinity
    with pytest.raises(BadRequest, match="does not say what the student says"):
        check_same(*compare(lambda given: one_class_never, lambda given: one_class_never + 1, rows), "a row")


def test_int8_tells_how_much_the_figures_change_and_is_made_of_8_bits(exported: Path) -> None:
    import onnx

    card = (exported / "int8/README.md").read_text()
    assert "- accuracy " in card
    assert "- before it was rounded, logits of " in card
    apart = re.search(r"in int8: at most ([^ ]+) apart", card)
    assert apart is not None
    assert float(apart[1]) > 1e-4
    assert " % on " in card
    graph = onnx.load(exported / "int8/model.int8.onnx").graph
    kinds = {node.op_type for node in graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert sum(tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4 for tensor in graph.initializer) >= 2


def test_int8_is_written_where_no_held_row_has_a_label_and_says_that_nothing_was_measured(
    run: Path, tmp_path: Path
) -> None:
    from student_train.using.exporting.models import export_model

    there = write_pictures(tmp_path / "classed", ("red", "green"), 20)
    (tmp_path / "pictures").mkdir()
    for number, picture in enumerate(sorted(there.glob("*/*.png"))):
        picture.rename(tmp_path / "pictures" / f"{number}.png")
    assert build(write_job(tmp_path, DATASET + 'classes = ["blue", "green", "red"]\n')).exit_code == 0
    cache = str(tmp_path / "cache")
    told = export_model(run, tmp_path / "out", "onnx", quantize="int8", cache=cache).told
    assert "figures are not measured: no row of " in told[-1]
    assert (tmp_path / "out/model.int8.onnx").exists()


def test_a_program_that_can_run_code_is_not_loaded_by_predict(program: Program, exported: Path, pictures: Path) -> None:
    ended = program("student", "predict", exported / "pt2", pictures)
    assert ended.code == 2
    assert "can run whatever code is in it" in ended.err


def test_the_same_export_again_does_nothing_and_another_there_is_refused(
    program: Program, run: Path, exported: Path
) -> None:
    again = program("student", "export", run, "--format", "onnx", "-o", exported / "onnx")
    assert (again.code, "exported before" in again.out) == (0, True)
    assert program("student", "export", run, "--format", "safetensors", "-o", exported / "onnx").code == 2
    assert not [path for path in exported.iterdir() if path.name.startswith(".")]


def test_evaluation_takes_an_onnx_file_too(program: Program, exported: Path, pictures: Path) -> None:
    found = json.loads(program("student", "eval", exported / "onnx", pictures, "--json").out)
    assert found["figures"]["accuracy"] == 1.0


def test_a_change_in_agreement_says_with_whom() -> None:
    def measured(agreement: float) -> Evaluation:
        return Evaluation("rows", Measured(accuracy=0.5, agreement=agreement), 40, None, "big", None, ())

    assert _changes(measured(0.75), measured(0.5)) == [
        "accuracy 50.00 → 50.00 % on 40 held rows",
        "agreement with big 75.00 → 50.00 % on 40 held rows",
    ]
