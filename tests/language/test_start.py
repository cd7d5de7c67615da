"""Students that start from weights: what is taken by name and shape, what is told, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from storage.cache import Cache
from storage.errors import BadRequest, BadWeights, MissingSource, StaleCache
from student_train.options.model import StartOptions
from student_train.options.sections import StudentOptions
from student_train.preparing.checks import SAME_START
from student_train.preparing.dry_run import dry_run
from student_train.preparing.prepare import prepare
from student_train.running import events
from student_train.running.train import train_students
from student_train.stepping.state import TrainState
from student_train.students import Blueprint, Student, build_student
from student_train.students.starting.start import Started, start_student
from student_train.students.transformers import embedded, transformers
from tests.language.models import config_folder, hf_student, model_folder
from tests.language.test_hf_student import built
from tests.language.toys import IDS, counting_cache, request, small_gpt

GEMMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return counting_cache(tmp_path_factory.mktemp("counting"))


def begun(student: Student, path: Path, layers: list[int] | None = None) -> Started:
    return start_student(student, StartOptions(layers=layers), path)  # type: ignore[arg-type]


def test_true_takes_the_weights_in_its_own_folder(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    student = built(folder, seed=7)
    found = begun(student, folder)
    stored = load_file(folder / "model.safetensors")
    assert found.told == f"starts from {folder}: {len(stored)} of {len(stored)} tensors"
    assert all(torch.equal(student.network.state_dict()[name], tensor) for name, tensor in stored.items())


def test_a_student_with_fewer_layers_takes_the_first(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    student = built(folder, seed=7, num_hidden_layers=1)
    found = begun(student, folder)
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(student.network.state_dict()[name], stored[name])
    assert not found.missing
    assert "; 9 there and not used: model.layers.1." in found.told


def test_a_student_is_cut_from_the_layers_that_it_names(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, num_hidden_layers=4)
    student = built(folder, seed=7, num_hidden_layers=2)
    begun(student, folder, [3, 1])
    stored, taken = load_file(folder / "model.safetensors"), student.network.state_dict()
    for own, theirs in ((0, 3), (1, 1)):
        for part in ("mlp.up_proj.weight", "input_layernorm.weight"):
            assert torch.equal(taken[f"model.layers.{own}.{part}"], stored[f"model.layers.{theirs}.{part}"])
    assert torch.equal(taken["model.embed_tokens.weight"], stored["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("num_layers", "layers", "types"),
    [(2, None, "sf"), (1, [3], "f"), (2, [3, 2], "fs"), (4, [3, 2, 1, 0], "fsfs"), (6, None, "sfsfsf")],
)
def test_what_a_config_says_of_each_layer_follows_the_layers(
    tmp_path: Path, num_layers: int, layers: list[int] | None, types: str
) -> None:
    """Gemma 2 slides a window in every other layer; Qwen, Gemma and SmolLM write such lists into each config."""
    folder = config_folder(tmp_path, "gemma2", **GEMMA, num_hidden_layers=4)
    assert len(json.loads((folder / "config.json").read_text())["layer_types"]) == 4
    model = transformers(IDS, (8,), **embedded(folder, {"num_hidden_layers": num_layers}, layers=layers))
    written = {"s": "sliding_attention", "f": "full_attention"}
    assert model.config.layer_types == [written[letter] for letter in types]


def test_a_student_is_cut_from_a_model_that_says_of_each_layer_what_it_is(tmp_path: Path, cache: Cache) -> None:
    folder = model_folder(tmp_path / "gemma", "gemma2", **GEMMA, num_hidden_layers=2)
    cut = hf_student(folder, options={"num_hidden_layers": 1}, start={"layers": [1]})
    train_students(request(cache, tmp_path / "runs", cut))
    config = json.loads((tmp_path / "runs/hf/student.json").read_text())["options"]["config"]
    assert (config["num_hidden_layers"], config["layer_types"]) == (1, ["full_attention"])


@pytest.mark.parametrize("layers", [[0], [0, 1, 2], [0, 9]])
def test_layers_that_do_not_fit_are_refused(tmp_path: Path, layers: list[int]) -> None:
    folder = model_folder(tmp_path, num_hidden_layers=4)
    with pytest.raises(BadRequest, match="do not fit the student") as refused:
        begun(built(folder, num_hidden_layers=2), folder, layers)
    assert refused.value.expected == "2 of them, one for each of the student's, from 0 to 3"


def test_another_shape_is_told_and_not_taken(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    found = begun(built(folder, intermediate_size=8), folder)
    assert len(found.reshaped) == 6
    assert "model.layers.0.mlp.down_proj.weight (16, 32) instead of (16, 8)" in found.told


def test_a_head_that_a_tied_student_has_no_place_for_is_told(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, tie_word_embeddings=False)
    found = begun(built(folder, tie_word_embeddings=True), folder)
    assert found.told.endswith("; 1 there and not used: lm_head.weight")
    stored = load_file(folder / "model.safetensors")  # of one that is tied, and stored twice
    save_file(stored | {"lm_head.weight": stored["model.embed_tokens.weight"].clone()}, tmp_path / "twice.safetensors")
    assert not begun(built(folder, tie_word_embeddings=True), tmp_path / "twice.safetensors").unused


def test_weights_of_another_width_are_refused_with_both_shapes(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    narrow = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}
    with pytest.raises(BadRequest, match=r"nothing of .* is of this student") as refused:
        begun(built(folder, **narrow, head_dim=4), folder)
    assert "instead of" in str(refused.value.found)


def test_weights_of_nothing_that_it_has_are_refused(tmp_path: Path) -> None:
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(BadRequest, match=r"nothing of .* is of this student"):
        begun(built(config_folder(tmp_path)), tmp_path / "w.safetensors")


def test_a_body_alone_is_taken_under_the_name_that_the_model_has_for_it(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    stored = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in stored.items()}, tmp_path / "body.safetensors")
    student = built(folder, seed=7)
    assert not begun(student, tmp_path / "body.safetensors").missing
    assert torch.equal(student.network.state_dict()["model.norm.weight"], stored["model.norm.weight"])


RENAMED = {"gpt_neox": {}, "mixtral": {"num_local_experts": 2}}
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize("kind", RENAMED)
def test_what_the_library_stores_under_other_names_is_taken(tmp_path: Path, kind: str) -> None:
    """A GPT-NeoX's head lies in files as `embed_out`, a Mixtral's experts each by itself."""
    from transformers import AutoModelForCausalLM

    keys = {"num_key_value_heads": 1} if kind == "mixtral" else {}
    folder = model_folder(tmp_path, kind, **SMALL, **keys, **RENAMED[kind])
    student = built(folder, seed=7)
    drawn = torch.random.get_rng_state()
    found = begun(student, folder)
    assert torch.equal(torch.random.get_rng_state(), drawn)  # what comes after it is drawn as if there were no start
    theirs, own = AutoModelForCausalLM.from_pretrained(folder).state_dict(), student.network.state_dict()
    assert not set(theirs) <= set(load_file(folder / "model.safetensors"))
    assert found.told == f"starts from {folder}: {len(theirs)} of {len(theirs)} tensors"
    assert all(torch.equal(own[name], tensor) for name, tensor in theirs.items())
    cut = built(folder, seed=7, num_hidden_layers=1)
    begun(cut, folder, [1])
    of_second = {name.replace("layers.1.", "layers.0."): tensor for name, tensor in theirs.items() if ".1." in name}
    assert of_second
    assert all(torch.equal(cut.network.state_dict()[name], of_second[name]) for name in of_second)


def test_half_precision_and_shards_are_taken(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = model_folder(tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half", max_shard_size="6KB")
    assert len([*(tmp_path / "half").glob("*.safetensors")]) > 1
    student = built(folder, seed=7)
    assert not begun(student, tmp_path / "half").missing
    name = "model.embed_tokens.weight"
    assert torch.equal(student.network.state_dict()[name], model.state_dict()[name].float())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "w.bin"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(BadWeights, match=r"pickles|no safetensors"):
        begun(built(config_folder(tmp_path)), tmp_path if name.startswith("pytorch") else tmp_path / name)


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingSource):
        begun(built(config_folder(tmp_path)), tmp_path)
    with pytest.raises(MissingSource):
        begun(built(config_folder(tmp_path)), tmp_path / "nothing")


def test_a_student_starts_where_a_run_ended(tmp_path: Path, cache: Cache) -> None:
    assert not train_students(request(cache, tmp_path / "runs", small_gpt("first"))).errors
    told: list[events.Event] = []
    asked = request(cache, tmp_path / "runs", small_gpt("second", start=str(tmp_path / "runs/first"), seed=3))
    state = TrainState.fresh(asked.students[0], *blueprint_of(asked), torch.device("cpu"))
    stored = load_file(tmp_path / "runs/first/student.safetensors")
    assert all(torch.equal(state.student.state_dict()[name], tensor) for name, tensor in stored.items())
    assert not train_students(asked, report=told.append).errors
    (event,) = [event for event in told if isinstance(event, events.StartingWeights)]
    assert event.told == f"starts from {tmp_path}/runs/first: 16 of 16 tensors"


def test_seeds_of_students_that_start_alike_are_told_to_decide_next_to_nothing(tmp_path: Path, cache: Cache) -> None:
    """Their weights are the same, and one order of rows is all that the job has."""
    assert not train_students(request(cache, tmp_path / "runs", small_gpt("first"))).errors
    start = str(tmp_path / "runs/first")
    alike = [small_gpt(f"s{seed}", start=start, seed=seed) for seed in (0, 1)]
    told = {each.name: each.started for each in prepare(request(cache, tmp_path / "runs", *alike))}
    assert all(text is not None and text.endswith(SAME_START) for text in told.values())
    other = small_gpt("other", start=start, seed=2, learning_rate=0.5)
    (first, second) = prepare(request(cache, tmp_path / "runs", alike[0], other))
    assert SAME_START not in f"{first.started}{second.started}"


def blueprint_of(asked: object) -> tuple[object, dict[object, object]]:
    (student,) = prepare(asked)  # type: ignore[arg-type]
    return student.blueprint, student.feature_shapes  # type: ignore[return-value]


def test_a_student_of_images_starts_from_weights_too(tmp_path: Path) -> None:
    spec = Blueprint(architecture="cnn", num_classes=3, input_shape=(1, 8, 8), mean=(0.2,), std=(0.4,))
    first, second = build_student(spec), build_student(spec)
    save_file(first.state_dict(), tmp_path / "w.safetensors")
    assert not begun(second, tmp_path / "w.safetensors").missing
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), second.parameters(), strict=True))


def test_changed_weights_are_noticed(tmp_path: Path, cache: Cache) -> None:
    folder = model_folder(tmp_path / "m")
    student = hf_student(folder, start=True, epochs=1)
    assert not train_students(request(cache, tmp_path / "runs", student)).errors
    (skipped,) = dry_run(request(cache, tmp_path / "runs", student)).students
    assert skipped.action == "skip"
    model_folder(folder, seed=1)
    with pytest.raises(StaleCache) as refused:
        train_students(request(cache, tmp_path / "runs", student))
    assert refused.value.found.startswith("start.model.safetensors = ")  # type: ignore[union-attr]


def test_a_dry_run_tells_what_is_taken(tmp_path: Path, cache: Cache) -> None:
    folder = model_folder(tmp_path / "m")
    found = dry_run(request(cache, tmp_path / "runs", hf_student(folder, start=True)))
    assert found.warnings == (f"hf starts from {folder}: 20 of 20 tensors",)


def test_a_model_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    from storage.language.tokenizer import parse_tokenizer, train_tokenizer
    from student_train.students.starting.start import check_speaks

    here, there = (train_tokenizer([text], 260, end) for text, end in (("ab ab", "<end>"), ("cd cd", "<stop>")))
    (tmp_path / "tokenizer.json").write_bytes(there)
    expected = parse_tokenizer(here, "here").fingerprint
    with pytest.raises(BadRequest) as refused:
        check_speaks(tmp_path, expected, here)
    assert "difference at id 0: '<stop>' instead of '<end>'" in str(refused.value.found)
    (tmp_path / "tokenizer.json").write_bytes(here)
    check_speaks(tmp_path, expected, here)


def test_what_it_may_say() -> None:
    plain = {"name": "a", "architecture": "mlp", "objective": [{"loss": "labels"}]}
    assert StudentOptions.model_validate(plain | {"start": "w"}).start == StartOptions(path=Path("w"))
    assert StudentOptions.model_validate(plain | {"start": False}).start is None
    with pytest.raises(ValueError, match="there is none"):
        StudentOptions.model_validate(plain | {"start": True})
