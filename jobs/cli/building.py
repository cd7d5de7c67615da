"""What `cache build` and `cache recode` share: the choice of a cluster, what runs work on it, the report at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator
from functools import partial

from jobs.cluster.flight import alone, run_work, window
from jobs.cluster.limits import within
from jobs.cluster.opening import open_client
from jobs.files.cluster_options import BuildClusterOptions
from jobs.show import terminal
from storage.errors import BadRequest, WorkerDied, si
from teacher_cache.building.runners import Result, Runner, run_inline
from teacher_cache.building.stages import BuildReport
from teacher_cache.work.perform import perform
from teacher_cache.work.pieces import Work

SHOWN_QUARANTINED = 20  # a screen; --json lists all
AT_ONCE = 2  # shards of a worker: one computes while the other reads or writes (teacher_cache.work.pieces.LOCK)


def choose_cluster(
    options: BuildClusterOptions, workers: int | None, part: tuple[int, int] = (0, 1)
) -> BuildClusterOptions:
    """Return the job's cluster as the flags want it; a part of a job array is one process. Raises BadRequest."""
    if workers is not None and options.kind != "local":
        raise BadRequest(f"--workers is for a local cluster, and this job's is {options.kind}")
    if part != (0, 1):  # the job array's own scheduler has given it a node already
        # a thread that takes too long can only be ended with its process, which then is one beside this one
        limited = options.shard_limit_s is not None
        own = {"kind": "local", "workers": 1} if limited else {"kind": "inline", "workers": None}
        return options.model_copy(update={**own, "address": None})
    return options if workers is None else options.model_copy(update={"workers": workers})


@contextlib.contextmanager
def open_runner(options: BuildClusterOptions) -> Iterator[Runner]:
    """Yield what runs work; a cluster of our own ends with the block.

    Raises:
        BadRequest: the address is none, or workers of our own cannot write files of theirs.
        TryAgain: the scheduler cannot be reached, or workers of our own died as they started, each time.
    """
    if options.kind == "inline":
        yield run_inline
        return
    workers: list[dict[str, str]] = [{}] * options.num_workers
    limit_s, act = options.shard_limit_s, perform
    if limit_s is not None:
        act = partial(within, limit_s, perform, "shard_limit_s")
    with open_client(options, environments=workers, at_once=AT_ONCE) as client:

        def run(todo: Iterable[Work]) -> Generator[Result]:
            crashed: list[Work] = []
            with contextlib.closing(run_work(client, act, todo, places=window)) as results:
                for work, result in results:
                    if isinstance(result, WorkerDied):
                        crashed.append(work)
                    else:
                        yield work, result
            # Perhaps innocent: a neighbour's crash kills the whole process. Alone, a shard is proven.
            yield from run_work(client, act, crashed, places=alone)

        yield run


def print_report(cache: str, report: BuildReport, as_json: bool) -> None:
    """Print what a build did, and what it could not do."""
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
                "teachers": [standing.as_values() for standing in report.standings],
                "quarantined": {name: rows.to_dicts() for name, rows in report.quarantined.items()},
                "exit_code": report.exit_code,
            }
        )
        return
    lost = f", {report.lost} were another builder's" if report.lost else ""
    terminal.out.print(
        f"{cache}: {report.built} shards built ({si(report.bytes, 'B')}), {report.present} were there{lost}",
        markup=False,
    )
    for line in report.classes if report.built else ():  # when something is new; a look at it is worth its place then
        terminal.out.print(line, markup=False)
    for standing in report.standings:
        terminal.out.print(standing.note, markup=False)
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
            terminal.out.print(
                f"{len(shards)} shards {kind}; the reasons are above. The same command tries them again."
            )
