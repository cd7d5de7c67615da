from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cli.caches.choosing import choose_cluster
from jobs.cluster.builds import open_runner
from jobs.files.cluster_options import BuildClusterOptions
from storage.cache import Cache
from storage.cache.verify import verify
from storage.errors import BadTeacher, Overdue
from teacher_cache.building.runners import Runner, run_inline
from tests.teacher_cache.conftest import Built
from tests.teacher_cache.toys import Silent, build, contents, teacher_section, write_digits, write_job, write_teacher

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Runner]:
    with open_runner(BuildClusterOptions(kind="local", workers=2, threads=1)) as runner:
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


def test_a_teacher_that_sleeps_for_ever_is_named_with_its_shard_and_the_others_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.cluster.flight.TRIES", 1)  # so that whoever only waits for it has none to lose
    write_teacher(tmp_path, fault="sleep")
    job = write_job(tmp_path, write_digits(tmp_path, 96, marked=(40,)), teacher_section(fault="sleep"))
    with open_runner(BuildClusterOptions(kind="local", workers=2, threads=1, shard_limit_s=30)) as runner:
        report = build(job, runner=runner)
    assert Cache.open(str(tmp_path / "cache")).committed("digits", "toy") == {0, 1, 3, 4, 5}
    assert (report.exit_code, len(report.refused), report.failed) == (3, 1, [])
    assert "digits/toy/plain/00002 took longer than shard_limit_s = 30" in report.refused[0]


def test_a_build_stops_when_shard_after_shard_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacher_cache.building.stages.SET_ASIDE_LIMIT", 1)
    monkeypatch.setattr("jobs.cluster.flight.TRIES", 1)
    write_teacher(tmp_path, fault="sleep")
    job = write_job(tmp_path, write_digits(tmp_path, 96, marked=range(96)), teacher_section(fault="sleep"))
    with (
        open_runner(BuildClusterOptions(kind="local", workers=2, threads=1, shard_limit_s=4)) as runner,
        pytest.raises(Overdue),
    ):
        build(job, runner=runner)


def test_a_part_of_a_job_array_is_this_process_or_one_that_can_be_replaced() -> None:
    free, limited = (BuildClusterOptions(shard_limit_s=limit_s) for limit_s in (None, 60))
    parts = [choose_cluster(options, None, (1, 8)) for options in (free, limited)]
    assert [(part.kind, part.num_workers, part.shard_limit_s) for part in parts] == [
        ("inline", 1, None),
        ("local", 1, 60),
    ]


class Counting(Silent):
    """Watches, and keeps each count that it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[int] = []

    def advance(self, count: int, detail: str = "") -> None:
        super().advance(count, detail)
        self.shown.append(self.counts["digits/toy"][0] if "digits/toy" in self.counts else 0)


@pytest.mark.parametrize("kind", ["inline", "local"])
def test_rows_count_as_they_are_answered_and_not_by_the_shard(kind: str, two_workers: Runner, tmp_path: Path) -> None:
    write_teacher(tmp_path)
    section = teacher_section(extra="batch_size = 4", seconds=0.6)
    job, watch = write_job(tmp_path, write_digits(tmp_path, 48), section), Counting()
    report = build(job, runner=two_workers if kind == "local" else run_inline, watcher=watch)
    assert (report.exit_code, watch.counts["digits/toy"]) == (0, [48, 48])
    within = [count for count in watch.shown if count % 16]
    assert len(within) >= 2
    assert watch.shown == sorted(watch.shown)
