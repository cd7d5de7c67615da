"""`cache gc | compact`: what no commit names is deleted; small shards become large. Parses, calls the room, prints."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.arguments import CacheArgument, JsonOption, LogFormatOption, MetricsOption, absolute

if TYPE_CHECKING:
    from storage.cache.garbage import Waste

SHOWN = 20  # a screen; --json lists all
SHORTEST_GRACE_S = 3600.0  # a shard of gigabytes may be that long on its way to a store, which dates it by its begin
UNITS_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def gc(
    cache: CacheArgument,
    grace: Annotated[
        str, typer.Option(metavar="AGE", help="What is younger stays: it may be a running builder's. 90m, 24h, 7d.")
    ] = "24h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what and how much; delete nothing.")] = False,
    log_format: LogFormatOption = "text",
    metrics_file: MetricsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete what no commit names: attempts that lost or died, files half written, spare ledger files."""
    from jobs.show import terminal
    from jobs.show.night import Night

    night = Night("cache gc", cache, log_format, None if dry_run else metrics_file)

    def action() -> int:
        from storage.cache import Cache
        from storage.cache.garbage import delete_garbage, find_garbage
        from storage.errors import CorruptObject

        grace_s, opened = _parse_grace(grace), Cache.open(cache)
        with terminal.watching("stages", night) as watch:

            def on_stage(done: int, total: int) -> None:
                if done == 1:
                    watch.begin(f"gc {cache}", total)
                watch.advance(1)

            found = find_garbage(opened, grace_s, on_stage)
        gone = list(found.old) if dry_run else delete_garbage(opened, found.old)
        if as_json:
            terminal.print_json(
                {
                    "cache": opened.url,
                    "dry_run": dry_run,
                    "garbage": [{"kind": waste.kind, "path": waste.path, "bytes": waste.size_bytes} for waste in gone],
                    "bytes": sum(waste.size_bytes for waste in gone),
                    "younger": len(found.young),
                    "unreadable_commits": list(found.unreadable),
                }
            )
        else:
            _print_gone(gone, found.young, grace, dry_run=dry_run)
        for path in found.unreadable:
            terminal.errors.print(
                f"{path} cannot be read: no attempt of its shard was touched; cache verify {cache} --repair",
                markup=False,
            )
        return CorruptObject.exit_code if found.unreadable else 0

    terminal.run(action, as_json=as_json, answers=True, night=night)


def _parse_grace(text: str) -> float:
    """Return a grace in seconds. Raises BadRequest: a running builder's files would be younger than that."""
    from storage.errors import BadRequest

    if (grace_s := parse_age(text)) < SHORTEST_GRACE_S:
        raise BadRequest(
            f"--grace {text} is too short",
            expected="an hour at least: what a builder has written and not committed yet looks the same",
        )
    return grace_s


def _print_gone(gone: Sequence[Waste], young: Sequence[Waste], grace: str, *, dry_run: bool) -> None:
    """Print what was deleted or would be, and what is too young for that."""
    from jobs.show import terminal

    if dry_run:
        for waste in gone[:SHOWN]:
            terminal.out.print(f"{waste.kind}  {waste.path}", markup=False, soft_wrap=True)
        if len(gone) > SHOWN:
            terminal.out.print(f"and {len(gone) - SHOWN} more; --json lists all")
    verb = "would be deleted" if dry_run else "deleted"
    terminal.out.print(f"{tell_waste(gone)} {verb}" if gone else "nothing to delete", markup=False)
    if young:
        terminal.out.print(f"younger than {grace}, and left: {tell_waste(young)}", markup=False)


def compact(
    cache: CacheArgument,
    to: Annotated[str, typer.Argument(metavar="TO", help="A new cache, or one that a compaction of CACHE has begun.")],
    rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of a shard, at most. By default about 256 MB of them.")
    ] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Only this dataset; may be given again.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many there would be; write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a cache of fewer, larger shards beside one of many small ones, without its teachers."""
    from jobs.show import terminal

    def action() -> int:
        from storage.cache import Cache
        from storage.cache.copies import compact as room
        from storage.errors import CorruptObject, RowsMissing

        source, url, names = Cache.open(absolute(cache).rstrip("/")), absolute(to).rstrip("/"), dataset or None
        if dry_run:
            planned = room.plan_compaction(source.catalogue(names), names, rows)
            counts = {name: (sum(map(len, groups)), len(groups)) for name, groups in planned.items()}
            if as_json:
                terminal.print_json({name: {"shards": old, "compacted": new} for name, (old, new) in counts.items()})
            else:
                for name, (old, new) in counts.items():
                    terminal.out.print(f"{name}: {old} shards would become {new}", markup=False)
            return 0
        with terminal.watching("shards") as watch:
            found = room.compact(source, url, watch, datasets=names, rows=rows)
        if as_json:
            failed = [{"shard": str(key), "reason": reason} for key, reason in found.failed]
            counted = {"shards": found.shards, "there": found.there, "of": found.old, "lacking": found.lacking}
            terminal.print_json({"cache": source.url, "to": url, **counted, "failed": failed})
        else:
            for key, reason in found.failed[:SHOWN]:
                terminal.out.print(f"bad  {key}\n{reason}", markup=False)
            there = f"; {found.there} were there already" if found.there else ""
            terminal.out.print(f"{found.shards} shards of {found.old}{there}", markup=False)
            for stage, count in found.lacking.items():
                terminal.out.print(
                    f"{stage}: {count} shards wait for rows that {cache} lacks; the same command takes them up later",
                    markup=False,
                )
        return CorruptObject.exit_code if found.failed else RowsMissing.exit_code if found.lacking else 0

    terminal.run(action, as_json=as_json)


def tell_waste(waste: Sequence[Waste]) -> str:
    """Return how many of each kind there are, and how much that is."""
    from storage.errors import si

    counts = Counter(each.kind for each in waste)
    kinds = ", ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in counts.items())
    return f"{kinds} ({si(sum(each.size_bytes for each in waste), 'B')})"


def parse_age(text: str) -> float:
    """Return an age such as 90m, 24h or 7d in seconds. Raises BadRequest."""
    from storage.errors import BadRequest

    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|m|min|h|d)", text.strip())
    if found is None:
        raise BadRequest(f"{text} is no length of time", expected="a number with s, m, h or d, such as 24h")
    return float(found[1]) * UNITS_S[found[2]]
