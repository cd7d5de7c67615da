"""Chats packed into rows: what teacher and student make of a document is what they make of it alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from storage.cache import Cache
from storage.cache.verify import verify
from storage.errors import BadRequest, BadTeacher
from storage.format.committing import read_ragged
from storage.format.shards import ShardKey
from storage.inputs.packed import FIRST
from storage.views import PLAIN
from student_train.options.sections import DataOptions, FleetOptions, StudentOptions
from student_train.preparing.request import Request
from student_train.run_files.history import read_metrics
from student_train.running.events import Event, StackingChosen
from student_train.running.train import train_students
from tests.chats.toys import MARKED, write_lines, write_llama
from tests.language.models import config_folder, hf_student, model_folder
from tests.language.toys import small_gpt
from tests.teacher_cache.toys import Silent, build, write_job

LENGTH = 64
SECTION = f"""[[dataset]]
name = "NAME"
kind = "chat"
path = "chats"
tokenizer = "model"
length = {LENGTH}
rows_per_shard = 6
max_quarantined = 0.5
"""
TEACHER = """[[teacher]]
name = "big"
kind = "transformers"
path = "model"
encoding = { kind = "dense", dtype = "fp32" }
features = { middle = { layer = "model.layers.0", pool = "none", dtype = "fp32" } }
"""

OLD = """[[teacher]]
name = "old"
kind = "transformers"
path = "old"
encoding = { kind = "dense", dtype = "fp32" }
"""
# The same model as "big", with attention that is written out: no kernel parts documents for it, its mask must.
EAGER = TEACHER.replace('"big"', '"eager"') + 'attention = "eager"\n'
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": GPT2 | dict.fromkeys(["embd_pdrop", "attn_pdrop", "resid_pdrop"], 0.0),  # which rows would draw otherwise
}


def chat(number: int) -> dict[str, Any]:
    asked, said = "to " * (number % 3 + 1), "or not " * (number % 5 + 1)
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": f"{said}{number}"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    write_llama(folder / "model", MARKED)
    model_folder(folder / "old", "gpt2", **CONFIGS["gpt2"], vocab_size=512, initializer_range=0.5)
    shutil.copy(folder / "model/tokenizer.json", folder / "old")
    (folder / "chats").mkdir()
    write_lines(folder / "chats/a.jsonl", *(chat(number) for number in range(14)))
    write_lines(folder / "chats/b.jsonl", *(chat(number) for number in range(14, 20)), {"messages": "none"})
    return folder


PACKED, ALONE = SECTION.replace("NAME", "packed") + "pack = true\n", SECTION.replace("NAME", "alone")


@pytest.fixture(scope="module")
def watcher() -> Silent:
    return Silent()


@pytest.fixture(scope="module")
def cache(folder: Path, watcher: Silent) -> Cache:
    report = build(write_job(folder, PACKED, ALONE, TEACHER, OLD, EAGER), watcher=watcher)
    assert report.exit_code == 3, report
    return Cache.open(str(folder / "cache"))


def documents(cache: Cache, dataset: str, teacher: str) -> dict[str, dict[str, np.ndarray]]:
    """Return by the ids of each document its labels, and what a teacher said where it has any."""
    found = {}
    for shard in sorted(cache.committed(dataset)):
        own = cache.commit(ShardKey(dataset, None, PLAIN, shard))
        rows = read_ragged(cache.objects, own, ["inputs", "labels"])
        said = cache.commit(ShardKey(dataset, teacher, PLAIN, shard))
        targets = read_ragged(cache.objects, said, ["logits", *["feature/middle"] * (teacher != "old")])
        for ids, labels, *values in zip(rows["inputs"], rows["labels"], *targets.values(), strict=True):
            begins = np.flatnonzero(ids <= FIRST)
            parts = np.split(np.where(ids <= FIRST, FIRST - ids, ids), begins[1:])
            labels_of = np.split(labels, begins[1:])
            ends = np.cumsum([(part >= 0).sum() for part in labels_of])
            for i, part in enumerate(parts if len(ids) else ()):
                of_targets = [np.split(each, ends[:-1])[i] for each in values]
                found[part.tobytes().hex()] = dict(zip(("labels", *targets), (labels_of[i], *of_targets), strict=True))
    return found


@pytest.mark.parametrize("teacher", ["big", "old", "eager"])  # rotary positions, absolute ones, no fused attention
def test_what_a_teacher_says_of_a_packed_document_is_what_it_says_of_it_alone(cache: Cache, teacher: str) -> None:
    packed, alone = (documents(cache, dataset, teacher) for dataset in ("packed", "alone"))
    assert len(alone) == 20
    assert packed.keys() == alone.keys()
    for name, own in packed.items():
        assert own["labels"].tolist() == alone[name]["labels"].tolist()
        assert own["labels"][-1] == -1
        assert all(own[array] == pytest.approx(alone[name][array], abs=1e-5) for array in own)


def test_rows_are_fuller_and_named_by_their_documents(cache: Cache, watcher: Silent) -> None:
    packed, alone = (cache.samples([name], ()).of(name) for name in ("packed", "alone"))
    assert len(alone) == 20  # that can be read
    assert len(packed) < 12
    assert packed["length"].max() <= LENGTH
    names = packed["sample_id"].to_list()
    assert sorted(part.rpartition(":")[2] for name in names for part in name.split("+")) == sorted(
        name.rpartition(":")[2] for name in alone["sample_id"]
    )
    assert len(cache.samples(["packed"], ()).quarantined("packed")) == 1
    full = packed["length"].sum() / (len(packed) * LENGTH)
    told = f"20 documents of packed are packed into {len(packed)} rows of up to {LENGTH} tokens, {full:.1%} full"
    assert f"note: {told}" in watcher.notes
    assert not verify(cache).bad


GPT = {"architecture": "gpt", "options": {"depth": 2, "width": 16, "heads": 2}}


def trained(cache: Cache, runs: Path, rows: str, stacking: str, *students: StudentOptions) -> list[Any]:
    """Train on rows of one kind, a step for all of them at a time; return weights and figures of each student."""
    data = DataOptions.model_validate({"train": rows, "validation": "alone"})
    events: list[Event] = []
    fleet = FleetOptions.model_validate({"stacking": stacking})
    summary = train_students(Request(cache, runs, data, students, "cpu", fleet), report=events.append)
    assert not summary.errors, summary.errors
    assert [event.stacked for event in events if isinstance(event, StackingChosen)] == [True] * (stacking == "always")
    folders = [runs / student.name for student in students]
    return [(load_file(folder / "student.safetensors"), figures(folder)) for folder in folders]


def figures(folder: Path) -> list[float]:
    """Return the losses of a run's steps, and its cross-entropy on held rows."""
    metrics = read_metrics(folder)
    assert metrics is not None
    return [*metrics["train_loss"], *metrics["cross_entropy"]]


