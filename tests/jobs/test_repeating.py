"""The job that a run leaves takes its steps as the run did, whatever the clock decided then: to the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.files.reading import read_job
from jobs.files.student_job import StudentJob
from storage.cache import Cache
from storage.errors import Interrupted
from student_train.options.sections import FleetOptions, StudentOptions
from student_train.preparing.dry_run import dry_run
from student_train.run_files.records import read_record
from student_train.running import stacking
from student_train.running.train import train_students
from student_train.stepping.parallel import ALONE, Parallel
from tests.student_train.running.test_loop import stop_after, weights
from tests.student_train.toys import KD, LABELS, Recipe, request_of, student, write_cache

CNN = {"architecture": "cnn", "options": {"widths": [4, 8]}, "objective": [LABELS | {"weight": 0.5}, KD], "epochs": 2}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Return a cache of images that are large enough for the number of a stack's students to change its rounding."""
    return write_cache(tmp_path_factory.mktemp("images") / "cache", Recipe(shape=(3, 16, 16), features={}))


def students(count: int) -> list[StudentOptions]:
    return [student(f"s{i}", seed=i, clip_norm=1.0, learning_rate=0.01 * (1 + i), **CNN) for i in range(count)]


def repeat(runs: Path, name: str, folder: Path) -> dict[str, bytes]:
    """Train what a run's job says, in another folder; return the weights of that run's student."""
    (folder / "again.toml").write_text(
        (runs / name / "job.toml").read_text().replace(str(runs.absolute()), str(folder / "again"))
    )
    job = read_job(folder / "again.toml", StudentJob)
    assert train_students(job.request("cpu", ALONE)).exit_code == 0
    return weights(folder / "again", name)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_the_job_of_a_run_repeats_its_bits(
    images: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stacked: bool, count: int
) -> None:
    # what the clock will have said
    monkeypatch.setattr(stacking, "_time_both", lambda alike: (2.0, 1.0) if stacked else (1.0, 2.0))
    train_students(request_of(images, tmp_path / "runs", *students(count)))
    monkeypatch.setattr(stacking, "_time_both", lambda alike: (1.0, 2.0) if stacked else (2.0, 1.0))
    record = read_record(tmp_path / "runs/s0")
    assert record is not None
    assert record.taken is not None
    company = tuple(f"s{i}" for i in range(count)) if stacked else ("s0",)
    assert [(stretch.from_step, stretch.students) for stretch in record.taken.stacks] == [(0, company)]
    assert repeat(tmp_path / "runs", "s0", tmp_path) == weights(tmp_path / "runs", "s0")


def test_how_many_are_stacked_matters_so_that_the_job_has_all_of_them(images: Cache, tmp_path: Path) -> None:
    always = FleetOptions(stacking="always")
    for count in (1, 3):
        request = replace(request_of(images, tmp_path / str(count), *students(count)), fleet=always)
        train_students(request)
    assert weights(tmp_path / "1", "s0") != weights(tmp_path / "3", "s0")


def test_a_run_that_was_interrupted_is_repeated_too(images: Cache, tmp_path: Path) -> None:
    request = replace(
        request_of(images, tmp_path / "runs", *students(3), student("short", clip_norm=1.0, **(CNN | {"epochs": 1}))),
        fleet=FleetOptions(stacking="always"),
    )
    with pytest.raises(Interrupted):
        train_students(request, stop=stop_after(10 + 8))
    train_students(request)
    record = read_record(tmp_path / "runs/s1")
    assert record is not None
    assert record.taken is not None
    assert len(record.taken.stacks) == 2  # until the end of the one with fewer epochs, and from then on
    assert record.taken.stacks[0].students == ("s0", "s1", "s2", "short")
    assert record.taken.stacks[1].students == ("s0", "s1", "s2")
    assert repeat(tmp_path / "runs", "s1", tmp_path) == weights(tmp_path / "runs", "s1")


def test_a_dry_run_of_several_processes_makes_the_choices_of_training(images: Cache, tmp_path: Path) -> None:
    request = request_of(images, tmp_path / "runs", *students(3))

    def memory(**changes: object) -> dict[str, int]:
        found = dry_run(replace(request, **changes)).memory
        assert found is not None
        return {name: size for name, size in found.parts.items() if name != "libraries"}

    one_by_one = memory(fleet=FleetOptions(stacking="never", cuda_graphs="never"))
    assert memory(parallel=Parallel(0, 2)) == one_by_one != memory()
