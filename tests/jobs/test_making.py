"""`student make`, then `student train` from what was made: the teacher is read once, and never again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from storage.cache import Cache
from student_train.run_files.records import read_record
from student_train.students import load_student
from tests.conftest import Program
from tests.jobs.test_isolation import rooms_of
from tests.teacher_cache.making.conftest import pantry

__all__ = ["pantry"]

STUDENTS = """
cache = "{cache}"
runs = "runs"
train = "digits"
validation = "digits"
[defaults]
epochs = 1
batch_size = 16
objective = [{{ loss = "kd", teacher = "net" }}]
[[student]]
name = "small"
start = "small"
{more}
"""


def write_students(folder: Path, pantry: Path, more: str = "") -> Path:
    path = folder / "students.toml"
    path.write_text(STUDENTS.format(cache=pantry / "cache", more=more))
    return path


@pytest.fixture
def small(pantry: Path, tmp_path: Path, program: Program) -> Path:
    teacher = f"{pantry / 'job.toml'}:net"
    ended = program("student", "make", "prune", teacher, "-o", tmp_path / "small", "--flops", 0.5, "--by", "random")
    assert ended.code == 0, ended.err
    assert "of the teacher's FLOPs" in ended.out
    return tmp_path / "small"


@pytest.mark.parametrize(
    ("way", "more", "found", "expected"),
    [
        ("prune", (), "none", "one of --flops, --parameters and --latency, a share of the teacher's between 0 and 1"),
        ("lowrank", (), "none", "one of --flops, --parameters and --energy, a share of the teacher's between 0 and 1"),
        ("copy", ("--units", "strongest"), "--units strongest without --width", None),
    ],
)
def test_what_is_asked_for_is_an_option_of_the_way_and_does_something(
    pantry: Path, tmp_path: Path, program: Program, way: str, more: tuple[str, ...], found: str, expected: str | None
) -> None:
    ended = program("student", "make", way, f"{pantry / 'job.toml'}:net", "-o", tmp_path / "x", *more, "--json")
    refused = json.loads(ended.out)
    assert (ended.code, refused["found"], refused.get("expected")) == (2, found, expected)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("student", "make", "quantize", "job.toml:net", "-o"),
        ("student", "export", "runs/small", "-o"),
        ("student", "report", "runs", "--out"),
        ("student", "train", "students.toml", "--metrics-file"),
        ("student", "eval", "runs/small", "digits", "--keep"),
        ("cache", "plan", "job.toml", "--plot"),
    ],
)
def test_what_is_written_is_written_on_this_machine(program: Program, command: tuple[str, ...]) -> None:
    ended = program(*command, "s3://bucket/out")
    assert (ended.code, "is an address" in ended.err) == (2, True)


def test_a_student_starts_from_what_was_made_and_is_a_teacher_in_turn(
    small: Path, pantry: Path, tmp_path: Path, program: Program
) -> None:
    own = f"{pantry / 'net.py'}:build"
    ended = program("student", "train", write_students(tmp_path, pantry, f'architecture = "{own}"'))
    assert ended.code == 0, ended.err
    record = read_record(tmp_path / "runs" / "small")
    assert record is not None
    made = json.loads((small / "student.json").read_text())
    assert record.identity["began_as"]["made"] == made["made"]
    run = json.loads((tmp_path / "runs" / "small" / "student.json").read_text())
    assert (run["changes"], run["made"], run["mean"]) == (made["changes"], made["made"], [0.3])
    student = load_student(tmp_path / "runs" / "small", architecture=own)
    assert record.parameters == sum(parameter.numel() for parameter in student.parameters())
    # and of it another: it is a teacher, too
    dataset = (pantry / "job.toml").read_text().partition("[[teacher]]")[0]
    (tmp_path / "next.cache.toml").write_text(
        dataset.replace('"cache"', f'"{pantry}/cache"').replace('"digits.npz"', f'"{pantry}/digits.npz"')
        + f'[[teacher]]\nname = "small"\nstudent = "runs/small"\narchitecture = "{own}"\n'
    )
    further = program(
        "student", "make", "prune", f"{tmp_path / 'next.cache.toml'}:small", "-o", tmp_path / "smaller",
        "--parameters", 0.5,
    )  # fmt: skip
    assert further.code == 0, further.err
    smaller = json.loads((tmp_path / "smaller" / "student.json").read_text())
    assert smaller["made"]["teacher_made"] == made["made"]
    assert len(smaller["changes"]) == len(made["changes"])  # each layer is told of once, at its last size
    assert load_student(tmp_path / "smaller", architecture=own).blueprint.changes != student.blueprint.changes


def test_code_of_a_teacher_runs_only_where_the_job_names_it_and_unchanged(
    small: Path, pantry: Path, tmp_path: Path, program: Program
) -> None:
    ended = program("student", "train", write_students(tmp_path, pantry))
    assert ended.code == 2
    assert f'architecture = "{pantry / "net.py"}:build" in the job, if you trust that code' in ended.err
    (tmp_path / "net.py").write_text((pantry / "net.py").read_text().replace("* 3", "* 2"))
    ended = program("student", "train", write_students(tmp_path, pantry, 'architecture = "net.py:build"'))
    assert ended.code == 2
    assert "was made by other code" in ended.err


@pytest.mark.slow
def test_training_what_was_made_loads_no_teacher(pantry: Path, small: Path, tmp_path: Path) -> None:
    job = write_students(tmp_path, pantry, f'architecture = "{pantry / "net.py"}:build"')
    assert rooms_of("student", "train", job) & {"teacher_cache", "torch_pruning", "dask", "distributed"} == set()


def test_a_normalisation_of_its_own_is_refused(small: Path, pantry: Path, tmp_path: Path, program: Program) -> None:
    own = f'architecture = "{pantry / "net.py"}:build"'
    ended = program("student", "train", write_students(tmp_path, pantry, f"{own}\nmean = [0.1]"))
    assert (ended.code, "normalises its inputs otherwise" in ended.err) == (2, True)


def test_a_student_without_architecture_says_what_it_starts_from(
    pantry: Path, tmp_path: Path, program: Program
) -> None:
    job = write_students(tmp_path, pantry)
    job.write_text(job.read_text().replace('start = "small"', ""))
    ended = program("student", "train", job)
    assert (ended.code, "say its `architecture`" in ended.err) == (2, True)


QUANTISED = """
cache = "{cache}"
runs = "runs"
train = "digits"
validation = "digits"
stacking = "{stacking}"
[[student]]
name = "tiny"
architecture = "cnn"
options = {{ widths = [4, 8] }}
quantize = "int8"
epochs = 2
batch_size = 16
objective = [{{ loss = "labels" }}]
sweep = {{ seed = [0, 1] }}
"""


@pytest.mark.parametrize("stacking", ["never", "always"])
def test_a_student_that_is_trained_for_int8_is_written_as_codes_and_measured_so(
    stacking: str, pantry: Path, tmp_path: Path, program: Program
) -> None:
    job = tmp_path / "students.toml"
    job.write_text(QUANTISED.format(cache=pantry / "cache", stacking=stacking))
    assert program("student", "train", job).code == 0
    for folder in (tmp_path / "runs").iterdir():
        record, student = read_record(folder), load_student(folder)
        assert record is not None
        codes = {name for name, tensor in student.state_dict().items() if tensor.dtype == torch.int8}
        assert codes == {f"network.{name}.codes" for name in ("stage1.0", "stage2.1", "head")}
        cache = Cache.open(str(pantry / "cache"))
        labels = cache.samples(["digits"]).of("digits").sort("row")["label"].to_numpy()
        shown = np.concatenate([cache.read_inputs("digits", shard) for shard in range(4)])
        said = student(student.blueprint.made_of.arguments(torch.from_numpy(shown))).argmax(1).numpy()
        assert record.accuracy == pytest.approx((said == labels).mean())


def test_a_student_for_int8_starts_with_all_that_there_is_and_tells_what_stays_in_floats(
    small: Path, pantry: Path, tmp_path: Path, program: Program
) -> None:
    own = f'architecture = "{pantry / "net.py"}:build"\nquantize = "int8"'
    ended = program("student", "train", write_students(tmp_path, pantry, own))
    assert ended.code == 0, ended.err
    said = " ".join((ended.out + ended.err).split())
    assert "and drawn" not in said  # ranges of inputs are none of a start's tensors
    assert "int8: 9 layers, a step for each channel; in floats: norms and biases" in said


def test_codes_are_no_start_for_training(pantry: Path, tmp_path: Path, program: Program) -> None:
    teacher = f"{pantry / 'job.toml'}:net"
    assert program("student", "make", "quantize", teacher, "-o", tmp_path / "small").code == 0
    own = f'architecture = "{pantry / "net.py"}:build"'
    ended = program("student", "train", write_students(tmp_path, pantry, own))
    assert (ended.code, "int8 codes, which no gradient moves" in ended.err) == (2, True)
