"""What `cache build`, `cache recode` and `student chain` share: a cluster, what runs on it, the report at the end."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from jobs.cluster.attendance import Attendance
from jobs.cluster.batch.leaving import in_time
from jobs.cluster.flight import alone, run_work, window
from jobs.cluster.hearing import Hearing
from jobs.cluster.limits import within
from jobs.cluster.opening import open_client
from jobs.cluster.pools import Pool, Pools, lay_out, visible_gpus
from jobs.files.cluster_options import BuildClusterOptions, num_processors, threads_of_environment
from jobs.kubernetes.manifest import in_pod
from jobs.show import terminal
from jobs.show.night import Night, told
from storage.errors import BadRequest, WorkerDied, si
from storage.tasks import task_of
from teacher_cache.building.alone import alone as held_alone
from teacher_cache.building.build import run_build
from teacher_cache.building.runners import Result, Runner, run_inline
from teacher_cache.building.stages import BuildReport
from teacher_cache.work.perform import perform
from teacher_cache.work.pieces import IngestWork, Work, waited_s

if TYPE_CHECKING:
    from distributed import Client

    from jobs.show.terminal import Watch
    from storage.encodings import Encoding
    from teacher_cache.building.prepared import PreparedBuild, Stage

SHOWN_QUARANTINED = 20  # a screen; --json lists all


def choose_cluster(
    options: BuildClusterOptions, workers: int | None, part: tuple[int, int] = (0, 1)
) -> BuildClusterOptions:
    """Return the job's cluster as the flags want it; a part of a job array is one process. Raises BadRequest."""
    if workers is not None and not (options.kind == "local" or options.submits):
        raise BadRequest(f"--workers is for a local cluster, and this job's is {options.kind}")
    if part != (0, 1):  # the job array's own scheduler has given it a node already
        # a thread that takes too long can only be ended with its process, which then is one beside this one
        limited = options.shard_limit_s is not None
        own = {"kind": "local", "workers": 1} if limited else {"kind": "inline", "workers": None}
        return options.model_copy(update={**own, "address": None})
    return in_pod(options if workers is None else options.model_copy(update={"workers": workers}))


def find_pools(options: BuildClusterOptions, device: str) -> Pools:
    """Return the workers of a build on this machine, as its processors and GPUs are."""
    gpus = [] if options.elsewhere else visible_gpus(device)
    return lay_out(options, gpus, num_processors(), threads_of_environment())


@contextlib.contextmanager
def open_runner(
    options: BuildClusterOptions, pools: Pools | None = None, attendance: Attendance | None = None
) -> Iterator[Runner]:
    """Yield what runs work; a cluster of our own ends with the block.

    Args:
        options: of the job.
        pools: workers of a cluster of our own, or what this process does at a time; by default without a GPU.
        attendance: looks after the workers of a cluster.

    Raises:
        BadRequest: the address is none, or workers of our own cannot write files of theirs.
        TryAgain: the scheduler cannot be reached, or workers of our own died as they started, each time.
    """
    pools, inline = pools or lay_out(options, [], num_processors(), threads_of_environment()), options.kind == "inline"
    with contextlib.ExitStack() as stack:
        attendance = attendance or Attendance()
        opened = _Opened(options, stack, attendance)
        if pools.ingest == pools.teacher and not inline:  # one for all stages: whether it can be had is told at once
            opened.client(pools.ingest)

        def run(todo: Iterable[Work]) -> Generator[Result]:
            waiting = iter(todo)
            for first in itertools.islice(waiting, 1):  # all of a stage are alike
                pool = pools.ingest if isinstance(first, IngestWork) else pools.teacher
                works = itertools.chain([first], waiting)
                if inline:
                    yield from run_inline(works, pool.at_once, terminal.signalled)
                else:
                    yield from _run(opened.client(pool), options.shard_limit_s, works, attendance)

        yield run


