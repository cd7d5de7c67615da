"""`cache verify`: every object against its digest, or some rows against their teachers. Calls the room, prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.arguments import CacheArgument, DeviceOption, JsonOption, LogFormatOption, MetricsOption

if TYPE_CHECKING:
    from jobs.show.night import Night
    from storage.cache.garbage import Waste
    from storage.cache.verify import Verification
    from teacher_cache.auditing.audit import Audited

AUDITED_ROWS = 200
SHOWN_ROWS = 20  # a screen; --json lists all


def verify(
    cache: CacheArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop bad shards, so that build makes them again, and garbage.")
    ] = False,
    teacher: Annotated[
        Path | None,
        typer.Option(metavar="JOB.toml", help="Audit instead: ask this job's teachers again about some rows."),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, metavar="N", help="Rows of an audit, by default 200.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Which rows these are, by default 0.")] = None,
    device: DeviceOption = "auto",
    log_format: LogFormatOption = "text",
    metrics_file: MetricsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every object against its digest; or some rows against their teachers."""
    from jobs.show import terminal
    from jobs.show.night import Night

    subject = cache if teacher is None else f"{cache} asked of {teacher}"  # an audit has figures of its own
    night = Night("cache verify", subject, log_format, metrics_file)

    def action() -> int:
        from jobs.show.notice import open_cache
        from storage.cache import verify as room
        from storage.errors import BadRequest, CorruptObject, RowsMissing

        if teacher is not None and repair:
            raise BadRequest("an audit repairs nothing", found="--teacher and --repair", do="leave one of them out")
        if teacher is not None:
            return audit(cache, teacher, rows or AUDITED_ROWS, seed or 0, device, as_json=as_json, night=night)
        if rows is not None or seed is not None:
            raise BadRequest("--rows and --seed are of an audit", do="--teacher JOB.toml, or leave them out")

        opened = open_cache(cache)
        with terminal.watching("shards", night) as watch:

            def on_shard(done: int, total: int) -> None:
                if done == 1:  # how many there are is known only when the first is done
                    watch.begin(f"verify {cache}", total)
                watch.advance(1)

            found = room.verify(opened, on_shard)
        deleted = room.repair(opened, found) if repair else []
        _print_verified(cache, found, deleted, repaired=repair, as_json=as_json)
        # What was repaired is no longer corrupt: it is missing, until the next build.
        if repair:
            return RowsMissing.exit_code if found.bad else 0
        return CorruptObject.exit_code if found.bad or found.untrue else 0

    terminal.run(action, as_json=as_json, answers=True, night=night)


def _print_verified(cache: str, found: Verification, deleted: list[Waste], *, repaired: bool, as_json: bool) -> None:
    from jobs.cli.cache_keeping import tell_waste
    from jobs.show import terminal
    from storage.errors import si

    if as_json:
        bad = [{"shard": str(shard.key), "reason": shard.reason} for shard in found.bad]
        counts = {"shards": found.shards, "bytes": found.bytes, "garbage": list(found.garbage)}
        removed = [waste.path for waste in deleted]
        said = {"bad": bad, "untrue": list(found.untrue), "repaired": repaired, "removed": removed}
        terminal.print_json(counts | said)
        return
    for shard in found.bad:
        terminal.out.print(f"bad  {shard.key}\n{shard.reason}", markup=False)
    for path in found.untrue:
        what = "deleted" if repaired else f"cache verify {cache} --repair deletes it, and commits are read again"
        terminal.out.print(f"bad  {path}\nit says of commits what they do not ({what})", markup=False)
    done = "dropped; cache build makes them again" if repaired else f"cache verify {cache} --repair drops them"
    whole = f"{len(found.bad)} bad ({done})" if found.bad else "all whole"
    garbage = f"; removed what no commit names: {tell_waste(deleted)}" if deleted else ""
    if found.garbage and not repaired:
        garbage = f"; {len(found.garbage)} abandoned Zarr groups (cache gc {cache} deletes them)"
    terminal.out.print(f"{found.shards} shards, {si(found.bytes, 'B')}: {whole}{garbage}", markup=False)


def audit(cache: str, job: Path, rows: int, seed: int, device: str, *, as_json: bool, night: Night) -> int:
    """Ask a job's teachers again about some rows of a cache, print what is off, and return the exit code."""
    from dataclasses import replace

    from jobs.files.cache_job import CacheJob
    from jobs.files.reading import read_job
    from jobs.show import terminal
    from storage.errors import CorruptObject, printable
    from teacher_cache.auditing.audit import AuditRequest, Off, run_audit

    build = replace(read_job(job, CacheJob).request(job, device=device), cache=cache)
    with terminal.watching("rows", night) as watch:
        found = run_audit(AuditRequest(build, rows, seed), watch)
    if as_json:
        teachers = [
            asdict(each)
            | {"off": [asdict(off) | {"unit": off.unit} for off in each.off]}
            | {"machines": [machine._asdict() for machine in each.machines]}
            | {"changed": [changed._asdict() for changed in each.changed]}
            for each in found.audited
        ]
        where = {"device": found.device, "host": found.host, "surroundings": found.surroundings}
        terminal.print_json({"cache": cache, "seed": seed, **where, "teachers": teachers})
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
    return CorruptObject.exit_code if found.num_off else 0


def _drift(each: Audited) -> Iterator[str]:
    """Yield on which machines rows were made that are off, and what is of another version since."""
    if each.off:
        yield "  made on " + ", ".join(f"{host}: {off} of {rows} rows off" for host, rows, off in each.machines)
    if each.changed:
        yield "  changed since: " + "; ".join(f"{name} {', '.join(then)} → {now}" for name, then, now in each.changed)
