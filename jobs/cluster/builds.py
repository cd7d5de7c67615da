"""What runs the work of a build: workers as its job lays them out, opened and held, and one build at a time."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from jobs.cluster.attendance import Attendance
from jobs.cluster.batch.leaving import in_time
from jobs.cluster.flight import alone, run_work, window
from jobs.cluster.hearing import Hearing
from jobs.cluster.limits import within
from jobs.cluster.opening import open_client
from jobs.cluster.pools import Pool, Pools, lay_out, visible_gpus
from jobs.files.cluster_options import BuildClusterOptions, num_processors, threads_of_environment
from jobs.show import terminal
from jobs.show.night import Night, told
from storage.errors import WorkerDied
from teacher_cache.building.alone import alone as held_alone
from teacher_cache.building.build import run_build
from teacher_cache.building.runners import Result, Runner, run_inline
from teacher_cache.building.stages import BuildReport
from teacher_cache.work.perform import perform
from teacher_cache.work.pieces import IngestWork, Work, waited_s

if TYPE_CHECKING:
    from distributed import Client

    from jobs.show.terminal import Watch
    from teacher_cache.building.prepared import PreparedBuild


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
