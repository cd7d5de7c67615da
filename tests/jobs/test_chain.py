"""`student chain`: generations of students, each of which teaches the next."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.chain.chain import chain_of, run_chain
from jobs.files.cache_job import CacheJob
from jobs.files.chain_job import ChainJob, generations
from jobs.files.reading import read_job
from jobs.files.student_job import StudentJob
from storage.errors import BadJob, Interrupted, MissingCapability, StillroomError
from student_train.run_files.records import read_record
from student_train.running.train import Summary, train_students
from student_train.stepping.parallel import ALONE
from teacher_cache.building.build import run_build
from teacher_cache.building.runners import run_inline
from teacher_cache.building.stages import BuildReport
from teacher_cache.building.survey import prepare_build
from tests.conftest import Program
from tests.teacher_cache.toys import Silent

DATA = """
cache = "cache"
[[dataset]]
name = "rows"
kind = "arrays"
path = "rows.npz"
validation = 0.25
rows_per_shard = 64
[cluster]
kind = "inline"
"""

CHAIN = """
job = "data.toml"
runs = "runs"
train = "rows/train"
validation = "rows/validation"
stacking = "never"
[defaults]
architecture = "mlp"
options = { hidden = [8] }
epochs = 2
batch_size = 32
[[student]]
name = "first"
objective = [{ loss = "labels" }]
[[student]]
name = "third"
objective = [{ loss = "kd", teachers = ["second", "first"] }]
[[student]]
name = "second"
seed = 1
objective = [{ loss = "labels" }, { loss = "kd", teacher = "first" }]
"""


def write(folder: Path, text: str = CHAIN) -> Path:
    """Write data, their cache job, and a chain; return the last."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 120)
    inputs = (80 * labels[:, None, None] + random.integers(0, 90, (120, 4, 4))).astype(np.uint8)[:, None]
    np.savez(folder / "rows.npz", inputs=inputs, labels=labels)
    (folder / "data.toml").write_text(DATA)
    (folder / "chain.toml").write_text(text)
    return folder / "chain.toml"


def state(folder: Path) -> dict[str, int]:
    """Return when each file was written last; a lock is no result."""
    files = (path for name in ("cache", "runs") for path in (folder / name).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files if "lock" not in path.name}


