"""An audit of `cache verify --teacher`: run, and what is off printed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.show import terminal
from storage.errors import CorruptObject, printable

if TYPE_CHECKING:
    from jobs.show.night import Night
    from teacher_cache.auditing.audit import Audit, Audited, Off

SHOWN_ROWS = 20  # a screen; --json lists all


def audit(cache: str, job: Path, rows: int, seed: int, device: str, *, as_json: bool, night: Night) -> int:
    """Ask a job's teachers again about some rows of a cache, print what is off, and return the exit code."""
    from jobs.files.cache_job import CacheJob
    from jobs.files.reading import read_job
    from teacher_cache.auditing.audit import AuditRequest, run_audit

    build = replace(read_job(job, CacheJob).request(job, device=device), cache=cache)
    with terminal.watching("rows", night) as watch:
        found = run_audit(AuditRequest(build, rows, seed), watch)
    if as_json:
        terminal.print_json({"cache": cache, "seed": seed} | _values(found))
    else:
        _print(found, seed)
    return CorruptObject.exit_code if found.num_off else 0


def _values(found: Audit) -> dict[str, object]:
    """Return what an audit found, as JSON."""
    teachers = [
        asdict(each)
        | {"off": [asdict(off) | {"unit": off.unit} for off in each.off]}
        | {"machines": [machine._asdict() for machine in each.machines]}
        | {"changed": [changed._asdict() for changed in each.changed]}
        for each in found.audited
    ]
    return {"device": found.device, "host": found.host, "surroundings": found.surroundings, "teachers": teachers}


def _print(found: Audit, seed: int) -> None:
    """Print the rows of each teacher that are off, what it comes to, and who answered."""
    for each in found.audited:
        for off in each.off[:SHOWN_ROWS]:
            terminal.out.print(_told(off), markup=False, soft_wrap=True)
        if len(each.off) > SHOWN_ROWS:
            terminal.out.print(f"     and {len(each.off) - SHOWN_ROWS} more; --json lists all", markup=False)
        if each.note:
            terminal.out.print(f"note: {each.note}", markup=False, soft_wrap=True)
        terminal.out.print(_summary(each), markup=False, soft_wrap=True)
        for line in _drift(each):
            terminal.out.print(printable(line, one_line=True), markup=False, soft_wrap=True)
    if found.num_off:
        terminal.out.print(
            "the teacher is not the one that the cache was built with, or these shards were changed with their "
            "digests:\ncache build JOB.toml --as NAME asks today's teacher about every row",
            markup=False,
            soft_wrap=True,
        )
    terminal.out.print(f"seed {seed}, on {found.device}; --seed chooses other rows, --rows more", markup=False)
    versions = ", ".join(f"{name} {value}" for name, value in found.surroundings.items())
    terminal.out.print(f"answered by {found.host}: {versions}", markup=False, soft_wrap=True)


def _told(off: Off) -> str:
    what = off.aspect if off.at is None else f"{off.aspect}, class {off.at}"
    far = f"{off.off:.3g} {off.unit}".rstrip()
    return (
        f"off  {off.dataset}/{off.teacher}/{off.view} row {off.row} ({off.sample_id}): {what}: "
        f"found {off.found:.5g}, expected {off.expected:.5g}, {far} off where {off.tolerated:.2g} is tolerated"
    )


def _summary(each: Audited) -> str:
    tolerated = ", ".join(f"{aspect} {value:.2g}" for aspect, value in each.tolerated.items())
    of = f"{each.rows} rows of {each.shards} shards" + f", {len(each.views)} views" * (len(each.views) > 1)
    verdict = f"{len(each.off)} off" if each.off else "all as the teacher says" if each.rows else "none can be read"
    return f"{each.dataset}/{each.teacher}: {of}: {verdict}  (tolerated: {tolerated})"


def _drift(each: Audited) -> Iterator[str]:
    """Yield on which machines rows were made that are off, and what is of another version since."""
    if each.off:
        yield "  made on " + ", ".join(f"{host}: {off} of {rows} rows off" for host, rows, off in each.machines)
    if each.changed:
        yield "  changed since: " + "; ".join(f"{name} {', '.join(then)} → {now}" for name, then, now in each.changed)