def lay_out_build(
    prepared: PreparedBuild, cluster: BuildClusterOptions, device: str, *, always: bool = False
) -> tuple[PreparedBuild, Pools | None]:
    """Return a build whose workers have their threads, and these; None where nothing is missing, unless `always`."""
    if not prepared.num_missing and not always:
        return prepared, None
    pools = find_pools(cluster, device if prepared.asks else "cpu")
    return replace(prepared, request=replace(prepared.request, threads=pools.teacher.threads)), pools


def carry_out(
    prepared: PreparedBuild,
    cluster: BuildClusterOptions,
    pools: Pools | None,
    watch: Watch,
    night: Night,
    attendance: Attendance,
    *,
    wait: bool,
) -> tuple[PreparedBuild, BuildReport]:
    """Build what is missing; return that, as it was when nobody else was at it, and what came of it.

    Raises:
        TryAgain: another build runs, and it is not waited for; or as `open_runner`.
    """
    with held_alone(prepared, watch, wait=wait) as (build, kept):
        if not build.num_missing:
            return build, run_build(build, run_inline, watch)  # no work, no cluster
        with open_runner(cluster, pools, attendance) as runner:
            return build, run_build(build, heard(kept(runner), night), watch)


class _Opened:
    """The pool that is open: those of one stage end before those of the next start, for a GPU's worker needs memory."""

    def __init__(self, options: BuildClusterOptions, stack: contextlib.ExitStack, attendance: Attendance):
        self._options, self._stack, self._attendance = options, stack, attendance
        self._pool: Pool | None = None
        self._client: Client | None = None

    def client(self, pool: Pool) -> Client:
        """Return a client of a pool, opened unless it is the one that is."""
        if self._client is None or pool != self._pool:
            self._stack.close()
            opened = open_client(
                self._options, environments=pool.environments, at_once=pool.at_once, attendance=self._attendance
            )
            self._client = self._stack.enter_context(opened)
            self._pool = pool
        return self._client


def _run(client: Client, limit_s: float | None, todo: Iterable[Work], attendance: Attendance) -> Generator[Result]:
    """Yield what becomes of work on a cluster, each within a limit of time if there is one."""
    limited = perform if limit_s is None else partial(within, limit_s, perform, "shard_limit_s", waited_s)
    act = partial(in_time, limited)
    crashed: list[Work] = []
    hearing = Hearing(client)
    running = run_work(client, hearing.of(act), todo, places=window, heard=hearing.heard, attendance=attendance)
    with contextlib.closing(running) as results:
        for work, result in results:
            if isinstance(result, WorkerDied):
                crashed.append(work)
            else:
                yield work, result
    # Perhaps innocent: a neighbour's crash kills the whole process. Alone, a shard is proven.
    yield from run_work(client, act, crashed, places=alone, attendance=attendance)


def heard(runner: Runner, night: Night) -> Runner:
    """Return a runner of which each shard that fails is an event."""

    def run(todo: Iterable[Work]) -> Generator[Result]:
        with contextlib.closing(runner(todo)) as results:
            for work, result in results:
                if isinstance(result, Exception):
                    key = work.key
                    shard = {"dataset": key.dataset, "teacher": key.teacher, "view": key.view, "shard": key.shard}
                    night.event("shard_failed", "error", **shard, **told(result))
                yield work, result

    return run


def tell_report(cache: str, report: BuildReport, night: Night) -> None:
    """Tell what a build did, as an event and in figures."""
    counts: dict[str, Any] = {"built": report.built, "present": report.present, "lost": report.lost}
    counts |= {"refused": len(report.refused), "failed": len(report.failed)}
    unreadable = {name: len(rows) for name, rows in report.quarantined.items()}
    size: dict[str, Any] = {"rows": report.rows, "bytes": report.bytes}
    night.event("built", cache=cache, **counts, **size, quarantined=unreadable)
    for result, count in counts.items():
        night.figures.add("build_shards", count, result=result)  # a chain has several builds
    rows = night.figures.add("build_rows", report.rows)
    night.figures.add("build_bytes", report.bytes)
    night.figures.set("build_rows_per_second", rows / max(night.seconds, 1e-3))
    for name, count in unreadable.items():
        night.figures.set("build_quarantined_rows", count, dataset=name)


