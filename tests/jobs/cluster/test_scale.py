"""How builds scale over workers: small, with wide margins. `python -m tests.benchmarks scale-build` measures it."""

from __future__ import annotations

from pathlib import Path

import pytest
from dask.utils import key_split

from jobs.cluster.flight import PREFIX, _new_key
from storage.format.shards import ShardKey
from tests.empty_work import measured
from tests.many_workers import many_workers
from tests.sleeping_teacher import asking_s, write_job


@pytest.mark.slow
def test_a_build_over_eight_workers_that_sleep_is_many_times_as_quick_as_over_one(tmp_path: Path) -> None:
    with many_workers(tmp_path, 8) as place:
        seconds = asking_s(write_job(tmp_path, place.address, 8 * 4, 2.0))
    assert seconds < 40  # one after another it would take 64; and it is 8.5 where nothing else runs


@pytest.mark.slow
@pytest.mark.alone
def test_two_thousand_shards_leave_nothing_in_the_scheduler_nor_in_the_client(tmp_path: Path) -> None:
    with many_workers(tmp_path, 4) as place:
        measured(place.address, 500, 0.0)  # what is kept of any work
        before = place.scheduler_bytes()
        found = measured(place.address, 1500, 0.0)
        grown = place.scheduler_bytes() - before
    assert found["shards"] == 1500
    assert found["client_bytes"] - found["client_bytes_before"] < 8e6
    assert grown < 15e6  # 9; with a sort of key for each shard 18


def test_all_keys_are_of_one_sort_to_the_scheduler() -> None:
    keys = (ShardKey("a-b", None, "plain", 7), ShardKey("photos", "t-1", "view-000", 7))
    assert {key_split(_new_key(key)) for key in keys} == {PREFIX}
