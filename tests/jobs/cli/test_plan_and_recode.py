"""`cache plan` and `cache recode` as a user meets them: 80 columns, one JSON value, plots, and clear refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.show.pilot.tables import duration
from tests.conftest import Program
from tests.jobs.cli.test_programs import SLOW_TO_IMPORT, imported_by
from tests.teacher_cache.test_standing import write as shifted
from tests.teacher_cache.toys import teacher_section, write_digits, write_job, write_teacher

SPARSE = 'encoding = { kind = "sparse", k = 4, n = 5, values = "8bit", temperatures = [1, 4] }\n'
FEATURE = 'features.h = { layer = "norm" }\n'


@pytest.fixture
def folder(kitchen: Path, tmp_path: Path) -> Path:
    """Return a copy of the kitchen: a job, its whole dense cache, its teacher."""
    shutil.copytree(kitchen, tmp_path, dirs_exist_ok=True)
    return tmp_path


def smaller(folder: Path, *, extra: str = SPARSE, cache: str = "small") -> Path:
    return write_job(folder, write_digits(folder, 40), teacher_section(extra=extra), cache=cache)


# cache plan


def test_a_plan_is_a_table_of_80_columns_that_says_what_to_write(folder: Path, program: Program) -> None:
    ended = program("cache", "plan", smaller(folder, extra=SPARSE + FEATURE), "--rows", 32)
    assert ended.code == 0
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "…" not in ended.out
    assert "in [[teacher]] toy write\n  encoding = { kind = " in ended.out
    assert "k=4 n=5 8bit *" in ended.out
    assert "= k=4 n=5" in ended.out  # the job's own
    assert "unbiased" in ended.out


def test_a_plan_without_draws_or_labels_does_not_explain_them(folder: Path, program: Program) -> None:
    path = folder / "digits.npz"
    dataset = write_digits(folder, 40).replace('path = "digits.npz"', 'path = "inputs.npy"')
    import numpy as np

    np.save(folder / "inputs.npy", np.load(path)["inputs"])
    out = program("cache", "plan", write_job(folder, dataset, teacher_section()), "--rows", 32).out
    assert "unbiased" not in out
    assert "no labels" in out


def test_a_plan_of_views_that_mix_says_why_there_is_no_calibration_error(folder: Path, program: Program) -> None:
    views = '[views]\ncount = 1\ntransforms = [{ kind = "mixup" }]\n'
    out = program("cache", "plan", write_job(folder, write_digits(folder, 40), teacher_section(), views)).out
    assert "calibration error; view-000 mixes images, which have no one true label\n" in out
    assert "no labels" not in out


def test_a_plan_as_json_is_one_value_with_every_figure(folder: Path, program: Program) -> None:
    ended = program("cache", "plan", smaller(folder), "--rows", 32, "--workers", 3, "--epochs", 7, "--json")
    found = json.loads(ended.out)["teachers"][0]
    assert (found["teacher"], found["workers"], found["epochs"], found["rows_measured"]) == ("toy", 3, 7, 32)
    own = next(encoding for encoding in found["encodings"] if encoding["own"])
    assert own["unbiased"]
    assert set(own) >= {"bytes_per_row", "kl", "calibration_error", "gradients", "students_from_which_it_pays"}
    assert found["write"].startswith("encoding = {")


def test_a_plan_of_another_size_tells_its_cost_and_what_stops_it_first(folder: Path, program: Program) -> None:
    size = "rows=1e9,views=90,workers=64,worker_hour=1.5,hours=24"
    ended = program("cache", "plan", smaller(folder), "--rows", 32, "--scale", size)
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "1,000,000,000 rows, 90 views, 64 workers as this one" in " ".join(ended.out.split())
    assert "the first limit that it meets: " in ended.out
    found = json.loads(program("cache", "plan", smaller(folder), "--rows", 32, "--scale", size, "--json").out)
    own = found["teachers"][0]["scale"]["encodings"]["sparse k=4 n=5 8bit"]
    assert own["objects"] == 2 * own["shards"] * 91
    assert set(own["dollars"]) == {"workers"}
    assert own["limits"][0]["share"] > 1


def test_a_plan_tells_how_the_teacher_stands_beside_chance(tmp_path: Path, program: Program) -> None:
    labels = [1, 2, 3, 3] * 8
    told = "of 32 labelled rows; chance 25.0%, the commonest class 50.0%"
    out = " ".join(program("cache", "plan", shifted(tmp_path, labels)).out.split())
    assert f"accuracy 100.0% {told}" in out
    assert "warning" not in out
    job = shifted(tmp_path, labels, "arguments = { less = 1 }\n")
    out = " ".join(program("cache", "plan", job).out.split())
    assert f"warning: near chance: accuracy 0.0% {told}; look at the teacher's mean and std" in out
    values = json.loads(program("cache", "plan", job, "--json").out)["teachers"][0]
    assert (values["standing"], values["is_near_chance"]) == (f"accuracy 0.0% {told}", True)


@pytest.mark.parametrize(("name", "begins"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml"), ("p.PDF", b"%PDF")])
def test_a_plot_is_written_by_the_file_s_suffix(folder: Path, program: Program, name: str, begins: bytes) -> None:
    ended = program("cache", "plan", smaller(folder), "--rows", 32, "--plot", folder / name)
    assert ended.code == 0, ended.err
    assert (folder / name).read_bytes().startswith(begins)


@pytest.mark.slow
def test_only_a_plot_imports_matplotlib(folder: Path) -> None:
    job = smaller(folder)
    assert "matplotlib" not in imported_by("cache", "plan", job, "--rows", "32")
    assert "matplotlib" in imported_by("cache", "plan", job, "--rows", "32", "--plot", str(folder / "p.png"))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plan", "recode"])
def test_their_help_imports_nothing_slow(command: str) -> None:
    assert imported_by("cache", command, "--help").isdisjoint({*SLOW_TO_IMPORT, "matplotlib"})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0213, "0.021 s"),
        (9.94, "9.9 s"),
        (90, "90 s"),
        (150, "2.5 min"),
        (7300, "2 h"),
        (4e5, "4.6 days"),
        (1e8, "1157 days"),
    ],
)
def test_lengths_of_time_have_two_digits_or_so(seconds: float, text: str) -> None:
    assert duration(seconds) == text


Arguments = Callable[[Path], list[object]]


def plan_of(*options: object, change: tuple[str, str] = ("", "")) -> Arguments:
    def make(folder: Path) -> list[object]:
        job = smaller(folder)
        job.write_text(job.read_text().replace(*change) if change[0] else job.read_text())
        return ["plan", job, *options]

    return make


def recode_of(*options: object, cache: str = "cache", job: Callable[[Path], Path] = smaller) -> Arguments:
    def make(folder: Path) -> list[object]:
        return ["recode", folder / cache, job(folder), *options]

    return make


def without_weights(folder: Path) -> list[object]:
    (folder / "toy.safetensors").unlink()
    return ["plan", smaller(folder)]


def without_classes(folder: Path) -> list[object]:
    job = smaller(folder)
    lines = [line for line in job.read_text().splitlines() if not line.startswith("classes")]
    job.write_text("\n".join(lines).replace('path = "digits.npz"', 'path = "inputs.npy"'))
    import numpy as np

    np.save(folder / "inputs.npy", np.zeros((4, 1, 8, 8), np.uint8))
    return ["plan", job]


def dense_from_sparse(folder: Path) -> list[object]:
    from tests.teacher_cache.toys import build

    build(smaller(folder))
    job = smaller(folder, extra="", cache="large")
    return ["recode", folder / "small", job]


STUPID: dict[str, tuple[Arguments, str]] = {
    "plan: a job that is not there": (lambda folder: ["plan", folder / "no.toml"], "cannot read the job file"),
    "plan: a job of students": (lambda folder: ["plan", folder / "students.toml"], "is a job of student train"),
    "plan: a cache instead of a job": (lambda folder: ["plan", folder / "cache"], "cannot read the job file"),
    "plan: no teacher": (
        lambda folder: ["plan", write_job(folder, write_digits(folder, 20))],
        "has no teacher to measure",
    ),
    "plan: weights that are not there": (without_weights, "there is no"),
    "plan: a dataset of no classes": (without_classes, "has no classes"),
    "plan: a plot without a suffix": (plan_of("--plot", "picture"), "has no suffix of a picture"),
    "plan: a plot in no folder": (plan_of("--plot", "/no/such/folder/p.png"), "cannot be written"),
    "plan: a plot that is a folder": (
        lambda folder: [*plan_of()(folder), "--plot", (folder / "p.png").mkdir() or folder / "p.png"],
        "cannot be written",
    ),
    "plan: a negative budget": (plan_of(change=("[cluster]", "[fidelity]\nmax_kl = -1\n[cluster]")), "fidelity.max_kl"),
    "plan: a budget that is no number": (
        plan_of(change=("[cluster]", "[fidelity]\nmax_kl = nan\n[cluster]")),
        "fidelity.max_kl",
    ),
    "plan: an unknown key of the budget": (
        plan_of(change=("[cluster]", "[fidelity]\nmax_k = 1\n[cluster]")),
        "did you mean `max_kl`?",
    ),
    "plan: k and n beyond the classes": (plan_of(change=("k = 4", "k = 40")), "more classes than the 10"),
    "plan: a scale of no views": (plan_of("--scale", "rows=9,views=0"), "views: expected at least 1"),
    "plan: a scale of no size": (plan_of("--scale", "views=9"), "say how large it is"),
    "plan: a scale without a value": (plan_of("--scale", "rows"), "cannot be read"),
    "plan: a scale of an unknown key": (plan_of("--scale", "rows=9,view=2"), "did you mean `views`?"),
    "plan: a scale of tokens of images": (plan_of("--scale", "tokens=9"), "is not of dataset digits"),
    "plan: more builders than workers": (plan_of("--scale", "rows=9,workers=2,builders=3"), "each needs one"),
    "plan: a GPU that is not there": (plan_of("--device", "cuda"), "no CUDA device can be used here"),
    "recode: a cache that is not there": (recode_of(cache="nowhere"), "is not a cache"),
    "recode: a file": (recode_of(cache="job.toml"), "is not a cache"),
    "recode: the arguments swapped": (
        lambda folder: ["recode", smaller(folder), folder / "cache"],
        "cannot read the job file",
    ),
    "recode: a job of students": (
        lambda folder: ["recode", folder / "cache", folder / "students.toml"],
        "is a job of student train",
    ),
    "recode: a cache from itself": (
        recode_of(job=lambda folder: smaller(folder, cache="cache")),
        "the very one to recode from",
    ),
    "recode: a path as a name": (recode_of("--as", "a/b"), "is not a name"),
    "recode: workers of no cluster": (recode_of("--workers", 3), "--workers is for a local cluster"),
    "recode: sparse to dense": (dense_from_sparse, "holds too little of digits/toy"),
    "recode: k beyond the classes": (
        recode_of(job=lambda folder: smaller(folder, extra=SPARSE.replace("k = 4", "k = 40"))),
        "more classes than the 10",
    ),
    "recode: a folder of something else": (
        recode_of(job=lambda folder: smaller(folder, cache=".")),
        "holds something that is not a cache",
    ),
    "recode: a cache within the other": (
        recode_of(job=lambda folder: smaller(folder, cache="cache/smaller")),
        "would lie inside the other",
    ),
}


@pytest.mark.parametrize("name", STUPID)
def test_what_cannot_be_done_is_told_with_status_2_and_no_traceback(
    folder: Path, program: Program, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make, message = STUPID[name]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = make(folder)
    capfd = program("cache", *arguments, "--json")
    assert (capfd.code, "Traceback" in capfd.err) == (2, False), capfd.err
    found = json.loads(capfd.out)
    assert message in " ".join(str(found[key]) for key in ("what", "found", "do"))
    assert message in capfd.err


@pytest.mark.parametrize("options", [("--rows", "0"), ("--rows", "many"), ("--epochs", "0"), ("--workers", "-1")])
def test_options_that_make_no_sense_are_refused(folder: Path, program: Program, options: tuple[str, str]) -> None:
    assert program("cache", "plan", smaller(folder), *options).code == 2


def test_more_rows_than_there_are_is_all_of_them(folder: Path, program: Program) -> None:
    assert "\n40 of 40 rows" in program("cache", "plan", smaller(folder), "--rows", 10_000).out


# cache recode


def test_a_recoded_cache_is_whole_and_a_student_trains_from_it(folder: Path, program: Program) -> None:
    job = smaller(folder, extra='encoding = { kind = "sparse", k = 4, values = "8bit", temperatures = [1, 4] }\n')
    write_teacher(folder, name="other")
    for name in ("toy.py", "toy.safetensors", "digits.npz"):
        (folder / name).unlink()
    ended = program("cache", "recode", folder / "cache", job, "--json")
    assert (ended.code, json.loads(ended.out)["built"]) == (0, 6)
    assert program("cache", "verify", folder / "small").code == 0
    students = folder / "students.toml"
    text = students.read_text().replace('cache = "cache"', 'cache = "small"')
    kd = '{ loss = "kd", teacher = "toy", temperature = 4.0 }'
    students.write_text(text.replace('{ loss = "labels" }', kd))
    assert kd in students.read_text()
    ended = program("student", "train", students)
    assert ended.code == 0, ended.err


def test_as_makes_a_cache_of_that_name_beside(folder: Path, program: Program) -> None:
    assert program("cache", "recode", folder / "cache", smaller(folder), "--as", "tiny").code == 0
    assert (folder / "tiny/cache.json").exists()
    assert not (folder / "small").exists()


def test_a_second_recoding_says_that_all_is_there(folder: Path, program: Program) -> None:
    job = smaller(folder)
    first, second = (program("cache", "recode", folder / "cache", job) for _ in range(2))
    assert "6 shards built" in " ".join(first.out.split())
    assert "0 shards built (0 B), 6 were there" in " ".join(second.out.split())
    assert second.code == 0
