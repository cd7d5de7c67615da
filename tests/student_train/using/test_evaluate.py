"""Figures on data that a student never saw: classes by name, nothing passed over, figures as in training."""

from __future__ import annotations

import json
from pathlib import Path
from threading import current_thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from storage.errors import BadRequest
from storage.inputs.policy import ImagePolicy
from student_train.run_files.records import read_record
from student_train.students import Blueprint
from student_train.using.answering import load_answerer
from student_train.using.evaluating import elsewhere
from student_train.using.evaluating.elsewhere import source_like
from student_train.using.evaluating.matching import match_classes
from student_train.using.evaluating.rows import other_keys
from tests.conftest import Program
from tests.student_train.using.toys import write_pictures


def evaluated(program: Program, *arguments: object, code: int = 0) -> dict:
    ended = program("student", "eval", *arguments, "--json")
    assert ended.code == code, ended.err
    return dict(json.loads(ended.out))


def test_the_held_rows_have_the_figures_of_training(program: Program, run: Path) -> None:
    record = read_record(run)
    assert record is not None
    figures = evaluated(program, run, "pictures/validation")["figures"]
    for name in ("accuracy", "cross_entropy", "calibration_error"):
        assert figures[name] == pytest.approx(getattr(record, name), abs=1e-9)


def test_a_folder_of_other_pictures_is_measured_by_the_names_of_its_classes(
    program: Program, run: Path, tmp_path: Path
) -> None:
    # two of three, so that their numbers are others than the student's
    folder = write_pictures(tmp_path / "new", ("green", "red"), 6, seed=5)
    found = evaluated(program, run, folder)
    assert found["figures"]["accuracy"] == 1.0
    assert found["rows"] == 12
    assert found["notes"] == ["new has no blue, which the student knows"]
    assert found["confusion"] == {"green": {"green": 6}, "red": {"red": 6}}
    assert [(each["class"], each["rows"], each["f1"]) for each in found["classes"]] == [
        ("blue", 0, None),
        ("green", 6, 1.0),
        ("red", 6, 1.0),
    ]
    low, high = found["interval"]
    assert low < 1.0 == high


def test_a_class_that_the_student_does_not_know_is_refused_or_left_out(
    program: Program, run: Path, tmp_path: Path
) -> None:
    folder = write_pictures(tmp_path / "new", ("green",), 3)
    (folder / "green").rename(folder / "emerald")
    write_pictures(folder, ("blue",), 2)
    refused = evaluated(program, run, folder, code=2)
    assert refused["found"] == "emerald, which it does not know"
    found = evaluated(program, run, folder, "--only-known")
    assert found["rows"] == 2
    assert found["notes"][0] == "left out: rows of emerald, which the student does not know"


def test_a_picture_that_does_not_decode_is_told_and_ends_with_3(program: Program, run: Path, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "new", ("green", "red"), 2)
    (folder / "red/000.png").write_bytes(b"no picture")
    found = evaluated(program, run, folder, code=3)
    assert found["rows"] == 3
    assert [each["sample_id"] for each in found["unreadable"]] == ["red/000.png"]


def test_pictures_are_decoded_on_threads_and_counted_in_their_order(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pictures(tmp_path / "new", ("green", "red"), 5)
    (folder / "green/003.png").write_bytes(b"no picture")
    decode, on = ImagePolicy.pixels, set()

    def noted(policy: ImagePolicy, payload: bytes) -> np.ndarray:
        on.add(current_thread().name.rstrip("0123456789"))
        return decode(policy, payload)

    monkeypatch.setattr(ImagePolicy, "pixels", noted)
    monkeypatch.setattr(elsewhere, "AT_ONCE", 4)
    answerer = load_answerer(run, device="cpu")
    rows = elsewhere.rows_elsewhere(folder, answerer, None)
    batches = [batch for batch, _ in rows.batches(3)]
    assert on == {"decode_"}
    assert [name for name, _ in rows.unreadable()] == ["green/003.png"]
    labels = [label for batch in batches for label in batch.labels_B.tolist()]
    assert labels == [0] * 4 + [1] * 5
    names = [f"{name}/{n:03d}.png" for name in ("green", "red") for n in range(5) if (name, n) != ("green", 3)]
    expected = answerer.shown([(folder / name).read_bytes() for name in names])
    assert torch.equal(torch.cat([batch.shown for batch in batches]), expected)


def test_a_name_that_is_a_path_and_a_dataset_is_refused(
    program: Program, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])  # where `pictures` is the folder of the dataset `pictures`
    refused = evaluated(program, run, "pictures", code=2)
    assert refused["what"] == "pictures is a path here, and also a dataset of the student's cache"
    assert evaluated(program, run, "./pictures")["rows"] == 60


