"""A cache is looked at once: what commands ask of the store is bounded by what it holds, whatever the job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.files.reading import read_job
from jobs.files.student_job import StudentJob
from storage.cache import Cache
from storage.cache.status import read_info, read_status
from student_train.preparing.dry_run import DryRun, dry_run
from student_train.stepping.parallel import ALONE
from tests.teacher_cache.toys import build, teacher_section, write_digits, write_job, write_teacher

ROWS, STUDENTS = "digits/train", '[[student]]\nname = "{}"\narchitecture = "mlp"\nepochs = 1\nbatch_size = 64\n'
LABELS, KD = '{ loss = "labels" }', '{ loss = "kd", teacher = "toy", temperature = 2.0 }'
HINT = '{ loss = "hint", teacher = "toy", feature = "act", student_layer = "network.hidden1" }'
FEATURE = 'features = { act = { layer = "act", pool = "mean" } }'


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a job and its whole cache: all digits in eight shards, one teacher; do not change it."""
    folder = tmp_path_factory.mktemp("kitchen")
    write_teacher(folder)
    job = write_job(folder, write_digits(folder, 1797, rows_per_shard=256), teacher_section(extra=FEATURE))
    assert build(job).exit_code == 0
    return folder


def plan(folder: Path, *students: str, sweep: str = "") -> DryRun:
    """Return the dry run of a job of these students."""
    head = f'cache = "cache"\nruns = "runs"\ntrain = "{ROWS}"\nvalidation = "{ROWS}"\n'
    each = [f"{STUDENTS.format(i)}objective = [{terms}]\n{sweep}" for i, terms in enumerate(students)]
    path = folder / "students.toml"
    path.write_text(head + "".join(each))
    return dry_run(read_job(path, StudentJob).request("cpu", ALONE))


def test_a_dry_run_asks_little(kitchen: Path, requests: list[Any]) -> None:
    plan(kitchen, LABELS, f"{LABELS}, {KD}", f"{LABELS}, {KD}, {HINT}")
    assert len(requests) <= 70
    assert [each for each in set(requests) if requests.count(each) > 1] == [], "nothing is asked twice"


def test_a_dry_run_of_sixteen_students_asks_what_one_of_three_does(kitchen: Path, requests: list[Any]) -> None:
    plan(kitchen, *[f"{LABELS}, {KD}"] * 3)
    of_three = requests.copy()
    requests.clear()
    sweep = "[student.sweep]\nlearning_rate = [0.01, 0.03]\nobjective.kd.temperature = [1, 4]\nseed = [0, 1, 2, 3]\n"
    planned = plan(kitchen, f"{LABELS}, {KD}", sweep=sweep)
    assert (len(planned.students), sorted(requests)) == (16, sorted(of_three))


def test_a_dry_run_reads_no_commit_of_a_teacher_but_for_the_top_class_to_agree_with(
    kitchen: Path, requests: list[Any]
) -> None:
    plan(kitchen, LABELS)
    assert not [path for verb, path in requests if verb == "get" and path.startswith("digits/toy/")]


# What a cache of one dataset and one teacher takes: cache.json; the root, the dataset, the plan, the teacher and two
# stages; a segment and two promises.
LOOKED_AT = 1 + 6 + 3


def test_status_asks_for_a_look_and_the_ledger(kitchen: Path, requests: list[Any]) -> None:
    read_status(Cache.open(str(kitchen / "cache")).catalogue())
    assert len(requests) == len(set(requests)) == LOOKED_AT + 2


def test_info_asks_for_a_look_a_commit_of_each_stage_and_weights(kitchen: Path, requests: list[Any]) -> None:
    read_info(Cache.open(str(kitchen / "cache")).catalogue())
    assert len(requests) == len(set(requests)) == LOOKED_AT + 2 + 1  # and the weights that its teacher has promised


def test_a_build_of_nothing_asks_for_a_look_and_the_ledger_and_writes_nothing(
    kitchen: Path, requests: list[Any]
) -> None:
    report = build(kitchen / "job.toml")
    asked = [request for request in requests if request != ("get", "cache.json")]  # before it plans, and before it runs
    assert (report.built, report.present) == (0, 16)
    assert len(asked) == len(set(asked)) == LOOKED_AT - 2 + 2  # without the root: a job names its datasets
    assert {verb for verb, _ in requests} == {"get", "list"}
