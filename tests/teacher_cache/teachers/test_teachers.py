from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from storage.cache import Cache
from storage.errors import BadRequest, BadTeacher, BadWeights, CorruptObject, MissingSource, StillroomError
from storage.inputs.arguments import to_float
from storage.options import Options
from teacher_cache.teachers.kinds import KINDS
from teacher_cache.teachers.loading import load_teacher
from teacher_cache.teachers.options import TeacherOptions
from teacher_cache.teachers.weights import read_weights
from tests.teacher_cache.toys import DIGITS, Silent, build, teacher_section, write_job, write_teacher

CPU = torch.device("cpu")


def options(folder: Path, **fields: Any) -> TeacherOptions:
    fields = {"name": "toy", "factory": f"{folder}/toy.py:build", "weights": str(folder / "toy.safetensors")} | fields
    return TeacherOptions(**fields)


class Executes:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "executed")


def test_weights_are_read_from_safetensors(tmp_path: Path) -> None:
    model = write_teacher(tmp_path)
    loaded = load_teacher(options(tmp_path), CPU).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("wrapped", [False, True], ids=["a state dict", "a checkpoint with a state_dict"])
def test_weights_are_read_from_a_checkpoint_of_tensors(tmp_path: Path, wrapped: bool) -> None:
    model = write_teacher(tmp_path)
    state = model.state_dict()
    torch.save({"state_dict": dict(state), "epoch": 3} if wrapped else state, tmp_path / "toy.pt")
    loaded = load_teacher(options(tmp_path, weights=str(tmp_path / "toy.pt")), CPU).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_weights_kept_in_half_precision_fill_a_model_in_single(tmp_path: Path) -> None:
    model = write_teacher(tmp_path)
    half = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_file(half, tmp_path / "toy.safetensors")
    loaded = load_teacher(options(tmp_path), CPU).model.state_dict()["conv.weight"]
    assert torch.equal(loaded, half["conv.weight"].float())


@pytest.mark.parametrize("suffix", [".pt", ".pkl", ".safetensors"])
@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_pickle_that_would_execute_code_is_refused_and_not_executed(tmp_path: Path, suffix: str, how: str) -> None:
    path, proof = tmp_path / f"weights{suffix}", tmp_path / "proof"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Executes(proof), protocol=2))
    else:
        torch.save(Executes(proof), path)
    with pytest.raises(BadWeights):
        read_weights(path)
    assert not proof.exists()


def test_the_pickle_of_that_test_does_execute_where_nothing_prevents_it(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Executes(tmp_path / "proof")))
    assert (tmp_path / "proof").read_text() == "executed"


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04 no archive", b"\xff" * 9])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(BadWeights):
        read_weights(path)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(BadWeights, match="something other than weights"):
        read_weights(tmp_path / "list.pt")


def test_of_a_whole_training_checkpoint_its_keys_are_told_and_which_of_them_has_the_weights(tmp_path: Path) -> None:
    state = write_teacher(tmp_path).state_dict()
    torch.save({"epoch": 3, "model": state, "optimizer": {"state": {}, "lr": 0.1}}, tmp_path / "last.pt")
    with pytest.raises(BadWeights) as caught:
        read_weights(tmp_path / "last.pt")
    assert caught.value.found == "a dict of epoch, model, optimizer"
    assert caught.value.do == "keep the weights alone: torch.save(torch.load(…)['model'], …)"
    torch.save({"model": state, "ema": state}, tmp_path / "two.pt")
    with pytest.raises(BadWeights) as caught:
        read_weights(tmp_path / "two.pt")
    assert (caught.value.found, caught.value.do) == ("a dict of model, ema", None)  # nobody knows which is meant


def test_other_weights_of_the_same_names_in_a_checkpoint_are_told(tmp_path: Path) -> None:
    state = write_teacher(tmp_path).state_dict()
    other = {name: value * 0.5 for name, value in state.items()}
    moments = {"conv.weight": torch.zeros(2)}  # other tensors are of no matter
    saved = {"state_dict": state, "state_dict_ema": other, "moments": moments, "epoch": 3}
    torch.save(saved, tmp_path / "last.pt")
    chosen = options(tmp_path, weights=str(tmp_path / "last.pt"))
    (note,) = KINDS["factory"].notes(chosen)
    assert "'state_dict' of last.pt" in note
    assert "torch.load(…)['state_dict_ema']" in note
    loaded = load_teacher(chosen, CPU).model.state_dict()
    assert torch.equal(loaded["conv.weight"], state["conv.weight"])
    assert KINDS["factory"].notes(options(tmp_path)) == []


