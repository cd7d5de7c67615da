"""`cache verify`: every object against its digest, or some rows against their teachers. Calls the room, prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.arguments import CacheArgument, DeviceOption, JsonOption, LogFormatOption, MetricsOption

if TYPE_CHECKING:
    from storage.cache.garbage import Waste
    from storage.cache.verify import Verification

AUDITED_ROWS = 200


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
        from jobs.cli.caches.auditing import audit
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
    """Print which shards are bad and why, what was dropped, and what no commit names."""
    from jobs.cli.caches.keeping import tell_waste
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
