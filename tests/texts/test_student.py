"""Students of texts from start to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from storage.cache import Cache
from storage.errors import BadRequest
from student_train.options.sections import FleetOptions
from student_train.run_files.records import RunRecord
from student_train.running.train import train_students
from student_train.stepping.forward import check_student
from student_train.students import Blueprint, build_student, load_student
from tests.student_train.toys import train_in_parts
from tests.texts.toys import LENGTH, looking_teacher, request, small_encoder, text_cache

FEATURE = '[teacher.features]\nrow = { layer = "row", dtype = "fp32" }'
DENSE = 'encoding = { kind = "dense", dtype = "fp32" }'
KD_ALONE = {"loss": "kd", "teacher": "looking", "temperature": 1.0}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return text_cache(tmp_path_factory.mktemp("texts"), looking_teacher(extra=FEATURE), count=120)


def trained(cache: Cache, runs: Path, **options: Any) -> RunRecord:
    data = options.pop("data", {})
    summary = train_students(request(cache, runs, small_encoder(**options), **data))
    for error in summary.errors.values():
        raise error
    return summary.records[0]


def weights(runs: Path, name: str = "encoder") -> bytes:
    return (runs / name / "student.safetensors").read_bytes()


def blueprint(**options: Any) -> Blueprint:
    fields = {"num_classes": 3, "input_shape": (LENGTH,), "mean": None, "std": None, "vocabulary": 50}
    kinds = {"inputs": "texts", "task": "text_classification"}
    return Blueprint.model_validate(fields | kinds | {"architecture": "encoder", "options": options})


@pytest.mark.parametrize("depth", [0, 2])
def test_padding_does_not_change_what_a_student_says_of_a_row(depth: int) -> None:
    torch.manual_seed(0)
    student = build_student(blueprint(depth=depth, width=8, heads=2)).eval()
    rows = [torch.randint(50, (length,)) for length in (1, 5, LENGTH)]
    padded = torch.full((3, LENGTH), -1)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    with torch.no_grad():
        alone = torch.cat([student(ids[None]) for ids in rows])
        together = student(padded)
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_a_row_without_any_token_has_logits() -> None:
    student = build_student(blueprint(depth=1, width=8, heads=2)).eval()
    assert student(torch.full((2, 3), -1)).isfinite().all()


def test_an_encoder_learns_which_word_it_is(cache: Cache, tmp_path: Path) -> None:
    record = trained(cache, tmp_path, epochs=40, learning_rate=0.02)
    assert record.accuracy is not None
    assert record.accuracy > 0.9
    assert record.agreement == record.accuracy


@pytest.mark.parametrize("options", [{}, {"objective": [KD_ALONE], "batch_size": 7}])
def test_streamed_and_resident_rows_train_the_same_student(cache: Cache, tmp_path: Path, options: Any) -> None:
    for residency in ("device", "stream"):
        trained(cache, tmp_path / residency, data={"residency": residency, "window_shards": 2}, **options)
    assert weights(tmp_path / "device") == weights(tmp_path / "stream")


def test_a_student_stopped_at_any_step_ends_in_the_same_weights(cache: Cache, tmp_path: Path) -> None:
    options: dict[str, Any] = {"options": {"depth": 1, "width": 8, "heads": 2, "dropout": 0.2}, "ema_decay": 0.9}
    trained(cache, tmp_path / "whole", **options)
    runs = tmp_path / "parts"
    assert train_in_parts(request(cache, runs, small_encoder(**options), residency="stream"), calls=7) > 2
    assert weights(runs) == weights(tmp_path / "whole")


@pytest.mark.parametrize(
    "term",
    [
        {"loss": "dkd"},
        {"loss": "dist"},
        {"loss": "logit_mse"},
        {"loss": "rkd", "feature": "row", "student_layer": "network.pool"},
        {"loss": "hint", "feature": "row", "student_layer": "network.norm"},
    ],
    ids=lambda term: term["loss"],
)
def test_losses_of_rows_train_a_student_of_texts(term: dict[str, Any], cache: Cache, tmp_path: Path) -> None:
    objective = [{"loss": "labels"}, {"teacher": "looking"} | term]
    assert trained(cache, tmp_path, objective=objective, epochs=1).accuracy is not None


def test_a_layer_of_each_position_is_refused_by_name(cache: Cache, tmp_path: Path) -> None:
    term = {"loss": "rkd", "teacher": "looking", "feature": "row", "student_layer": "network.blocks.0"}
    with pytest.raises(BadRequest, match=r"network\.blocks\.0 gives something for each position of a text"):
        trained(cache, tmp_path, objective=[term])


def test_the_student_carries_what_it_is_made_for(cache: Cache, tmp_path: Path) -> None:
    trained(cache, tmp_path, epochs=1)
    found = json.loads((tmp_path / "encoder/student.json").read_text())
    expected = {
        "inputs": "texts",
        "task": "text_classification",
        "vocabulary": cache.dataset("texts").vocabulary,
        "tokenizer": cache.dataset("texts").tokenizer,
        "num_classes": 3,
        "input_shape": [LENGTH],
        "mean": None,
    }
    assert {key: found[key] for key in expected} == expected
    assert load_student(tmp_path / "encoder").blueprint.asked.name == "text_classification"


def test_a_trained_student_is_a_teacher(cache: Cache, tmp_path: Path) -> None:
    trained(cache, tmp_path / "runs", epochs=1)
    folder = tmp_path / "again"
    folder.mkdir()
    section = f'[[teacher]]\nname = "looking"\nstudent = "{tmp_path / "runs/encoder"}"\nbatch_size = 5\n{DENSE}\n'
    taught, student = text_cache(folder, section, count=120), load_student(tmp_path / "runs/encoder")
    with torch.no_grad():
        alone = [student(torch.from_numpy(row.copy()).long()[None]) for row in taught.read_ragged("texts", 1)]
    stored = torch.from_numpy(taught.read_targets("texts", "looking", 1)["logits"])
    assert torch.allclose(stored, torch.cat(alone), atol=1e-5)
    assert trained(taught, folder / "runs", objective=[KD_ALONE]).agreement is not None


def test_stacked_students_of_texts_end_close_to_those_that_step_alone(cache: Cache, tmp_path: Path) -> None:
    students = [small_encoder(f"s{seed}", seed=seed) for seed in range(3)]
    records = {}
    for stacking in ("never", "always"):
        asked = request(cache, tmp_path / stacking, *students)
        asked = type(asked)(**vars(asked) | {"fleet": FleetOptions.model_validate({"stacking": stacking})})
        records[stacking] = train_students(asked).records
    for alone, stacked in zip(records["never"], records["always"], strict=True):
        assert alone.cross_entropy == pytest.approx(stacked.cross_entropy, rel=1e-3)


def test_a_students_own_factory_is_given_ids_mask_and_vocabulary(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Bag(nn.Module):\n"
        "    def __init__(self, classes, vocabulary):\n"
        "        super().__init__()\n        self.of = nn.Embedding(vocabulary, classes)\n\n"
        "    def forward(self, tokens, mask):\n        return (self.of(tokens) * mask[..., None]).sum(1)\n\n\n"
        "def bag(num_classes, input_shape, *, vocabulary):\n    return Bag(num_classes, vocabulary)\n"
    )
    record = trained(
        cache, tmp_path, architecture=f"{tmp_path / 'own.py'}:bag", options={}, epochs=20, learning_rate=0.1
    )
    assert record.accuracy is not None
    assert record.accuracy > 0.7


@pytest.mark.parametrize("architecture", ["mlp", "cnn", "gpt"])
def test_architectures_that_know_no_texts_are_refused(architecture: str, cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=f"architecture '{architecture}'"):
        trained(cache, tmp_path, architecture=architecture, options={})


def test_an_encoder_of_no_texts_is_refused() -> None:
    given = {"architecture": "encoder", "num_classes": 3, "input_shape": (1, 4, 4), "mean": (0.0,), "std": (1.0,)}
    with pytest.raises(BadRequest) as error:
        build_student(Blueprint.model_validate(given))
    assert error.value.what == "architecture 'encoder' cannot take these inputs"


@pytest.mark.parametrize("options", [{"depth": -1}, {"width": 6, "heads": 4}, {"dropout": 1.0}, {"heads": 0}])
def test_an_encoder_that_cannot_be_built_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="an encoder of this size"):
        build_student(blueprint(**options))


def test_a_checked_student_tells_the_shape_of_a_rows_vector() -> None:
    student = build_student(blueprint(depth=1, width=8, heads=2))
    assert check_student(student, ["network.pool"], (LENGTH,), 3) == {"network.pool": (8,)}


def test_macro_f1_counts_each_class_alike(cache: Cache, tmp_path: Path) -> None:
    from sklearn.metrics import f1_score

    record = trained(cache, tmp_path, epochs=4)
    held = cache.samples().of("texts").filter(split="validation")
    student, shards = load_student(tmp_path / "encoder"), {s.shard: s.start for s in cache.catalogue().shards("texts")}
    said = []
    with torch.no_grad():
        for shard, row in held.select("shard", "row").iter_rows():
            ids = cache.read_ragged("texts", shard)[row - shards[shard]]
            said.append(int(student(torch.from_numpy(ids.copy()).long()[None]).argmax()))
    expected = f1_score(held["label"].to_list(), said, average="macro", labels=held["label"].unique().to_list())
    assert record.macro_f1 == pytest.approx(expected, abs=1e-9)
    assert record.accuracy == pytest.approx(sum(a == b for a, b in zip(said, held["label"], strict=True)) / len(said))