def test_weights_of_a_wrapped_model_are_refused_with_how_to_save_them(tmp_path: Path) -> None:
    state = write_teacher(tmp_path).state_dict()
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "parallel.pt")
    with pytest.raises(BadWeights) as caught:
        load_teacher(options(tmp_path, weights=str(tmp_path / "parallel.pt")), CPU)
    assert (
        caught.value.do == "all names in it begin with 'module.': save them without, {name.removeprefix('module.'): …}"
    )


def test_weights_that_do_not_fit_are_told_tensor_by_tensor(tmp_path: Path) -> None:
    state = write_teacher(tmp_path).state_dict()
    state["stem.weight"] = state.pop("conv.weight")
    state["head.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "toy.safetensors")
    with pytest.raises(BadWeights) as caught:
        load_teacher(options(tmp_path), CPU)
    assert caught.value.found == (
        "missing conv.weight\nunknown stem.weight\nhead.bias: (7,) in the file, (10,) in the model"
    )


@pytest.mark.parametrize(
    ("function", "error", "what"),
    [
        ("broken", BadTeacher, "toy.py:broken failed"),
        ("nothing", BadTeacher, "toy.py:nothing did not return a model"),
        ("absent", BadRequest, "toy.py has no function `absent`"),
    ],
)
def test_a_factory_that_gives_no_model_is_refused(
    tmp_path: Path, function: str, error: type[StillroomError], what: str
) -> None:
    write_teacher(tmp_path)
    with pytest.raises(error) as caught:
        load_teacher(options(tmp_path, factory=f"{tmp_path}/toy.py:{function}", weights=None), CPU)
    assert caught.value.what == f"{tmp_path}/{what}"


def test_weights_that_are_not_there_are_named_before_anything_is_loaded(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    (tmp_path / "toy.safetensors").unlink()
    with pytest.raises(MissingSource, match=r"there is no .*toy\.safetensors"):
        options(tmp_path).promise(10)


def changes(tmp_path: Path, **fields: Any) -> bool:
    write_teacher(tmp_path)
    return options(tmp_path).promise(10).fingerprint != options(tmp_path, **fields).promise(10).fingerprint


@pytest.mark.parametrize(
    "fields",
    [
        {"autocast": "bf16"},
        {"arguments": {"seconds": 0.1}},
        {"mean": [0.5], "std": [0.5]},
        {"encoding": {"dtype": "fp16"}},
        {"features": {"f": {"layer": "conv"}}},
        {"name": "other"},
    ],
    ids="+".join,
)
def test_a_promise_changes_with_everything_that_decides_the_targets(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert changes(tmp_path, **fields)


@pytest.mark.parametrize("fields", [{"batch_size": 3}, {"datasets": ["digits"]}], ids="+".join)
def test_a_promise_does_not_change_with_how_a_teacher_is_run(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert not changes(tmp_path, **fields)


def test_a_promise_does_not_change_when_the_files_move(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        write_teacher(tmp_path / folder)
    here, there = (options(tmp_path / folder).promise(10) for folder in ("here", "there"))
    assert here.fingerprint == there.fingerprint


def test_a_promise_is_blind_to_comments_in_the_code(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    before = options(tmp_path).promise(10).fingerprint
    (tmp_path / "toy.py").write_text("# a remark\n" + (tmp_path / "toy.py").read_text())
    assert options(tmp_path).promise(10).fingerprint == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factory": None}, "give either `factory`"),
        ({"student": "run"}, "give either `factory`"),
        ({"factory": None, "student": "run"}, "`weights` belongs to a `factory`"),
        ({"architecture": "a.py:b"}, "`architecture` belongs to a `student`"),
        ({"mean": [0.5]}, "`mean` and `std` together"),
        ({"mean": [0.5, 0.5], "std": [1.0]}, "`mean` and `std` together"),
        ({"std": [0.0], "mean": [0.5]}, "greater than 0"),
        ({"mean": [float("nan")], "std": [1.0]}, "finite number"),
        ({"arguments": {"x": float("nan")}}, "what JSON can"),
        ({"arguments": {"x": __import__("datetime").date(2020, 1, 1)}}, "what JSON can"),
        ({"batch_size": 0}, "greater than or equal to 1"),
        ({"autocast": "int8"}, "'fp32', 'bf16' or 'fp16'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options(tmp_path, **fields)


def student(folder: Path) -> torch.nn.Module:
    """Write an untrained student, as training writes one."""
    from student_train.students import Blueprint, build_student, save_student

    spec = Blueprint(
        architecture="cnn", options={"widths": [4]}, num_classes=10, input_shape=(1, 8, 8), mean=(0.3,), std=(0.4,)
    )
    torch.manual_seed(5)
    model = build_student(spec)
    save_student(folder, spec, model.state_dict())
    return model.eval()


def test_a_students_folder_is_a_teacher_that_normalises_by_itself(tmp_path: Path) -> None:
    model = student(tmp_path / "run")
    build(write_job(tmp_path, DIGITS, '[[teacher]]\nname = "cnn"\nstudent = "run"\nbatch_size = 256\n'))
    cache = Cache.open(str(tmp_path / "cache"))
    with torch.inference_mode():
        expected = model(to_float(torch.from_numpy(cache.read_inputs("digits", 3))))
    assert torch.equal(torch.from_numpy(cache.read_targets("digits", "cnn", 3)["logits"]), expected)


def test_a_students_damaged_weights_are_refused(tmp_path: Path) -> None:
    student(tmp_path / "run")
    path = tmp_path / "run/student.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptObject):
        load_teacher(TeacherOptions(name="cnn", student=str(tmp_path / "run")), CPU)  # type: ignore[arg-type]


def test_options_survive_the_way_to_a_worker(tmp_path: Path) -> None:
    given: Options = options(
        tmp_path, features={"f": {"layer": "conv"}}, mean=[0.5], std=[0.5], arguments={"classes": 3}
    )
    assert TeacherOptions.model_validate_json(given.model_dump_json()) == given


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_wrong_checkpoint_is_refused_before_a_row_is_read(tmp_path: Path, suffix: str) -> None:
    model = write_teacher(tmp_path)
    state = model.state_dict()
    state["head.weight"] = state["head.weight"][:7].clone()
    path = tmp_path / f"wrong.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    section = teacher_section().replace("toy.safetensors", path.name)
    assert path.name in section
    watcher = Silent()
    with pytest.raises(BadWeights, match="does not fit the model") as refused:
        build(write_job(tmp_path, DIGITS, section), watcher=watcher)
    assert "head.weight: (7, " in str(refused.value.found)
    assert not watcher.counts
    assert not (tmp_path / "cache/digits").exists()


def test_a_file_that_is_no_weights_and_a_layer_that_is_none_are_refused_before_a_row_is_read(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    tapped = teacher_section(extra='features = { f = { layer = "heads" } }')
    with pytest.raises(BadTeacher, match="has no layer heads") as refused:
        build(write_job(tmp_path, DIGITS, tapped))
    assert "near: head" in str(refused.value.expected)
    (tmp_path / "toy.safetensors").write_bytes(b"not these")
    with pytest.raises(BadWeights, match="is not a safetensors file"):
        build(write_job(tmp_path, DIGITS, teacher_section()))
    assert not (tmp_path / "cache/digits").exists()


def test_a_function_that_needs_values_is_left_to_the_worker(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    with (tmp_path / "toy.py").open("a") as file:
        file.write(
            "\n\nmade = build\n\n\ndef build(**a):\n    m = made(**a)\n    m.head.bias.sum().item()\n    return m\n"
        )
    assert build(write_job(tmp_path, DIGITS, teacher_section())).exit_code == 0


def test_a_damaged_student_and_one_of_code_that_nobody_trusts_are_refused_before_a_row_is_read(tmp_path: Path) -> None:
    student(tmp_path / "run")
    section = '[[teacher]]\nname = "small"\nstudent = "run"\n'
    weights = tmp_path / "run/student.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CorruptObject, match="is not what was written"):
        build(write_job(tmp_path, DIGITS, section))
    assert not (tmp_path / "cache/digits").exists()


def test_mean_and_std_of_grey_pictures_may_be_numbers(tmp_path: Path) -> None:
    grey, listed = options(tmp_path, mean=0.25, std=1), options(tmp_path, mean=[0.25], std=[1.0])
    assert (grey.mean, grey.std) == (listed.mean, listed.std) == ([0.25], [1.0])
    for wrong in (True, "0.5", []):
        with pytest.raises(ValueError, match="mean"):
            options(tmp_path, mean=wrong, std=1)
