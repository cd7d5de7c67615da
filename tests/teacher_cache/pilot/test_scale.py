"""What a job of another size would cost: at its own size it is what a build of it leaves; and what stops it first."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from jobs.files.scale_text import read_scale
from storage.errors import BadRequest
from teacher_cache.pilot.pilot import PilotRequest, run_pilot
from teacher_cache.pilot.scale import (
    ASK_GETS,
    INGEST_GETS,
    PUTS,
    SHARDS_PER_S,
    Machine,
    Rates,
    Scaled,
    ScaleOptions,
    scaled,
)
from tests.teacher_cache.toys import Silent, build, teacher_section, write_digits, write_job, write_teacher

RATES = Rates(ingest_s=1e-3, ingest_bytes=100.0, commit_bytes=(20.0, 10.0), sites=1.0, views=1, rows_per_shard=1000)
MACHINE = Machine(workers=2, hours=None, memory_bytes=16e9)


def scale(text: str, rates: Rates = RATES, machine: Machine = MACHINE) -> Scaled:
    return scaled(read_scale(text), rates, machine, site_s=1e-2, site_bytes=50.0)


def test_a_million_rows_are_those_of_pencil_and_paper() -> None:
    found = scale("rows=1_000_000,views=3,workers=10,worker_hour=2,gb_month=0.5,put_1000=5,get_1000=1")
    assert (found.shards, found.objects) == (1000, 2 * 1000 * 4)
    assert (found.ingest_bytes, found.target_bytes, found.commit_bytes) == (1e8, 150e6, 50e6)
    assert found.build_s == pytest.approx((1000 + 3 * 10_000 + 4 * 1000 * 0.025) / 10)
    assert found.puts == PUTS * 4000 + 2 * 8
    assert found.dollars["workers"] == pytest.approx(2 * 10 * found.build_s / 3600)
    assert found.dollars["storing, a month"] == pytest.approx(0.5 * 0.3)
    assert found.dollars["writing"] == pytest.approx(5 * found.puts / 1000)


def test_nothing_costs_dollars_of_which_no_price_was_said() -> None:
    assert scale("rows=10").dollars == {}
    assert set(scale("rows=10,gb_month=0.02").dollars) == {"storing, a month"}


def test_tokens_are_counted_in_rows_of_as_many_as_a_teacher_answers() -> None:
    found = scale("tokens=1e12", RATES._replace(sites=500.0))
    assert (found.rows, found.sites) == (2_000_000_000, 1e12)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("rows=1e6,rows_per_shard=1,workers=1000", "shards/s of one scheduler"),
        ("rows=1e6,rows_per_shard=100_000", "a shard, lost with its worker, seconds"),
        ("rows=2e9,rows_per_shard=10_000", "memory to look for ids given twice, bytes"),
        ("rows=1e8,rows_per_shard=10", "listing of a store, seconds"),
        ("rows=1e6,hours=1", "all of it, in a job of each worker, hours"),
    ],
)
def test_the_first_limit_is_the_one_that_is_exceeded_most(text: str, first: str) -> None:
    limits = scale(text).limits
    assert limits[0].what == first
    assert limits[0].share > 1
    assert [limit.share for limit in limits] == sorted((limit.share for limit in limits), reverse=True)


def test_more_builders_share_what_one_scheduler_can_hand_out() -> None:
    one, four = (scale(f"rows=1e6,rows_per_shard=1,workers=1000,builders={n}") for n in (1, 4))
    assert one.build_s == pytest.approx(2e6 / SHARDS_PER_S)
    assert four.build_s == pytest.approx(one.build_s / 4)


def test_a_small_job_meets_nothing() -> None:
    assert max(limit.share for limit in scale("rows=10_000").limits) < 1


def test_a_list_of_mistakes_is_told_whole() -> None:
    with pytest.raises(BadRequest) as caught:
        read_scale("row=3,views=0,gb_month=-1")
    assert caught.value.found is not None
    assert {line.partition(":")[0] for line in caught.value.found.splitlines()} >= {"row", "views", "gb_month"}


# Against a real build


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale")
    write_teacher(folder)
    return write_job(folder, write_digits(folder, 600, rows_per_shard=100), teacher_section())


def test_at_its_own_size_a_job_costs_what_its_build_takes(job: Path, requests: list[Any]) -> None:
    read = read_job(job, CacheJob)
    size = ScaleOptions(rows=600)
    [pilot] = run_pilot(
        PilotRequest(read.request(job, device="cpu"), read.fidelity, 256, workers=1, epochs=1, scale=size), Silent()
    )
    assert pilot.rates is not None
    own = next(trial for trial in pilot.trials if trial.encoding == pilot.own)
    told = scaled(size, pilot.rates, MACHINE, own.pace.teach_s, own.bytes_per_row)
    requests.clear()
    assert build(job).exit_code == 0
    files = [path for path in (job.parent / "cache").rglob("*000*.*") if path.parent.name in ("ingest", "plain")]
    assert told.objects == len(files)
    assert told.bytes == pytest.approx(sum(path.stat().st_size for path in files), rel=0.15)
    ours = [(verb, path) for verb, path in requests if verb in ("put", "create") and "000" in path]
    written = [path for _, path in ours if "/plan/" not in path and not path.startswith("ledger")]
    assert len(written) == told.shards * 2 * PUTS
    # what planning and the end of a build read besides, is of the whole of it
    gets = sum(verb == "get" for verb, _ in requests)
    assert told.gets == told.shards * (INGEST_GETS + ASK_GETS)
    assert told.gets <= gets <= told.gets + 60
    assert math.isfinite(told.build_s)
