from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cli.building import open_runner
from jobs.files.cluster_options import ClusterOptions
from storage.cache import Cache
from storage.cache.verify import verify
from storage.errors import BadTeacher
from teacher_cache.building.runners import Runner
from tests.teacher_cache.conftest import Built
from tests.teacher_cache.toys import build, contents, teacher_section, write_digits, write_job, write_teacher

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Runner]:
    with open_runner(ClusterOptions(kind="local", workers=2, threads=1)) as runner:
        yield runner


def test_dask_workers_compute_the_same_bytes_as_this_process(built: Built, two_workers: Runner, tmp_path: Path) -> None:
    report = build(built.job, cache=str(tmp_path / "cache"), runner=two_workers)
    assert (report.built, report.exit_code) == (6, 0)
    assert contents(tmp_path / "cache") == contents(built.folder / "cache")


def test_a_shard_that_kills_its_worker_is_set_aside_and_the_others_are_built(
    two_workers: Runner, tmp_path: Path
) -> None:
    write_teacher(tmp_path, fault="crash")
    job = write_job(tmp_path, write_digits(tmp_path, 96, marked=(40,)), teacher_section(fault="crash"))
    report = build(job, runner=two_workers)
    cache = Cache.open(str(tmp_path / "cache"))
    assert cache.committed("digits", "toy") == {0, 1, 3, 4, 5}
    assert (report.exit_code, len(report.failed)) == (1, 1)
    assert report.failed[0].startswith("digits/toy/plain/00002: its worker died")
    assert verify(cache).bad == ()


def test_a_teachers_own_exception_on_a_worker_ends_the_build_at_once(two_workers: Runner, tmp_path: Path) -> None:
    write_teacher(tmp_path, fault="raise")
    job = write_job(tmp_path, write_digits(tmp_path, 64, marked=range(64)), teacher_section(fault="raise"))
    with pytest.raises(BadTeacher) as caught:
        build(job, runner=two_workers)
    assert caught.value.found == "RuntimeError: a fault in the teacher's own code"


def test_logits_that_are_not_finite_on_a_worker_refuse_only_their_shard(two_workers: Runner, tmp_path: Path) -> None:
    write_teacher(tmp_path, fault="nan")
    job = write_job(tmp_path, write_digits(tmp_path, 64, marked=(20,)), teacher_section(fault="nan"))
    report = build(job, runner=two_workers)
    assert (report.exit_code, len(report.refused)) == (3, 1)
    assert Cache.open(str(tmp_path / "cache")).committed("digits", "toy") == {0, 2, 3}