def weights(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("runs/*/student.safetensors")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a chain that came to its end, by the functions that the command calls."""
    folder = tmp_path_factory.mktemp("whole")
    assert run_chain(read_job(write(folder), ChainJob), build, train, lambda text: None).exit_code == 0
    return folder


def build(asking: CacheJob) -> BuildReport:
    return run_build(prepare_build(asking.request(Path("data.toml"), device="cpu")), run_inline, Silent())


def train(job: StudentJob) -> Summary:
    return train_students(job.request("cpu", ALONE))


def test_each_generation_teaches_the_next_and_a_second_run_does_nothing(
    whole: Path, tmp_path: Path, program: Program
) -> None:
    job = write(tmp_path / "own")
    foretold = program("student", "chain", job, "--dry-run")
    assert [line.split()[0] for line in foretold.out.splitlines()[2:5]] == ["1", "2", "3"]
    assert foretold.out.count("later") == 3
    assert "generation 1 waits for 2 shards of the cache" in foretold.out
    assert not (tmp_path / "own/cache").exists()
    prom = tmp_path / "chain.prom"
    ended = program("student", "chain", job, "--json", "--metrics-file", prom)
    assert ended.code == 0, ended.err
    figures = {line.split("{")[0]: float(line.split()[-1]) for line in prom.read_text().splitlines() if "}" in line}
    assert figures["stillroom_exit_code"] == 0
    assert (
        f'stillroom_train_students{{command="student chain",subject="{job}",status="finished"}} 3' in prom.read_text()
    )
    assert figures["stillroom_build_rows"] == 360  # the data, and both of them asked about each row
    found = json.loads(ended.out)["generations"]
    assert [[each["student"] for each in one["students"]] for one in found] == [["first"], ["second"], ["third"]]
    assert weights(tmp_path / "own") == weights(whole)
    assert len(set(weights(whole).values())) == 3
    record = read_record(tmp_path / "own/runs/third")
    assert record is not None
    assert sorted(record.identity["teachers"]) == ["first", "second"]
    before = state(tmp_path / "own")
    again = program("student", "chain", job)
    assert (again.code, state(tmp_path / "own")) == (0, before)
    assert max(map(len, again.out.splitlines()[:5])) <= 80
    told = json.loads(program("student", "chain", job, "--dry-run", "--json").out)["students"]
    assert [(each["generation"], each["student"], each["action"]) for each in told] == [
        (1, "first", "skip"),
        (2, "second", "skip"),
        (3, "third", "skip"),
    ]


def test_one_that_was_stopped_goes_on_to_the_very_same_weights(whole: Path, tmp_path: Path) -> None:
    job = read_job(write(tmp_path), ChainJob)
    asked = [0]

    def stop() -> bool:
        asked[0] += 1
        return asked[0] == 7  # of a student's loading, steps and evaluations

    def stopped(students: StudentJob) -> Summary:
        if students.student[0].name != "second":
            return train(students)
        return train_students(students.request("cpu", ALONE), stop=stop)

    with pytest.raises(Interrupted):
        run_chain(job, build, stopped, lambda text: None)
    assert weights(tmp_path).keys() == {"first"}
    assert (tmp_path / "runs/second/checkpoint.json").exists()
    assert run_chain(job, build, train, lambda text: None).exit_code == 0
    assert weights(tmp_path) == weights(whole)


def test_without_its_teacher_a_generation_is_not_begun(tmp_path: Path) -> None:
    job, told = read_job(write(tmp_path), ChainJob), list[str]()

    def failing(students: StudentJob) -> Summary:
        if students.student[0].name == "first":
            return train(students)
        return Summary((), {"second": StillroomError("it diverged")})

    ended = run_chain(job, build, failing, told.append)
    assert ended.exit_code == 1
    assert [generation.students[0].name for generation, _ in ended.trained] == ["first", "second"]
    assert told[-1] == "nobody can learn from second: it has not come to its end"


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ('"first"]', '"fist"]', "learns from fist, and there is nobody of that name"),
        ('teacher = "first"', 'teacher = "third"', "students that wait for each other are never trained: third from"),
        ('teacher = "first"', 'teacher = "second"', "second from second"),
        ('name = "first"', 'name = "sage"', "learns from first, and there is nobody"),
    ],
)
def test_a_chain_that_cannot_end_is_refused_before_it_begins(tmp_path: Path, was: str, now: str, told: str) -> None:
    path = write(tmp_path, CHAIN.replace(was, now))
    with pytest.raises(BadJob) as refused:
        chain_of(read_job(path, ChainJob))
    assert told in str(refused.value)
    assert not (tmp_path / "cache").exists()


def test_what_is_not_stored_of_students_is_asked_of_none(tmp_path: Path) -> None:
    sparse = '[teaching]\nencoding = { kind = "sparse", k = 2 }\n[defaults]'
    path = write(tmp_path, CHAIN.replace("[defaults]", sparse))
    with pytest.raises(MissingCapability, match="kd:second") as refused:
        chain_of(read_job(path, ChainJob))
    assert "[teaching]" in str(refused.value.do)
    hint = '{ loss = "hint", teacher = "first", feature = "pooled", student_layer = "network.hidden1" }'
    path = write(tmp_path, CHAIN.replace('{ loss = "kd", teacher = "first" }', hint))
    with pytest.raises(MissingCapability, match="hint:first/pooled"):
        chain_of(read_job(path, ChainJob))


def test_a_job_in_which_nobody_teaches_is_none_of_a_chain(tmp_path: Path) -> None:
    path = write(tmp_path, CHAIN.partition('[[student]]\nname = "third"')[0])
    with pytest.raises(BadJob) as refused:
        read_job(path, ChainJob)
    assert "no student learns from another" in str(refused.value.found)


def test_a_teacher_of_the_data_has_no_students_name(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "data.toml").write_text(DATA + '[[teacher]]\nname = "First"\nstudent = "x"\n')
    with pytest.raises(BadJob) as refused:
        chain_of(read_job(path, ChainJob))
    assert refused.value.found == "First"


def test_students_of_one_generation_are_trained_together(tmp_path: Path) -> None:
    more = CHAIN + '[[student]]\nname = "other"\nobjective = [{ loss = "kd", teacher = "first" }]\n'
    found = generations(read_job(write(tmp_path, more), ChainJob).student)
    assert [([s.name for s in each.students], each.teachers) for each in found] == [
        (["first"], ()),
        (["second", "other"], ("first",)),
        (["third"], ("second",)),
    ]


def test_shards_are_kept_where_the_chain_says_and_never_in_its_cache(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    said = 'keep = "scratch"\nkeep_bytes = 1_000_000\n'
    path = write(tmp_path, CHAIN.replace("stacking", f"{said}stacking"))
    (generation, asking), *_ = chain_of(read_job(path, ChainJob))
    kept = read_job(path, ChainJob).of(asking.cache, generation.students)
    assert (kept.keep, kept.keep_bytes) == (tmp_path / "scratch", 1_000_000)
    path.write_text(path.read_text().replace('"scratch"', '"cache/scratch"'))
    with pytest.raises(BadJob) as refused:
        chain_of(read_job(path, ChainJob))
    assert "lies in the cache itself" in str(refused.value)
