"""What a job of another size would cost, from what a pilot measured, and the first limit that it would meet. No I/O.

With R rows, V views, S rows a shard and W workers there are n = R/S shards of rows, and n·(1 + V) commits. Each shard
is two objects: its arrays, and its commit. Time is that of workers: what one takes of a row or a site, times their
number, over W.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, NamedTuple, Self

from pydantic import Field, FiniteFloat, model_validator

from storage.options import Options

MOST = 10**18  # rows, sites, workers: more is a slip of the pen, and no float counts them
Count = Annotated[int, Field(ge=1, le=MOST)]
Dollars = Annotated[FiniteFloat, Field(ge=0)]

# Measured on two cores that others shared: docs/scale.md and ADR 16 say how.
SHARD_S = 0.025  # of processor, a shard, whatever its rows: its commit, its arrays' metadata
SHARDS_PER_S = 250.0  # that one command and its scheduler hand out
LOOK_BYTES = 1_000.0  # of memory, a shard, of a command that looks at all
ROW_BYTES = 370.0  # of memory, a row, of a build that ingests: it looks for ids that are given twice
STUDENT_ROW_BYTES = 32.0  # of memory, a row, of a student's training
# Requests of a build, a shard (tests/teacher_cache/pilot/test_scale.py counts them).
PUTS = 2
INGEST_GETS, ASK_GETS = 4, 7
READ_GETS = 2  # of a student, a shard and stage: a commit, and arrays
PAGE = 1000  # names that a store lists at a time
# Documented by stores.
PAGE_S = 0.15  # Amazon S3, "Performance design patterns": 100 to 200 ms until an answer begins
PUTS_PER_S, GETS_PER_S = 3500.0, 5500.0  # Amazon S3, "Optimizing Amazon S3 performance", of one prefix
OBJECT_BYTES = 5e9  # Amazon S3, "PutObject": of one PUT
FOLDER_FILES = 1e7  # ext4 without large_dir, of one folder
# Ours.
LOOK_S = 600.0  # that a command may look before it does anything
LONGEST_SHARD_S = 120.0  # what is lost with a worker (docs/adr/0003)


class ScaleOptions(Options):
    """What `cache plan --scale` may say; what it does not say is as the job has it.

    Attributes:
        rows: of the dataset.
        tokens: with a target, in place of rows, where a teacher answers each of them.
        views: of each row.
        workers: of all builders together.
        builders: commands that share the cache (`--partition I/N`), each with workers and a scheduler of its own.
        rows_per_shard: of the dataset.
        hours: time limit of a worker's job; by default `time` of the job's [cluster].
        worker_hour: dollars of a worker with its device, an hour.
        gb_month: dollars of 10⁹ bytes stored, a month.
        put_1000, get_1000: dollars of 1,000 requests that write or list, and that read.
    """

    rows: Count | None = None
    tokens: Count | None = None
    views: Annotated[int, Field(ge=1, le=10_000)] | None = None
    workers: Count | None = None
    builders: Count = 1
    rows_per_shard: Count | None = None
    hours: Annotated[FiniteFloat, Field(gt=0)] | None = None
    worker_hour: Dollars | None = None
    gb_month: Dollars | None = None
    put_1000: Dollars | None = None
    get_1000: Dollars | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.rows is None) == (self.tokens is None):
            raise ValueError("say how large it is: `rows`, or of tokens `tokens`; one of the two")
        if self.workers is not None and self.builders > self.workers:
            raise ValueError(f"{self.builders:,} `builders` share {self.workers:,} `workers`: each needs one")
        return self


class Rates(NamedTuple):
    """What was measured of one row, and what the job has, where nothing else is said.

    Attributes:
        ingest_s: of one worker, to read and decode a row.
        ingest_bytes: of its inputs and labels, as stored.
        commit_bytes: of its lines in the commits of the ingest, and of a teacher.
        sites: that a teacher answers of it.
        views, rows_per_shard: of the job.
    """

    ingest_s: float
    ingest_bytes: float
    commit_bytes: tuple[float, float]
    sites: float
    views: int
    rows_per_shard: int


class Machine(NamedTuple):
    """Where it would run: workers of the job, their time limit if it is known, and memory of this machine."""

    workers: int
    hours: float | None
    memory_bytes: float


class Limit(NamedTuple):
    """What stops something, and how near it is.

    Attributes:
        what: is limited, with its unit.
        needs, holds: at this scale, and at most.
        source: of `holds`.
        do: about it.
    """

    what: str
    needs: float
    holds: float
    source: str
    do: str

    @property
    def share(self) -> float:
        """How much of the limit is needed; it is met from 1 on."""
        return self.needs / self.holds


class Scaled(NamedTuple):
    """What a job of some size costs in one encoding.

    Attributes:
        rows, sites, views, workers, shards: of it; shards of rows, each of them in 1 + `views` stages.
        objects: of the cache.
        ingest_bytes, target_bytes, commit_bytes: of it.
        puts, gets: requests of the build, listings among the first.
        epoch_gets: of a student that streams one view once.
        build_s: until all workers are done.
        worker_s: of all of them together, and of one shard in the ingest and of a teacher.
        dollars: of what a price was said of, by name.
        limits: nearest first.
    """

    rows: int
    sites: float
    views: int
    workers: int
    shards: int
    objects: int
    ingest_bytes: float
    target_bytes: float
    commit_bytes: float
    puts: float
    gets: float
    epoch_gets: float
    build_s: float
    worker_s: tuple[float, float, float]
    dollars: dict[str, float]
    limits: tuple[Limit, ...]

    @property
    def bytes(self) -> float:
        return self.ingest_bytes + self.target_bytes + self.commit_bytes


def scaled(options: ScaleOptions, rates: Rates, machine: Machine, site_s: float, site_bytes: float) -> Scaled:
    """Return what a job of another size costs.

    Args:
        options: its size, and prices.
        rates: measured.
        machine: where it would run.
        site_s: of one worker, to ask the teacher about a site, and to encode that.
        site_bytes: as stored, features too.
    """
    rows = options.rows if options.rows is not None else max(1, round((options.tokens or 0) / rates.sites))
    views, workers = options.views or rates.views, options.workers or machine.workers
    per_shard = min(rows, options.rows_per_shard or rates.rows_per_shard)
    shards, sites = -(-rows // per_shard), rows * rates.sites
    stages = 1 + views
    ingest_s, ask_s = per_shard * rates.ingest_s, per_shard * rates.sites * site_s
    worker_s = shards * (ingest_s + views * ask_s + stages * SHARD_S)
    # one command after another hands out no more than so many; workers wait meanwhile
    handing_s = shards * stages / (SHARDS_PER_S * options.builders)
    build_s = max(worker_s / workers, handing_s)
    objects = 2 * shards * stages
    target_bytes = sites * views * site_bytes
    commit_bytes = rows * (rates.commit_bytes[0] + views * rates.commit_bytes[1])
    pages = -(-objects // PAGE) * 2 * options.builders  # before a build, and at its end
    found = Scaled(
        rows=rows,
        sites=sites,
        views=views,
        workers=workers,
        shards=shards,
        objects=objects,
        ingest_bytes=rows * rates.ingest_bytes,
        target_bytes=target_bytes,
        commit_bytes=commit_bytes,
        puts=PUTS * shards * stages + pages,
        gets=shards * (INGEST_GETS + views * ASK_GETS),
        epoch_gets=2 * READ_GETS * shards,
        build_s=build_s,
        worker_s=(worker_s, ingest_s, ask_s),
        dollars={},
        limits=(),
    )
    limits = sorted(_limits(options, machine, found, per_shard), key=lambda limit: -limit.share)
    return found._replace(dollars=_dollars(options, found), limits=tuple(limits))


def _dollars(options: ScaleOptions, found: Scaled) -> dict[str, float]:
    priced = {
        "workers": (options.worker_hour, found.workers * found.build_s / 3600),
        "writing": (options.put_1000, found.puts / 1000),
        "reading": (options.get_1000, found.gets / 1000),
        "storing, a month": (options.gb_month, found.bytes / 1e9),
        "an epoch's reading": (options.get_1000, found.epoch_gets / 1000),
    }
    return {name: price * amount for name, (price, amount) in priced.items() if price is not None}


def _limits(options: ScaleOptions, machine: Machine, found: Scaled, per_shard: int) -> Iterator[Limit]:
    """Yield what a job of this size would meet, each with how much there may be and what to do."""
    builders, workers, stages = options.builders, found.workers, 1 + found.views
    _, ingest_s, ask_s = found.worker_s
    quickest_s, longest_s = min(ingest_s, ask_s) + SHARD_S, max(ingest_s, ask_s)
    memory, larger = machine.memory_bytes, "raise rows_per_shard; of a cache that is there: cache compact"
    apart = "several [[dataset]], looked through one after another; of text longer rows"
    yield Limit(
        "shards/s of one scheduler",
        workers / quickest_s / builders,
        SHARDS_PER_S,
        "measured: docs/scale.md",
        "raise rows_per_shard; or cache build --partition I/N (builders=N)",
    )
    looked = found.shards * stages * LOOK_BYTES
    yield Limit("memory to look at all shards, bytes", looked, memory, "this machine", larger)
    yield Limit("memory to look for ids given twice, bytes", found.rows * ROW_BYTES, memory, "this machine", apart)
    order = found.rows * STUDENT_ROW_BYTES
    yield Limit("memory of a student's order, bytes", order, memory, "this machine", apart)
    yield Limit("listing of a store, seconds", found.objects / PAGE * PAGE_S, LOOK_S, "ten minutes, ours", larger)
    yield Limit("files in a folder", 2 * found.shards, FOLDER_FILES, "ext4", f"{larger}; or a bucket")
    a_second = min(workers / quickest_s, SHARDS_PER_S * builders)
    yield Limit("writes/s to a prefix", a_second * PUTS, PUTS_PER_S, "S3", "raise rows_per_shard")
    yield Limit("reads/s of a prefix", a_second * ASK_GETS, GETS_PER_S, "S3", "raise rows_per_shard")
    shard_bytes = max(found.ingest_bytes, found.target_bytes / found.views) / found.shards
    yield Limit("an object, bytes", shard_bytes, OBJECT_BYTES, "S3, one PUT", "lower rows_per_shard")
    lost = "two minutes, ours"
    yield Limit("a shard, lost with its worker, seconds", longest_s, LONGEST_SHARD_S, lost, "lower rows_per_shard")
    if (hours := options.hours or machine.hours) is not None:
        do = "lower rows_per_shard, or longer jobs"
        yield Limit("a shard, of half a job, hours", longest_s / 3600, hours / 2, "the job", do)
        do = 'more workers; or jobs one after another, each resumes (kind = "slurm" replaces them)'
        yield Limit("all of it, in a job of each worker, hours", found.build_s / 3600, hours, "the job", do)
