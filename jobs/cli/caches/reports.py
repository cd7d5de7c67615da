"""What a build has done, printed and told: of `cache build`, `cache recode` and `student chain`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs.show import terminal
from jobs.show.night import Night
from storage.errors import si
from storage.tasks import task_of
from teacher_cache.building.stages import BuildReport

if TYPE_CHECKING:
    import polars as pl

    from storage.encodings import Encoding
    from teacher_cache.building.prepared import Stage

SHOWN_QUARANTINED = 20  # a screen; --json lists all


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


def print_report(cache: str, report: BuildReport, as_json: bool, stages: Sequence[Stage] = ()) -> None:
    """Print what a build did, what it could not do, and which losses the encodings of its stages serve."""
    # what nothing was stored of serves no loss
    served = [
        stage
        for stage in stages
        if stage.teacher is not None and (stage.dataset.spec.name, stage.teacher.name) in report.answered
    ]
    if as_json:
        terminal.print_json({"cache": cache} | _values(report, served))
        return
    lost = f", {report.lost} {'was' if report.lost == 1 else 'were'} another builder's" if report.lost else ""
    terminal.out.print(
        f"{cache}: {_shards(report.built)} built ({si(report.bytes, 'B')}), "
        f"{report.present} {'was' if report.present == 1 else 'were'} there{lost}",
        markup=False,
    )
    # classes and losses when something is new; a look at them is worth its place then
    lines = [*(report.classes if report.built else ()), *report.repeats]
    lines += [standing.note for standing in report.standings]
    lines += _served_lines(served) if report.built else []
    for line in lines:
        terminal.out.print(line, markup=False)
    for name, rows in report.quarantined.items():
        _print_quarantined(name, rows)
    for kind, shards in (("refused", report.refused), ("failed", report.failed)):
        if shards:
            reasons, them = ("the reason is", "it") if len(shards) == 1 else ("the reasons are", "them")
            terminal.out.print(
                f"{_shards(len(shards))} {kind}; {reasons} above. The same command tries {them} again.", markup=False
            )


def _values(report: BuildReport, served: Sequence[Stage]) -> dict[str, Any]:
    """Return what a build did, as JSON."""
    return {
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


def _print_quarantined(dataset: str, rows: pl.DataFrame) -> None:
    """Print the samples of a dataset that cannot be read, and why."""
    from jobs.show.tables import print_reason, print_wrapped

    print_wrapped(f"{dataset}: {len(rows)} of its samples cannot be read and are left out; mend them and build again")
    for row, sample_id, error in rows.head(SHOWN_QUARANTINED).iter_rows():
        print_reason(terminal.out, f"row {row}  {sample_id}", error)
    if len(rows) > SHOWN_QUARANTINED:
        terminal.out.print(f"  … {len(rows) - SHOWN_QUARANTINED} more; --json lists all")


def _shards(count: int) -> str:
    return f"{count} shard{'s' * (count != 1)}"


def _encodings(stages: Sequence[Stage]) -> dict[str, tuple[Encoding, str, int]]:
    """Return each teacher's encoding, task and width, by its name; by dataset too where it has several."""
    found: dict[str, dict[str, tuple[Encoding, str, int]]] = {}
    for stage in stages:
        if stage.teacher is not None and stage.spec is not None:
            dataset, encoding = stage.dataset.spec, stage.teacher.encoding
            asked = encoding, task_of(dataset).name, stage.spec.num_classes
            found.setdefault(stage.teacher.name, {})[dataset.name] = asked
    named: dict[str, tuple[Encoding, str, int]] = {}
    for teacher, by_dataset in found.items():
        alike = len({repr(each) for each in by_dataset.values()}) == 1
        named |= {teacher if alike else f"{dataset}/{teacher}": each for dataset, each in by_dataset.items()}
    return named


def _served(stages: Sequence[Stage]) -> dict[str, dict[str, object]]:
    from jobs.show.serving import losses_served  # whose losses are torch's

    return {name: losses_served(*each)._asdict() for name, each in _encodings(stages).items()}


def _served_lines(stages: Sequence[Stage]) -> list[str]:
    from jobs.show.serving import served_lines

    alike: dict[str, list[str]] = {}
    asked = _encodings(stages)
    for name, each in asked.items():  # many teachers of one encoding are told once
        alike.setdefault(repr(each), []).append(name)
    return [line for names in alike.values() for line in served_lines(names, *asked[names[0]])]