def test_a_file_below_a_folder_that_is_called_as_a_dataset_is_a_file(
    program: Program, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    np.save("pictures/x.npy", np.zeros((4, 3, 8, 8), np.uint8))
    np.save("y.npy", np.array([0, 1, 2, 1]))
    assert evaluated(program, run, "pictures/x.npy", "--labels", "y.npy")["rows"] == 4


def test_arrays_of_pixels_have_labels_beside_them(program: Program, run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 3, 8, 8), np.uint8))
    np.save(tmp_path / "y.npy", np.array([0, 1, 2, 1]))
    found = evaluated(program, run, tmp_path / "x.npy", "--labels", tmp_path / "y.npy")
    assert found["rows"] == 4
    assert found["notes"] == ["labels of x.npy are numbers, taken as the student's own: 0 is blue, …"]
    assert evaluated(program, run, tmp_path / "x.npy", code=2)["what"].endswith("x.npy has no labels")


@pytest.mark.parametrize("label", [-1, -2, -100])
def test_a_label_below_0_is_refused_and_is_not_a_class_from_the_end(
    program: Program, run: Path, tmp_path: Path, label: int
) -> None:
    np.savez(tmp_path / "x.npz", inputs=np.zeros((3, 3, 8, 8), np.uint8), labels=np.array([0, 2, label]))
    refused = evaluated(program, run, tmp_path / "x.npz", code=2)
    assert (refused["what"], refused["found"]) == ("x.npz:2 has a label that is no class", str(label))


