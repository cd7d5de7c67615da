"""Students that are trained as an adapter: what is trained, written, merged, refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from storage.cache import Cache
from storage.digests import file_digest
from storage.errors import BadRequest, Interrupted
from student_train.options.model import LoraOptions
from student_train.options.sections import StudentOptions
from student_train.preparing.prepare import prepare
from student_train.preparing.weighing.step_memory import measure_step
from student_train.running.train import train_students
from student_train.stepping.state import TrainState
from student_train.students import Student, load_student
from student_train.students.files import load_adapter
from student_train.students.starting.adapter import adapt, adapter_tensors, merged
from student_train.using.exporting.hub.transformers import export_transformers
from tests.language.models import config_folder, hf_student, model_folder
from tests.language.test_hf_student import GPT2, built, tokens
from tests.language.toys import IDS, counting_cache, request, small_gpt

LORA = {"kind": "lora", "rank": 2}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return counting_cache(tmp_path_factory.mktemp("counting"))


def adapted(student: Student, **options: object) -> Student:
    adapt(student, LoraOptions.model_validate(LORA | options))
    return student


def stirred(student: Student) -> Student:
    """Return a student whose adapter adds something: fresh, one of its two matrices is 0."""
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    return student.eval()


@pytest.mark.parametrize(("kind", "fields"), [("llama", {}), ("gpt2", GPT2)])
def test_a_fresh_adapter_changes_nothing_and_a_merged_one_says_the_same(
    tmp_path: Path, kind: str, fields: dict[str, int]
) -> None:
    folder = config_folder(tmp_path, kind, **fields)
    student, plain = adapted(built(folder)), built(folder).eval()
    with torch.no_grad():
        assert torch.equal(student.eval()(tokens()), plain(tokens()))
        stirred(student)
        assert not torch.allclose(student(tokens()), plain(tokens()), atol=1e-3)
        together = merged(student)
        assert torch.allclose(together(tokens()), student(tokens()), atol=1e-5)
    assert together.state_dict().keys() == plain.state_dict().keys()


def test_only_the_adapter_is_trained(tmp_path: Path, cache: Cache) -> None:
    folder = model_folder(tmp_path / "m")
    student = hf_student(folder, start=True, adapter=LORA, ema_decay=0.9)
    (prepared,) = prepare(request(cache, tmp_path / "runs", student))
    state = TrainState.fresh(student, prepared.blueprint, prepared.feature_shapes, torch.device("cpu"))
    # queries and values of two layers: 2 · 16 and 16 · 2; 2 · 16 and 8 · 2
    assert sum(parameter.numel() for parameter in state.trained) == 2 * (64 + 48)
    (group,) = state.optimizer.param_groups
    assert group["params"] == state.trained
    kept = {name for name in state.tensors() if name.startswith(("student.", "average."))}
    assert kept == {name for name in kept if ".lora_" in name}
    assert len(kept) == 2 * len(state.trained)
    shared = state.average.student.network.lm_head.weight  # type: ignore[union-attr]
    assert shared is state.student.network.lm_head.weight  # type: ignore[union-attr]


def test_a_step_of_it_takes_less_memory(tmp_path: Path, cache: Cache) -> None:
    folder = model_folder(tmp_path / "m")
    whole, low = (
        measure_step(prepare(request(cache, tmp_path / "runs", hf_student(folder, start=True, **more)))[0])
        for more in ({}, {"adapter": LORA})
    )
    assert low.gradients < whole.gradients / 10
    assert low.optimizer < whole.optimizer / 10
    assert low.weights > whole.weights


@pytest.mark.parametrize("more", [{}, {"ema_decay": 0.5}, {"patience_epochs": 3}, {"clip_norm": 0.1}])
def test_what_is_written_is_a_plain_student_with_its_adapter_beside(
    tmp_path: Path, cache: Cache, more: dict[str, float]
) -> None:
    folder = model_folder(tmp_path / "m")
    student = hf_student(folder, start=True, adapter=LORA, learning_rate=0.1, **more)
    assert not train_students(request(cache, tmp_path / "runs", student)).errors
    base, loaded = load_file(folder / "model.safetensors"), load_student(tmp_path / "runs/hf")
    weights, adapter = loaded.network.state_dict(), load_adapter(tmp_path / "runs/hf")
    assert set(weights) - {"lm_head.weight"} == base.keys()
    changed = {name for name, tensor in base.items() if not torch.equal(tensor, weights[name])}
    assert {name.split(".")[4] for name in changed} == {"q_proj", "v_proj"}
    for name in changed:
        stem = name.removesuffix(".weight")
        product = adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
        assert torch.allclose(weights[name] - base[name], 2 * product, atol=1e-5)  # alpha / rank is 2


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, cache: Cache) -> None:
    student = hf_student(model_folder(tmp_path / "m"), start=True, adapter=LORA | {"dropout": 0.1}, epochs=3)
    train_students(request(cache, tmp_path / "whole", student))
    asked = iter([False] * 9 + [True] * 99)
    with pytest.raises(Interrupted):
        train_students(request(cache, tmp_path / "parts", student), stop=lambda: next(asked))
    train_students(request(cache, tmp_path / "parts", student))
    whole, parts = (load_file(tmp_path / runs / "hf/student.safetensors") for runs in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_built_in_gpt_may_have_one_too(tmp_path: Path, cache: Cache) -> None:
    assert not train_students(request(cache, tmp_path / "runs", small_gpt("first"))).errors
    second = small_gpt("second", start=str(tmp_path / "runs/first"), adapter=LORA)
    assert not train_students(request(cache, tmp_path / "runs", second)).errors
    first, after = (load_file(tmp_path / "runs" / name / "student.safetensors") for name in ("first", "second"))
    changed = {name for name in first if not torch.equal(first[name], after[name])}
    layers = ("attention.queries_keys_values", "attention.out", "perceptron.into", "perceptron.out")
    assert changed == {f"network.body.blocks.0.{layer}.weight" for layer in layers}


def test_a_target_that_matches_nothing_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="matches no linear layer") as refused:
        adapted(built(config_folder(tmp_path)), targets=["q_proj", "c_attn"])
    assert refused.value.found == "c_attn"
    assert refused.value.expected == "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"  # no tied head


def test_a_head_that_is_tied_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="two layers share"):
        adapted(built(config_folder(tmp_path)), targets=["lm_head"])
    student = adapted(built(config_folder(tmp_path), tie_word_embeddings=False), targets=["lm_head"])
    assert {name.split(".")[0] for name in adapter_tensors(student)} == {"lm_head"}


def test_an_adapter_needs_weights_to_start_from() -> None:
    with pytest.raises(ValueError, match="say which in `start`"):
        StudentOptions.model_validate(
            {"name": "a", "architecture": "mlp", "objective": [{"loss": "labels"}], "adapter": LORA}
        )


@pytest.fixture(scope="module")
def lora_runs(tmp_path_factory: pytest.TempPathFactory, cache: Cache) -> Path:
    """Runs of an adapter of a whole model, and of one that was cut; beside the model `m`."""
    folder = tmp_path_factory.mktemp("lora")
    whole = hf_student(model_folder(folder / "m"), start=True, adapter=LORA, learning_rate=0.1)
    cut = hf_student(
        folder / "m", "cut", start={"layers": [1]}, options={"num_hidden_layers": 1}, adapter=LORA, epochs=1
    )
    assert not train_students(request(cache, folder / "runs", whole, cut)).errors
    return folder / "runs"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's of transformers
def test_an_adapter_is_exported_alone_and_names_its_base(lora_runs: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found = export_transformers(lora_runs / "hf", tmp_path / "out", adapter=True)
    base = AutoModelForCausalLM.from_pretrained(lora_runs.parent / "m", dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    with torch.inference_mode():
        said, expected = loaded(input_ids=tokens()).logits[..., :IDS], load_student(lora_runs / "hf")(tokens())
    assert torch.allclose(said, expected, rtol=0, atol=1e-4)
    assert found.told[1] == f"an adapter of {lora_runs.parent}/m, digests of it in stillroom.json"
    weights = lora_runs.parent / "m/model.safetensors"
    mark = json.loads((tmp_path / "out/stillroom.json").read_text())
    assert mark["base"] == {"model.safetensors": file_digest(weights)}
    assert not (tmp_path / "out/model.safetensors").exists()


def test_an_adapter_is_exported_merged_too(lora_runs: Path, tmp_path: Path) -> None:
    assert export_transformers(lora_runs / "cut", tmp_path / "out").kind == "LlamaForCausalLM"
    assert not (tmp_path / "out/adapter_config.json").exists()


def test_an_adapter_whose_base_is_in_no_folder_is_refused(lora_runs: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="is in no folder"):
        export_transformers(lora_runs / "cut", tmp_path / "out", adapter=True)
    (lora_runs.parent / "m").rename(lora_runs.parent / "away")
    try:
        with pytest.raises(BadRequest, match="is not where its job says"):
            export_transformers(lora_runs / "hf", tmp_path / "out", adapter=True)
    finally:
        (lora_runs.parent / "away").rename(lora_runs.parent / "m")
