"""Which students share a worker: small tables, no cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.cluster import groups as student_groups
from jobs.cluster.groups import Group, local_workers, make_groups, project_groups, share_out
from jobs.cluster.heaps import HEAPS, VARIABLE
from jobs.files.cluster_options import StudentClusterOptions
from storage.cache import Cache
from storage.errors import BadRequest, Interrupted
from student_train.options.sections import FleetOptions, StudentOptions
from student_train.preparing.prepare import prepare
from student_train.preparing.request import Request
from student_train.running.train import train_students
from tests.student_train.running.test_loop import stop_after
from tests.student_train.toys import Recipe, request_of, student, write_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return write_cache(tmp_path_factory.mktemp("cache") / "toy", Recipe())


@pytest.mark.parametrize(
    ("kinds", "works", "workers", "groups"),
    [
        ("aaaa", [1, 1, 1, 1], 1, [[0, 1, 2, 3]]),
        ("aaaa", [1, 1, 1, 1], 2, [[0, 2], [1, 3]]),
        ("aaaaa", [1, 1, 1, 1, 1], 3, [[0, 3], [1, 4], [2]]),
        ("aa", [1, 1], 5, [[0], [1]]),  # no more groups than students
        ("abab", [1, 1, 1, 1], 2, [[0, 2], [1, 3]]),  # enough kinds for the workers: each stays together
        ("aabbcc", [1, 1, 1, 1, 1, 1], 2, [[0, 1, 4, 5], [2, 3]]),
        ("aaab", [9, 9, 9, 1], 2, [[0, 2], [1, 3]]),  # a kind of more than a share of the work is cut
        ("ab", [100, 1], 2, [[0], [1]]),
        ("abc", [3, 2, 1], 2, [[0], [1, 2]]),
        ("aaaa", [8, 1, 1, 6], 2, [[0], [1, 2, 3]]),  # by work, not by number
    ],
)
def test_students_are_split_by_kind_and_by_work(
    kinds: str, works: list[int], workers: int, groups: list[list[int]]
) -> None:
    assert share_out(kinds, works, workers) == groups


@given(
    students=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 1000)), min_size=1, max_size=40),
    workers=st.integers(1, 12),
)
def test_every_student_is_in_one_group_and_no_group_has_more_than_twice_its_share(
    students: list[tuple[int, int]], workers: int
) -> None:
    kinds, works = [kind for kind, _ in students], [work for _, work in students]
    groups = share_out(kinds, works, workers)
    assert sorted(place for group in groups for place in group) == list(range(len(students)))
    assert 1 <= len(groups) <= min(workers, len(students))
    assert all(groups)
    heaviest = max(sum(works[place] for place in group) for group in groups)
    assert heaviest <= 2 * sum(works) / workers + max(works)


def names(groups: list[Group]) -> list[list[str]]:
    return [[student.options.name for student in group.left] for group in groups]


def fleet(cache: Cache, runs: Path, *students: StudentOptions, **options: object) -> Request:
    return replace(request_of(cache, runs, *students), fleet=FleetOptions.model_validate(options))


def test_finished_students_are_in_no_group(cache: Cache, tmp_path: Path) -> None:
    train_students(request_of(cache, tmp_path, student("a")))
    request = request_of(cache, tmp_path, student("a"), student("b", seed=1), student("c", seed=2))
    assert names(make_groups(request, prepare(request), 2, "cpu")) == [["b"], ["c"]]


def test_students_of_one_architecture_and_batch_size_stay_together(cache: Cache, tmp_path: Path) -> None:
    students = [
        student(f"{size}-{seed}", seed=seed, batch_size=size, epochs=2) for seed in range(2) for size in (16, 32)
    ]
    request = request_of(cache, tmp_path, *students)
    assert names(make_groups(request, prepare(request), 2, "cuda")) == [["16-0", "16-1"], ["32-0", "32-1"]]


def test_work_counts_steps_that_are_left_and_what_an_architecture_takes(cache: Cache, tmp_path: Path) -> None:
    def share(first: StudentOptions, second: StudentOptions) -> float:
        request = request_of(cache, tmp_path, first, second)
        return make_groups(request, prepare(request), 2, "cpu")[0].share

    assert share(student("long", epochs=6), student("short", epochs=1)) == pytest.approx(6 / 7)
    assert share(student("wide", options={"hidden": [2000, 2000]}), student("narrow")) > 0.9
    with pytest.raises(Interrupted):
        train_students(request_of(cache, tmp_path, student("begun", epochs=6)), stop=stop_after(24))
    # it was stopped in the second evaluation
    assert share(student("begun", epochs=6), student("other", epochs=4)) == pytest.approx(4 / 8)


def test_with_halving_groups_stay_the_same_when_some_have_finished(cache: Cache, tmp_path: Path) -> None:
    students = [student(f"s{i}", seed=i, epochs=2) for i in range(5)]
    halving = {"halving": {"first_epochs": 9}}
    request = fleet(cache, tmp_path, *students, **halving)
    before = make_groups(request, prepare(request), 2, "cpu")
    train_students(fleet(cache, tmp_path, students[0], **halving))
    after = make_groups(request, prepare(request), 2, "cpu")
    assert names(before) == [["s0", "s2", "s4"], ["s1", "s3"]]
    assert names(after) == [["s2", "s4"], ["s1", "s3"]]
    assert [len(group.students) for group in after] == [3, 2]


def test_workers_that_do_not_fit_together_are_refused_with_fewer(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(cache, tmp_path, *(student(f"s{i}", seed=i) for i in range(4)))
    groups = make_groups(request, prepare(request), 4, "cpu")
    one = project_groups(request, groups)[0].host_bytes
    monkeypatch.setattr(student_groups, "free_bytes", lambda device: 2 * one + one // 2)
    with pytest.raises(BadRequest, match="4 workers do not fit into this machine's memory") as refusal:
        project_groups(request, groups)
    assert refusal.value.do == 'workers = 2, or residency = "stream"'


@pytest.mark.parametrize(
    ("visible", "count", "options", "devices"),
    [
        (None, 3, {}, ["0", "1", "2"]),
        (None, 3, {"workers": 2}, ["0", "1"]),
        ("5, 7", 2, {}, ["5", "7"]),
        ("GPU-1a,GPU-2b", 2, {"workers": 1}, ["GPU-1a"]),
    ],
)
def test_each_worker_has_a_cuda_device_of_its_own(
    cache: Cache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    count: int,
    options: dict[str, int],
    devices: list[str],
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    request = replace(request_of(cache, tmp_path), device="cuda")
    environments = local_workers(StudentClusterOptions.model_validate({"kind": "local"} | options), request)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == devices


def test_more_workers_than_cuda_devices_are_refused(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    request = replace(request_of(cache, tmp_path), device="cuda")
    with pytest.raises(BadRequest, match="more workers than CUDA devices"):
        local_workers(StudentClusterOptions(kind="local", workers=3), request)


def test_workers_of_a_cpu_have_no_device(cache: Cache, tmp_path: Path) -> None:
    request = replace(request_of(cache, tmp_path), device="cpu")
    assert local_workers(StudentClusterOptions(kind="local", workers=3), request) == 3 * [{VARIABLE: str(HEAPS)}]