def test_pixels_in_another_type_are_refused_and_not_taken_for_0_to_1(
    program: Program, run: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", inputs=np.full((2, 3, 8, 8), 200), labels=np.array([0, 2]))
    refused = evaluated(program, run, tmp_path / "x.npz", code=2)
    assert (refused["found"], refused["expected"].split(":")[0]) == ("float32", "uint8")


def test_it_prints_within_80_columns(program: Program, run: Path) -> None:
    printed = program("student", "eval", run, "pictures/validation").out
    assert "accuracy " in printed
    table = printed[printed.index("\naccuracy") :]
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.parametrize(
    ("dataset", "more", "what"),
    [
        ("nowhere/at/all", (), "has no dataset nowhere"),
        ("/nowhere", (), "there is no /nowhere"),
        ("pictures/test", (), "has no rows of split 'test'"),
        ("pictures", ("--teacher", "nobody"), "teacher nobody was not asked"),
        ("pictures", ("--cache", "/nowhere"), "is not a cache"),
        ("pictures/validation", ("--labels", "x.npy"), "--labels is of a .npy file"),
    ],
)
def test_what_is_not_there_is_told(
    program: Program, run: Path, tmp_path: Path, dataset: str, more: tuple[str, ...], what: str
) -> None:
    refused = evaluated(program, run, dataset, *more, code=2)
    assert what in refused["what"], refused


def test_labels_beside_samples_that_have_their_own_are_refused(program: Program, run: Path, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "new", ("green", "red"), 2, seed=5)
    np.save(tmp_path / "y.npy", np.array([0, 1, 2, 1]))
    refused = evaluated(program, run, folder, "--labels", tmp_path / "y.npy", code=2)
    assert (refused["what"], refused["found"]) == (
        "--labels is of a .npy file",
        f"{folder}, whose samples have their labels with them",
    )


def test_an_empty_folder_and_one_without_classes_are_told(program: Program, run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no sub-folders" in evaluated(program, run, tmp_path / "empty", code=2)["what"]
    (tmp_path / "a.heic").write_text("x")
    assert evaluated(program, run, tmp_path / "a.heic", code=2)["exit_code"] == 2


def test_names_on_one_side_alone_are_refused() -> None:
    with pytest.raises(BadRequest, match="cannot be matched by name"):
        match_classes(["ant"], [], "insects", only_known=False)
    with pytest.raises(BadRequest, match="knows no class of insects"):
        match_classes(["ant"], ["bee"], "insects", only_known=True)


@pytest.mark.parametrize(
    "options",
    [
        {"column": "text", "label": "label", "length": 8, "add_special_tokens": True, "special_tokens": "parsed"},
        {"column": ["text"], "label": "label", "length": 8, "joined_by": "|", "classes": {"0": "no", "1": "yes"}},
        {"column": "text", "prompt": "label", "block": 8, "end_of_text": "<|end|>", "document_mask": True},
    ],
)
def test_a_text_elsewhere_is_read_as_the_students_own_were(tmp_path: Path, options: dict) -> None:
    from pydantic import TypeAdapter
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    from storage.datasets import AnySource
    from storage.language.tokenizer import train_tokenizer

    (tmp_path / "new.jsonl").write_text('{"text": "b a", "label": "1"}\n{"text": "a", "label": "0"}\n' * 5)
    learned = Tokenizer.from_str(train_tokenizer(["a b c"], 300, "<|end|>").decode())
    learned.post_processor = TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
    tokenizer = learned.to_str().encode()
    section = {"kind": "text", "path": str(tmp_path / "new.jsonl"), "tokenizer": "t.json", "name": "own", **options}
    own = TypeAdapter(AnySource).validate_python(section).prepared(tokenizer, {})
    blueprint = Blueprint(
        architecture="mlp", num_classes=2, input_shape=(8,), mean=None, std=None, source=own.content(),
        classes=("no", "yes") if "classes" in options else (),
    )  # fmt: skip
    asked: Any = SimpleNamespace(blueprint=blueprint, tokenizer=tokenizer)
    found = source_like(tmp_path / "new.jsonl", asked, None)
    dumped = found.model_dump()
    assert {key: dumped[key] for key in options if key != "column"} == {
        k: v for k, v in options.items() if k != "column"
    }
    assert found.content() == own.content()
    blueprint.source["kept"] = "of a version to come"  # type: ignore[index]
    with pytest.raises(BadRequest, match="would be read in another way"):
        source_like(tmp_path / "new.jsonl", asked, None)


def test_pictures_of_two_kinds_of_files_are_compared_by_how_they_become_pixels() -> None:
    one = {"kind": "image_folder", "channels": 3, "size": 8, "filter": "box", "validation": 0.1}
    other = {"kind": "parquet_images", "channels": 3, "size": 8, "image": "image", "label": "label", "id": None}
    assert other_keys(other, one) == {"filter"}
    assert other_keys(other | {"filter": "box"}, one) == set()


def test_pictures_without_labels_are_told_where_labels_are_to_be(program: Program, run: Path, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path, ("green",), 2) / "green"  # a folder of a class is no folder of classes
    for path, found in ((folder, "2 images in the folder itself"), (folder / "000.png", None)):
        refused = evaluated(program, run, path, code=2)
        assert (refused["error"], refused["found"]) == ("MissingSource", found)
        assert "student predict" in refused["do"]


def test_shards_of_a_cache_are_kept_on_this_machine_if_asked_for(program: Program, run: Path, tmp_path: Path) -> None:
    kept = ("--keep", tmp_path, "--keep-bytes", 10**6)
    plain, first, again = (evaluated(program, run, "pictures/validation", *more) for more in ((), kept, kept))
    assert plain == first == again
    assert list(tmp_path.rglob("*.kept"))
    gone = evaluated(program, run, "pictures/validation", "--keep", tmp_path / "gone", "--keep-bytes", 9)
    assert (gone["figures"], gone["notes"] != plain["notes"]) == (plain["figures"], True)
    for wrong in (("--keep", tmp_path), ("--keep", run.parents[1] / "cache/kept", "--keep-bytes", 9)):
        evaluated(program, run, "pictures/validation", *wrong, code=2)
    evaluated(program, run, write_pictures(tmp_path / "new", ("red",), 1), *kept, code=2)


def test_code_of_ones_own_is_named_for_none_of_ours(program: Program, run: Path) -> None:
    refused = evaluated(program, run, "pictures", "--architecture", "net.py:build", code=2)
    assert refused["expected"] == '"cnn", which needs no code of yours'