def student_of(folder: Path, kind: str, name: str, **options: Any) -> StudentOptions:
    """Return a student that takes two steps of SGD on all rows."""
    objective = [{"loss": "labels"}, {"loss": "kd", "teacher": "big"}]
    common = {"objective": objective, "optimizer": "sgd", "learning_rate": 0.5, "epochs": 2, "batch_size": 32} | options
    if kind == "gpt":
        return small_gpt(name, **(GPT | common))
    fields = {"vocab_size": 512, "max_position_embeddings": 64} | CONFIGS[kind]
    return hf_student(config_folder(folder / f"{kind}-config", kind, **fields), name, **common)


IN_PARTS: dict[str, Any] = {"micro_batch_size": 3}
AGAIN: dict[str, Any] = {"recompute": True}


@pytest.mark.parametrize(
    ("kind", "ways"), [("gpt", [{}, IN_PARTS, AGAIN]), ("llama", [{}, IN_PARTS | AGAIN]), ("gpt2", [{}])]
)
def test_a_student_takes_the_same_steps_on_packed_rows_as_on_documents(
    tmp_path: Path, cache: Cache, kind: str, ways: list[dict[str, Any]]
) -> None:
    ((alone, of_alone),) = trained(cache, tmp_path / "alone", "alone", "never", student_of(tmp_path, kind, "one"))
    several = [student_of(tmp_path, kind, f"way-{i}", **way) for i, way in enumerate(ways)]
    for packed, losses in trained(cache, tmp_path / "packed", "packed", "never", *several):
        assert max(float((packed[name] - alone[name]).abs().max()) for name in alone) <= 1e-6
        assert losses == pytest.approx(of_alone, abs=1e-5)


def test_students_of_packed_rows_are_stacked(tmp_path: Path, cache: Cache) -> None:
    several = [student_of(tmp_path, "gpt", f"gpt-{seed}", seed=seed) for seed in (0, 1)]
    stacked = trained(cache, tmp_path / "packed", "packed", "always", *several)
    alone = trained(cache, tmp_path / "alone", "alone", "never", *several)
    for (packed, _), (own, _) in zip(stacked, alone, strict=True):
        assert max(float((packed[name] - own[name]).abs().max()) for name in own) <= 1e-6


def test_a_model_that_does_not_part_documents_is_no_teacher_of_packed_rows(folder: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "chats.jsonl", *(chat(number) for number in range(4)))
    shutil.copytree(folder / "model", tmp_path / "model")
    fields = {"vocab_size": 303, "hidden_size": 16, "ffn_dim": 32, "word_embed_proj_dim": 16, "num_hidden_layers": 1}
    model_folder(tmp_path / "model", "opt", num_attention_heads=2, max_position_embeddings=64, **fields)
    section = PACKED.replace('"chats"', '"chats.jsonl"')
    teacher = TEACHER.replace("features", "# features")
    with pytest.raises(BadTeacher) as caught:
        build(write_job(tmp_path, section, teacher))
    assert caught.value.what == "teacher big does not part the documents of a packed row"
    assert str(caught.value.found).startswith("OPTForCausalLM: answers at the end of a document change by ")
    alone = build(write_job(tmp_path, ALONE.replace('"chats"', '"chats.jsonl"'), teacher, cache="alone"))
    assert alone.exit_code == 0


def test_a_model_that_does_not_part_documents_is_no_student_of_packed_rows(cache: Cache, tmp_path: Path) -> None:
    fields = {"hidden_size": 16, "ffn_dim": 32, "word_embed_proj_dim": 16, "num_hidden_layers": 1}
    folder = config_folder(tmp_path / "opt", "opt", vocab_size=512, num_attention_heads=2, **fields)
    asked = Request(
        cache,
        tmp_path / "runs",
        DataOptions.model_validate({"train": "packed", "validation": "alone"}),
        (hf_student(folder, objective=[{"loss": "labels"}]),),
        "cpu",
    )
    with pytest.raises(BadRequest) as caught:
        train_students(asked)
    assert caught.value.what == "the student does not part the documents of a packed row"


def test_a_student_of_single_documents_is_not_measured_on_packed_rows(cache: Cache, tmp_path: Path) -> None:
    data = DataOptions.model_validate({"train": "alone", "validation": "packed"})
    with pytest.raises(BadRequest) as caught:
        train_students(Request(cache, tmp_path, data, (student_of(tmp_path, "gpt", "one"),), "cpu"))
    assert caught.value.what == "packed cannot measure a student of alone"
