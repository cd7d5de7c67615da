"""`cache verify --teacher`: whether teachers say today what is stored of them. Calls the room, prints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.show.night import Night

SHOWN_ROWS = 20  # a screen; --json lists all


def audit(cache: str, job: Path, rows: int, seed: int, device: str, *, as_json: bool, night: Night) -> int:
    """Ask a job's teachers again about some rows of a cache, print what is off, and return the exit code."""
    from dataclasses import replace

    from jobs.files.cache_job import CacheJob
    from jobs.files.reading import read_job
    from jobs.show import terminal
    from storage.errors import CorruptObject
    from teacher_cache.auditing.audit import Audited, AuditRequest, Off, run_audit

    build = replace(read_job(job, CacheJob).request(job, device=device), cache=cache)
    with terminal.watching("rows", night) as watch:
        found = run_audit(AuditRequest(build, rows, seed), watch)
    if as_json:
        teachers = [
            asdict(each) | {"off": [asdict(off) | {"unit": off.unit} for off in each.off]} for each in found.audited
        ]
        terminal.print_json({"cache": cache, "seed": seed, "device": found.device, "teachers": teachers})
        return CorruptObject.exit_code if found.num_off else 0

    def told(off: Off) -> str:
        what = off.aspect if off.at is None else f"{off.aspect}, class {off.at}"
        far = f"{off.off:.3g} {off.unit}".rstrip()
        return (
            f"off  {off.dataset}/{off.teacher}/{off.view} row {off.row} ({off.sample_id}): {what}: "
            f"found {off.found:.5g}, expected {off.expected:.5g}, {far} off where {off.tolerated:.2g} is tolerated"
        )

    def summary(each: Audited) -> str:
        tolerated = ", ".join(f"{aspect} {value:.2g}" for aspect, value in each.tolerated.items())
        of = f"{each.rows} rows of {each.shards} shards" + f", {len(each.views)} views" * (len(each.views) > 1)
        verdict = f"{len(each.off)} off" if each.off else "all as the teacher says" if each.rows else "none can be read"
        return f"{each.dataset}/{each.teacher}: {of}: {verdict}  (tolerated: {tolerated})"

    for each in found.audited:
        for off in each.off[:SHOWN_ROWS]:
            terminal.out.print(told(off), markup=False, soft_wrap=True)
        if len(each.off) > SHOWN_ROWS:
            terminal.out.print(f"     and {len(each.off) - SHOWN_ROWS} more; --json lists all", markup=False)
        for note in [each.note] if each.note else []:
            terminal.out.print(f"note: {note}", markup=False, soft_wrap=True)
        terminal.out.print(summary(each), markup=False, soft_wrap=True)
    if found.num_off:
        terminal.out.print(
            "the teacher is not the one that the cache was built with, or these shards were changed with their "
            "digests:\ncache build JOB.toml --as NAME asks today's teacher about every row",
            markup=False,
            soft_wrap=True,
        )
    terminal.out.print(f"seed {seed}, on {found.device}; --seed chooses other rows, --rows more", markup=False)
    return CorruptObject.exit_code if found.num_off else 0
