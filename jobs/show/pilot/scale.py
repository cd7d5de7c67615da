"""What a job of another size would cost, and what would stop it: as tables of 80 columns and as JSON."""

from __future__ import annotations

import os
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from jobs.show.terminal import out
from storage.encodings.naming import short_name
from storage.errors import duration, si
from teacher_cache.pilot.pilot import Pilot, PilotRequest, Trial
from teacher_cache.pilot.scale import PAGE_S, SHARD_S, Limit, Machine, Scaled, scaled

SHOWN = 5  # limits, the nearest ones


def machine_of(workers: int, time_s: float | None) -> Machine:
    """Return where a job would run: its workers, the time limit of their jobs, and the memory of this machine."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(workers, None if time_s is None else time_s / 3600, float(memory))


def print_scale(pilot: Pilot, request: PilotRequest, machine: Machine) -> None:
    """Print what another size would cost, if it was asked for: in the job's own encoding and the recommended one."""
    found = _of(pilot, request, machine)
    if not found:
        return
    own = next(iter(found.values()))[1]
    one = pilot.unit
    per_row = "" if one == "row" else f" of {own.sites / own.rows:.4g} {one}s"
    _say(
        f"{own.rows:,} rows{per_row}, {own.views} view{'s' * (own.views != 1)}, "
        f"{own.workers:,} worker{'s' * (own.workers != 1)} as this one ({pilot.device})"
    )
    _say(f"{own.shards:,} shards of rows, {own.objects:,} objects")
    _say(f"requests: {si(own.puts)} write or list, {si(own.gets)} read; {si(own.epoch_gets)} of a student's epoch")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("encoding", "inputs", "targets", "commits", "all", "time", "of workers"):
        table.add_column(Text(heading), justify="left" if heading == "encoding" else "right", no_wrap=True)
    for name, (_, each) in found.items():
        sizes = (each.ingest_bytes, each.target_bytes, each.commit_bytes, each.bytes)
        times = (duration(each.build_s), f"{each.worker_s[0] / 3600:,.3g} h")
        table.add_row(name, *(si(size, "B") for size in sizes), *times)
    out.print(table)
    for name, (_, each) in found.items():
        if each.dollars:
            _say(f"{name}, dollars: " + ", ".join(f"{what} {price:,.2f}" for what, price in each.dollars.items()))
    if not own.dollars:
        _say("no dollars, for no price was said: worker_hour, gb_month, put_1000, get_1000 of --scale")
    _print_limits(own)
    _say(
        f"assumed: rows like those measured; {SHARD_S * 1e3:.0f} ms a shard besides, {PAGE_S * 1e3:.0f} ms a page of "
        "a listing; workers that wait for no disk, store or queue. Limits are explained in docs/scale.md"
    )
    out.print()


def _print_limits(found: Scaled) -> None:
    first = found.limits[0]
    if first.share >= 1:
        _say(f"the first limit that it meets: {_told(first)}")
        _say(f"  {first.do}")
    else:
        _say(f"it meets no limit that is known; the nearest: {_told(first)}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("limit", "needs", "holds", "of it"):
        table.add_column(Text(heading), justify="left" if heading == "limit" else "right", no_wrap=True)
    for limit in found.limits[:SHOWN]:
        table.add_row(limit.what, si(limit.needs), si(limit.holds), _share(limit))
    out.print(table)
    for limit in found.limits[1:SHOWN]:
        if limit.share >= 1:
            _say(f"{limit.what}: {limit.do}")


def _told(limit: Limit) -> str:
    return f"{limit.what}, {si(limit.needs)} of {si(limit.holds)}"


def _share(limit: Limit) -> str:
    return f"{limit.share:.3g} ×" if limit.share >= 1 else f"{limit.share:.2g}"


def scale_values(pilot: Pilot, request: PilotRequest, machine: Machine) -> dict[str, Any]:
    """Return the same as JSON, under `scale`; nothing where it was not asked for."""
    found = _of(pilot, request, machine)
    if not found:
        return {}
    assert request.scale is not None
    assert pilot.rates is not None
    return {
        "scale": {
            "asked": request.scale.model_dump(exclude_none=True),
            "rates": pilot.rates._asdict(),
            "encodings": {name: _values(each) for name, (_, each) in found.items()},
        }
    }


def _values(found: Scaled) -> dict[str, Any]:
    worker_s, ingest_s, ask_s = found.worker_s
    return found._asdict() | {
        "bytes": found.bytes,
        "worker_s": worker_s,
        "ingest_shard_s": ingest_s,
        "teacher_shard_s": ask_s,
        "limits": [limit._asdict() | {"share": limit.share} for limit in found.limits],
    }


def _of(pilot: Pilot, request: PilotRequest, machine: Machine) -> dict[str, tuple[Trial, Scaled]]:
    """Return what the job's own encoding costs, and the recommended one, by name; nothing if it was not asked for."""
    if request.scale is None or pilot.rates is None:
        return {}
    trials = [trial for trial in pilot.trials if trial.encoding == pilot.own]
    if pilot.recommended is not None and pilot.recommended not in trials:
        trials.append(pilot.recommended)
    features = pilot.feature_bytes_per_row
    return {
        short_name(trial.encoding): (
            trial,
            scaled(
                request.scale,
                pilot.rates,
                machine,
                trial.pace.teach_s + trial.pace.encode_s,
                trial.bytes_per_row + features,
            ),
        )
        for trial in trials
    }


def _say(text: str) -> None:
    out.print(Text(text), soft_wrap=False)
