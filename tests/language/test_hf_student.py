"""Students that are models of transformers: built from a config, trained, written and loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from storage.cache import Cache
from storage.errors import BadRequest, MissingSource, StaleCache
from student_train.feed.batches import Batch
from student_train.losses.objective import Objective
from student_train.losses.outputs import Shapes
from student_train.preparing.dry_run import dry_run
from student_train.preparing.prepare import prepare
from student_train.preparing.weighing.flops import row_flops
from student_train.preparing.weighing.step_memory import measure_step
from student_train.running.train import train_students
from student_train.stepping.average import WeightAverage
from student_train.stepping.forward import Tapped, check_student
from student_train.stepping.gradients.rows import Model
from student_train.stepping.gradients.sites import accumulate_over_sites
from student_train.students import Blueprint, Student, build_student, load_student
from student_train.students.transformers import embedded
from tests.language.models import IDS, PADDED, config_folder, hf_student, model_folder
from tests.language.toys import counting_cache, request

LENGTH = 12

GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GEMMA2 = SMALL | {"num_key_value_heads": 1, "head_dim": 8}
OPT = {"hidden_size": 16, "ffn_dim": 32, "word_embed_proj_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
MAMBA = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
KINDS: dict[str, tuple[dict[str, Any], bool]] = {  # and whether it is no more than its body and its head
    "llama": ({}, True),
    "gpt2": (GPT2, True),
    "gpt_neox": (SMALL, True),
    "opt": (OPT, True),
    "mamba": (MAMBA, True),
    "gemma2": (GEMMA2, False),  # caps its logits
    "cohere": (GEMMA2, False),  # scales them
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return counting_cache(tmp_path_factory.mktemp("counting"), length=LENGTH)


def built(folder: Path, seed: int = 0, num_classes: int = IDS, **options: Any) -> Student:
    torch.manual_seed(seed)
    return build_student(blueprint(folder, num_classes, **options))


def blueprint(folder: Path, num_classes: int = IDS, **options: Any) -> Blueprint:
    return Blueprint(
        architecture="transformers",
        options=embedded(folder, options),
        num_classes=num_classes,
        input_shape=(LENGTH,),
        mean=None,
        std=None,
    )


def tokens(rows: int = 3) -> torch.Tensor:
    return torch.arange(rows * LENGTH).view(rows, LENGTH) % IDS


@pytest.mark.parametrize("kind", KINDS)
def test_its_logits_are_those_of_the_library_without_padding(tmp_path: Path, kind: str) -> None:
    fields, in_two_parts = KINDS[kind]
    student = built(config_folder(tmp_path, kind, **fields)).eval()
    with torch.no_grad():
        said = student.network(input_ids=tokens()).logits  # type: ignore[operator]
        assert said.shape[-1] == PADDED
        assert torch.equal(student(tokens()), said[..., :IDS])
        assert torch.allclose(student.scores(student.hidden(tokens())), said[..., :IDS], atol=1e-6)
    assert student.in_two_parts == in_two_parts


@pytest.mark.parametrize("kind", KINDS)
def test_its_memory_and_work_are_known_before_it_is_trained(tmp_path: Path, cache: Cache, kind: str) -> None:
    (prepared,) = prepare(
        request(cache, tmp_path / "runs", hf_student(config_folder(tmp_path, kind, **KINDS[kind][0])))
    )
    flops, parameters = row_flops(prepared.blueprint)
    assert parameters == sum(p.numel() for p in build_student(prepared.blueprint).parameters())
    assert flops > 2 * LENGTH * 16 * PADDED  # more than its head
    assert measure_step(prepared).weights >= 4 * parameters


def test_a_seed_decides_its_weights(tmp_path: Path) -> None:
    folder = config_folder(tmp_path)
    one, same, other = (built(folder, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_it_is_trained_and_needs_nothing_but_its_own_folder(tmp_path: Path, cache: Cache) -> None:
    folder = config_folder(tmp_path / "small")
    student = hf_student(folder, epochs=30, objective=[{"loss": "labels"}])
    summary = train_students(request(cache, tmp_path / "runs", student))
    assert not summary.errors
    (record,) = summary.records
    assert record.accuracy is not None
    assert record.accuracy > 0.9
    shutil.rmtree(folder)
    loaded = load_student(tmp_path / "runs/hf")
    assert loaded(tokens()).argmax(-1)[0, :5].tolist() == [1, 2, 3, 4, 5]
    stored = load_file(tmp_path / "runs/hf/student.safetensors")
    assert "network.model.embed_tokens.weight" in stored
    assert "network.lm_head.weight" not in stored  # tied: stored once


@pytest.mark.parametrize("averaged", [None, 0.5])
def test_it_goes_on_where_it_was_stopped(tmp_path: Path, cache: Cache, averaged: float | None) -> None:
    student = hf_student(config_folder(tmp_path / "small"), epochs=3, ema_decay=averaged, patience_epochs=3)
    train_students(request(cache, tmp_path / "whole", student))
    asked = iter([False] * 9 + [True] * 99)
    with pytest.raises(Exception, match="stopped"):
        train_students(request(cache, tmp_path / "parts", student), stop=lambda: next(asked))
    assert (tmp_path / "parts/hf/checkpoint.json").exists()
    train_students(request(cache, tmp_path / "parts", student))
    whole, parts = (load_file(tmp_path / runs / "hf/student.safetensors") for runs in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_an_average_follows_a_tied_weight_once(tmp_path: Path) -> None:
    student = built(config_folder(tmp_path))
    average = WeightAverage(student, 0.5)
    before = average.student.state_dict()["network.lm_head.weight"].clone()
    with torch.no_grad():
        student.network.lm_head.weight += 1.0  # type: ignore[operator, union-attr]
    average.update(100)
    after = average.student.state_dict()["network.lm_head.weight"]
    assert torch.allclose(after, before + 0.5)


def test_logits_in_parts_have_the_gradient_of_all_at_once(tmp_path: Path, cache: Cache) -> None:
    options = hf_student(config_folder(tmp_path / "small"), objective=[{"loss": "labels"}])
    (prepared,) = prepare(request(cache, tmp_path / "runs", options))
    gradients = []
    for size in (5, 10**6):
        torch.manual_seed(0)
        student = build_student(prepared.blueprint)
        objective = Objective(options.objective, Shapes({}, {}))
        trained = list(student.parameters())
        batch = Batch(tokens(4), (tokens(4) + 1) % IDS)
        model = Model(student, Tapped(student, ()), objective, trained, IDS)
        off = torch.autocast("cpu", enabled=False)
        accumulate_over_sites(model, batch, autocast=off, measure_shares=False, size=size)
        gradients.append([p.grad for p in trained])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*gradients, strict=True))


def test_a_feature_of_a_layer_is_learned_by_its_name_in_the_model(tmp_path: Path) -> None:
    student = built(config_folder(tmp_path))
    found = check_student(student, ("network.model.layers.0", "network.model.norm"), (LENGTH,), IDS)
    assert found == {"network.model.layers.0": (LENGTH, 16), "network.model.norm": (LENGTH, 16)}


def test_options_replace_keys_of_the_config(tmp_path: Path) -> None:
    folder = config_folder(tmp_path)
    assert len(built(folder, num_hidden_layers=1).network.model.layers) == 1  # type: ignore[union-attr, arg-type]
    with pytest.raises(BadRequest) as refused:
        embedded(folder, {"num_layerz": 3})
    assert refused.value.found == "num_layerz"


def test_a_key_may_have_the_name_that_the_library_has_for_it(tmp_path: Path) -> None:
    folder = config_folder(tmp_path, "gpt2", **GPT2)
    assert len(built(folder, num_hidden_layers=1).network.transformer.h) == 1  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("trained_as", ["fp32", "bf16"])
def test_a_job_of_it_says_before_what_it_takes(tmp_path: Path, cache: Cache, trained_as: str) -> None:
    found = dry_run(request(cache, tmp_path / "runs", hf_student(config_folder(tmp_path / "s"), autocast=trained_as)))
    assert [(each.student, each.action) for each in found.students] == [("hf", "train")]
    assert found.memory is not None


def test_it_is_trained_in_bfloat16(tmp_path: Path, cache: Cache) -> None:
    student = hf_student(config_folder(tmp_path / "small"), autocast="bf16")
    (record,) = train_students(request(cache, tmp_path / "runs", student)).records
    assert record.status == "finished"
    assert {t.dtype for t in load_file(tmp_path / "runs/hf/student.safetensors").values()} == {torch.float32}


def test_students_of_it_step_one_by_one(tmp_path: Path, cache: Cache) -> None:
    folder = config_folder(tmp_path / "small")
    told: list[object] = []
    students = [hf_student(folder, name, seed=seed) for seed, name in enumerate(["a", "b"])]
    asked = request(cache, tmp_path / "runs", *students)
    assert not train_students(asked, report=told.append).errors
    assert not [event for event in told if type(event).__name__ == "StackingChosen"]


def test_a_config_that_has_changed_is_noticed(tmp_path: Path, cache: Cache) -> None:
    folder = config_folder(tmp_path / "small")
    train_students(request(cache, tmp_path / "runs", hf_student(folder)))
    edit(folder / "config.json", rms_norm_eps=1e-3)
    with pytest.raises(StaleCache, match="rms_norm_eps"):
        train_students(request(cache, tmp_path / "runs", hf_student(folder)))


def test_a_folder_that_has_moved_is_the_same(tmp_path: Path, cache: Cache) -> None:
    folder = config_folder(tmp_path / "small")
    train_students(request(cache, tmp_path / "runs", hf_student(folder)))
    folder.rename(tmp_path / "moved")
    (student,) = prepare(request(cache, tmp_path / "runs", hf_student(tmp_path / "moved")))
    assert student.settled is not None


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_vocabulary_that_is_smaller_is_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as refused:
        built(config_folder(tmp_path), num_classes=PADDED + 1)
    assert (refused.value.found, refused.value.expected) == (
        f"vocab_size = {PADDED}",
        f"{PADDED + 1} ids, or more: what is beyond them is padding, and cut",
    )


def test_rows_longer_than_the_config_foresees_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="longer than its config foresees"):
        built(config_folder(tmp_path), max_position_embeddings=LENGTH - 1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"auto_map": {"AutoModel": "m.M"}}, "wants code from elsewhere"),
        ({"quantization_config": {"bits": 4}}, "is quantised"),
        ({"model_type": "no such"}, "knows no such model"),
        ({"num_attention_heads": 0}, "makes no causal language model"),
        ({"num_hidden_layers": 10**9}, "more layers"),
    ],
)
def test_a_config_that_is_none_of_the_librarys_is_refused(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    folder = config_folder(tmp_path)
    edit(folder / "config.json", **fields)
    with pytest.raises(BadRequest, match=said):
        built(folder)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingSource, match="there is no model"):
        embedded(tmp_path, {})


def test_a_trained_student_is_a_teacher(tmp_path: Path, cache: Cache) -> None:
    from teacher_cache.teachers.loading import load_teacher
    from teacher_cache.teachers.options import TeacherOptions

    train_students(request(cache, tmp_path / "runs", hf_student(model_folder(tmp_path / "small"))))
    teacher = load_teacher(TeacherOptions(name="t", student=str(tmp_path / "runs/hf")), torch.device("cpu"))  # type: ignore[arg-type]
    logits, _ = teacher(tokens().int(), cache.dataset("counting"))
    assert torch.equal(logits, load_student(tmp_path / "runs/hf")(tokens()).detach())


@pytest.mark.parametrize(
    "fields",
    [{"attn_implementation": "someone/kernel"}, {"_attn_implementation": "a/b"}, {"auto_map": {"AutoConfig": "x.Y"}}],
)
def test_a_blueprint_that_wants_code_from_elsewhere_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    found = blueprint(config_folder(tmp_path))
    hostile = found.model_copy(update={"options": {"config": found.options["config"] | fields}})
    with pytest.raises(BadRequest, match="wants code from elsewhere"):
        build_student(hostile)