def parse_partition(text: str) -> tuple[int, int]:
    """Return (i, n), number i of n. Raises BadRequest."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise BadRequest(f"--partition {text} is not a partition", expected="I/N with I from 0 to N - 1, such as 0/8")
    return int(i), int(n)


def job_script_of(cluster: BuildClusterOptions, pools: Pools | None) -> str | None:
    """Return the script of the jobs that a build would submit. Raises BadRequest: what renders it is not installed."""
    from jobs.cluster.batch.submitting import job_script

    if not cluster.submits or pools is None:
        return None
    return job_script(cluster, pools.teacher.environments[0], pools.teacher.at_once)


def print_dry_run(
    prepared: PreparedBuild, pools: Pools | None, libraries: int, cluster: BuildClusterOptions, as_json: bool
) -> None:
    """Print what a build would do, the memory of its workers, and the script of their jobs."""
    import polars as pl

    from jobs.show.tables import print_memory, print_script, print_table
    from teacher_cache.building.memory import project_with_gpus, project_worker

    stages = [
        {
            "stage": stage.name,
            "rows": stage.dataset.guess_rows(stage.dataset.rows.num_rows),
            "shards": len(stage.shards),
            "shards_missing": len(stage.todo),
            "rows_missing": stage.dataset.guess_rows(sum(shard.stop - shard.start for shard in stage.todo)),
        }
        for stage in prepared.stages
    ]
    if pools is not None and pools.teacher.has_gpus:
        ingest, teacher, gpu = project_with_gpus(prepared, pools.teacher.at_once)
        counts = [len(pool.devices) for pool in pools]
        memory = {
            f"each of {counts[0]} workers of the ingest": ingest,
            f"each of {counts[1]} workers with a GPU": teacher,
            "its GPU": gpu,
        }
        said = {
            "worker_memory_bytes": max(ingest.total_bytes, teacher.total_bytes),
            "gpu_memory_bytes": gpu.total_bytes,
        }
    else:
        worker = project_worker(prepared, libraries)
        memory, said = {"a worker": worker}, {"worker_memory_bytes": worker.total_bytes}
    script = job_script_of(cluster, pools)
    notes = [*prepared.notes, *_tight(cluster.memory, said["worker_memory_bytes"])]
    if as_json:
        jobs = {} if script is None else {"job_script": script}
        terminal.print_json({"cache": prepared.request.cache, "stages": stages, **said, **jobs, "notes": notes})
        return
    print_table(pl.DataFrame(stages), title=prepared.request.cache)
    for name, parts in memory.items():
        print_memory(f"memory of {name}", parts.total_bytes, parts._asdict())
    for note in notes:
        terminal.out.print(note, markup=False)
    if script is not None:
        print_script(script)
    terminal.out.print("a dry run: nothing was written")


def _tight(memory: str | None, bound_bytes: int) -> list[str]:
    """Return a note if a job or a pod has less memory than its worker may need.

    >>> _tight("1 GiB", 1_500_000_000)
    ['note: memory = "1 GiB" in [cluster] is less than a worker may need, 1.4 GiB; one that needs more is ended']
    >>> _tight("2 GiB", 1_500_000_000), _tight(None, 1_500_000_000)
    ([], [])
    """
    from dask.utils import parse_bytes

    if memory is None or parse_bytes(memory) >= bound_bytes:
        return []
    need = f"{math.ceil(bound_bytes / 2**30 * 10) / 10:g} GiB"
    return [
        f'note: memory = "{memory}" in [cluster] is less than a worker may need, {need}; one that needs more is ended'
    ]


def print_report(cache: str, report: BuildReport, as_json: bool, stages: Sequence[Stage] = ()) -> None:
    """Print what a build did, what it could not do, and which losses the encodings of its stages serve."""
    # what nothing was stored of serves no loss
    served = [
        stage
        for stage in stages
        if stage.teacher is not None and (stage.dataset.spec.name, stage.teacher.name) in report.answered
    ]
    if as_json:
        terminal.print_json(
            {
                "cache": cache,
                "built": report.built,
                "present": report.present,
                "lost": report.lost,
                "rows": report.rows,
                "bytes": report.bytes,
                "refused": report.refused,
                "failed": report.failed,
                "classes": report.classes,
                "repeats": report.repeats,
                "teachers": [standing.as_values() for standing in report.standings],
                "serves": _served(served) if report.built else {},
                "quarantined": {name: rows.to_dicts() for name, rows in report.quarantined.items()},
                "exit_code": report.exit_code,
            }
        )
        return
    lost = f", {report.lost} {'was' if report.lost == 1 else 'were'} another builder's" if report.lost else ""
    terminal.out.print(
        f"{cache}: {_shards(report.built)} built ({si(report.bytes, 'B')}), "
        f"{report.present} {'was' if report.present == 1 else 'were'} there{lost}",
        markup=False,
    )
    for line in report.classes if report.built else ():  # when something is new; a look at it is worth its place then
        terminal.out.print(line, markup=False)
    for line in report.repeats:
        terminal.out.print(line, markup=False)
    for standing in report.standings:
        terminal.out.print(standing.note, markup=False)
    for line in _served_lines(served) if report.built else ():
        terminal.out.print(line, markup=False)
    for name, rows in report.quarantined.items():
        terminal.out.print(
            f"{name}: {len(rows)} of its samples cannot be read and are left out; mend them and build again",
            markup=False,
        )
        for row, sample_id, error in rows.head(SHOWN_QUARANTINED).iter_rows():
            terminal.out.print(f"  row {row}  {sample_id}  {error}", markup=False)
        if len(rows) > SHOWN_QUARANTINED:
            terminal.out.print(f"  … {len(rows) - SHOWN_QUARANTINED} more; --json lists all")
    for kind, shards in (("refused", report.refused), ("failed", report.failed)):
        if shards:
            reasons, them = ("the reason is", "it") if len(shards) == 1 else ("the reasons are", "them")
            terminal.out.print(
                f"{_shards(len(shards))} {kind}; {reasons} above. The same command tries {them} again.", markup=False
            )


def _shards(count: int) -> str:
    return f"{count} shard{'s' * (count != 1)}"


def _encodings(stages: Sequence[Stage]) -> dict[str, tuple[Encoding, str]]:
    """Return each teacher's encoding and task, by its name; by dataset too where it has several."""
    found: dict[str, dict[str, tuple[Encoding, str]]] = {}
    for stage in stages:
        if stage.teacher is not None:
            dataset = stage.dataset.spec
            found.setdefault(stage.teacher.name, {})[dataset.name] = stage.teacher.encoding, task_of(dataset).name
    named: dict[str, tuple[Encoding, str]] = {}
    for teacher, by_dataset in found.items():
        alike = len({repr(each) for each in by_dataset.values()}) == 1
        named |= {teacher if alike else f"{dataset}/{teacher}": each for dataset, each in by_dataset.items()}
    return named


def _served(stages: Sequence[Stage]) -> dict[str, dict[str, object]]:
    from jobs.show.serving import losses_served  # whose losses are torch's

    return {name: losses_served(*each)._asdict() for name, each in _encodings(stages).items()}


def _served_lines(stages: Sequence[Stage]) -> list[str]:
    from jobs.show.serving import served_lines

    return [line for name, each in _encodings(stages).items() for line in served_lines(name, *each)]
