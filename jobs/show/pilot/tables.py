"""What a pilot found, as a table of 80 columns and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from jobs.show.serving import losses_served, served_lines
from jobs.show.terminal import out
from storage.cache.standing import near_chance
from storage.encodings import AnyEncoding
from storage.encodings.naming import as_toml, short_name
from storage.errors import duration, si
from teacher_cache.pilot.ladder import DRAW_SETS, is_unbiased
from teacher_cache.pilot.pilot import Pilot, PilotRequest, Trial

FAR_DEGREES = 15.0  # of a recommended encoding, to be told
HEADINGS = ("B", "KL, nat", "ECE", "angle", "worst", "norm", "all")


def print_pilot(pilot: Pilot, request: PilotRequest) -> None:
    """Print what was found of one teacher, and what to do."""
    rate, one = si(pilot.rows_per_s), pilot.unit
    views = "" if pilot.stored_rows == pilot.rows else f", {pilot.stored_rows} with their views ({pilot.view} measured)"
    _say(f"teacher {pilot.teacher} over {', '.join(pilot.datasets)}: {pilot.num_classes} classes")
    _say(f"{pilot.rows_measured} of {pilot.rows} {one}s{views}, {rate} {one}s/s ({pilot.device})")
    if pilot.standing is not None:
        _say(near_chance(pilot.standing, pilot.look_at) if pilot.is_near_chance else pilot.standing)
    out.print(_table(pilot))
    for line in _legend(pilot):
        _say(line)
    for encoding, reason in pilot.skipped:
        _say(f"left out: {short_name(encoding)}: {reason}")
    out.print()
    best, own = pilot.recommended, _own(pilot)
    _say_recommended(pilot)
    for line in served_lines(short_name(_chosen(pilot)), _chosen(pilot), pilot.task):
        _say(line)
    shown = {"recommended": best, "the job's own": None if best == own else own}
    for title, trial in shown.items():
        if trial is not None:
            _say(f"{title}: {_worth(trial, request)}")
    for line in _notes(pilot):
        _say(line)
    out.print()


def _chosen(pilot: Pilot) -> AnyEncoding:
    """Return the encoding that is recommended, or else the job's own."""
    return pilot.own if pilot.recommended is None else pilot.recommended.encoding


def _say_recommended(pilot: Pilot) -> None:
    """Tell which encoding is recommended, or why none is."""
    best = pilot.recommended
    if best is None and pilot.is_nearly_uniform:
        _say(
            f"nothing is recommended: teacher {pilot.teacher} is nearly uniform, its entropy {pilot.entropy:.2f} "
            f"of at most {math.log(pilot.num_classes):.2f} nats. What it says is in no few classes: to store it takes "
            f"many times the bytes, for little to learn. Look at {pilot.look_at}; until then the job's own encoding "
            "will do"
        )
    elif best is None:
        smallest = min((trial.fidelity.kl for trial in pilot.trials if trial.fidelity.kl is not None), default=None)
        nearest = "" if smallest is None else f"; the nearest has {smallest:.2g}"
        _say(f"no encoding is within max_kl = {pilot.max_kl:g}{nearest}. Raise it in [fidelity]")
    elif best.encoding == pilot.own:
        _say(f"the job's own encoding is the smallest within max_kl = {pilot.max_kl:g}; nothing to change")
    else:
        _say(f"recommended, the smallest within max_kl = {pilot.max_kl:g}; in [[teacher]] {pilot.teacher} write")
        _say(f"  {as_toml(best.encoding)}")


def _notes(pilot: Pilot) -> Iterator[str]:
    """Yield what is to be weighed against the recommendation."""
    best, cheaper = pilot.recommended, pilot.cheaper
    if best is not None and cheaper is not None:
        yield (
            f"note: that is {best.bytes_per_row / cheaper.bytes_per_row:.0f} times the bytes of "
            f"{short_name(cheaper.encoding)}, whose KL is {cheaper.fidelity.kl:.2g}; max_kl in [fidelity] weighs one "
            "against the other, and students of either tell"
        )
    if best is not None and best.fidelity.gradients[1.0].degrees > FAR_DEGREES:
        yield (
            f"note: at this KL the gradient is still {best.fidelity.gradients[1.0].degrees:.0f}° off; "
            f"a lower max_kl in [fidelity] asks for more"
        )
    unjudged = [trial for trial in pilot.trials if is_unbiased(trial.encoding)]
    if unjudged and (best is None or unjudged[0].bytes_per_row < best.bytes_per_row):
        yield (
            f"note: {short_name(unjudged[0].encoding)} of {unjudged[0].bytes_per_row:.3g} B is unbiased: "
            "KL cannot judge draws, its angles can"
        )


def as_values(pilot: Pilot, request: PilotRequest) -> dict[str, Any]:
    """Return what was found of one teacher, as JSON; a row of tokens is one position."""
    best = pilot.recommended
    return {
        "teacher": pilot.teacher,
        "datasets": list(pilot.datasets),
        "classes": pilot.num_classes,
        "unit": pilot.unit,
        "rows_measured": pilot.rows_measured,
        "rows": pilot.rows,
        "rows_in_all_views": pilot.stored_rows,
        "view": pilot.view,
        "rows_per_s": pilot.rows_per_s,
        "device": pilot.device,
        "workers": request.workers,
        "epochs": request.epochs,
        "max_kl": pilot.max_kl,
        "calibration_error": pilot.calibration,
        "standing": pilot.standing,
        "is_near_chance": pilot.is_near_chance,
        "entropy": pilot.entropy,
        "task": pilot.task,
        "is_nearly_uniform": pilot.is_nearly_uniform,
        "foretold_s": pilot.foretold_s,
        "took_s": pilot.took_s,
        "feature_bytes_per_row": pilot.feature_bytes_per_row,
        "recommended": None if best is None else short_name(best.encoding),
        "write": None if best is None else as_toml(best.encoding),
        "encodings": [_trial_values(trial, pilot.task, trial.encoding == pilot.own) for trial in pilot.trials],
        "skipped": [{"name": short_name(encoding), "reason": reason} for encoding, reason in pilot.skipped],
    }


def _trial_values(trial: Trial, task: str, own: bool) -> dict[str, Any]:
    fidelity, worth = trial.fidelity, trial.worth
    return {
        "name": short_name(trial.encoding),
        "encoding": trial.encoding.model_dump(mode="json"),
        "own": own,
        "serves": losses_served(trial.encoding, task)._asdict(),
        "unbiased": is_unbiased(trial.encoding),
        "bytes_per_row": trial.bytes_per_row,
        "kl": fidelity.kl,
        "calibration_error": fidelity.calibration,
        "gradients": {f"{t:g}": g._asdict() for t, g in fidelity.gradients.items()},
        "gradient_of_one_set_of_draws": None if fidelity.single is None else fidelity.single._asdict(),
        "pace": trial.pace._asdict(),
        "bytes": worth.bytes,
        "build_s": worth.build_s,
        "live_s_per_student": worth.live_s,
        "read_s_per_student": worth.read_s,
        "students_from_which_it_pays": worth.students,
    }


def _table(pilot: Pilot) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(Text("encoding"), no_wrap=True)
    for heading in HEADINGS:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for trial in pilot.trials:
        mark = ">" if trial == pilot.recommended else "=" if trial.encoding == pilot.own else " "
        name = f"{mark} {short_name(trial.encoding).removeprefix('sparse ')}{' *' * is_unbiased(trial.encoding)}"
        table.add_row(*map(Text, (name, *_cells(trial))), style="bold" if trial == pilot.recommended else None)
    return table


def _cells(trial: Trial) -> tuple[str, ...]:
    fidelity = trial.fidelity
    at_one = fidelity.gradients[1.0]
    # Of draws a student sees one set at a time; their mean over seeds is what is unbiased.
    worst = fidelity.single or max(fidelity.gradients.values(), key=lambda gradient: gradient.degrees)
    return (
        f"{trial.bytes_per_row:.3g}" if trial.bytes_per_row < 1000 else si(trial.bytes_per_row),
        # Below 1e-12 it is rounding: float64 sums over classes.
        "–" if fidelity.kl is None else "0" if fidelity.kl < 1e-12 else f"{fidelity.kl:.1e}",
        "–" if fidelity.calibration is None else f"{fidelity.calibration:.3f}",
        _angle(at_one.degrees),
        _angle(worst.degrees),
        f"{at_one.norm_ratio:.3f}",
        si(trial.worth.bytes, "B"),
    )


def _angle(degrees: float) -> str:
    return f"{degrees:.0f}°" if degrees >= 10 else f"{degrees:.2g}°" if degrees >= 1e-3 else "0°"


def _legend(pilot: Pilot) -> list[str]:
    drawn = any(is_unbiased(trial.encoding) for trial in pilot.trials)
    alone = any(trial.fidelity.kl is None for trial in pilot.trials)
    temperatures = ", ".join(f"{t:g}" for t in pilot.own.temperatures)
    no_label = f"{pilot.view} mixes images, which have no one true label" if pilot.mixes else "no labels"
    features = f" and {pilot.feature_bytes_per_row:.3g} B of features" if pilot.feature_bytes_per_row else ""
    return [
        f"B      bytes of a {pilot.unit} as stored, with statistics",
        f"all    bytes of all {pilot.unit}s, in all views{features}",
        "KL     mean of KL(dense‖decoded), temperature 1; a sparse tail spread evenly",
        "ECE    calibration error; "
        + (no_label if pilot.calibration is None else f"the teacher's own is {pilot.calibration:.3f}"),
        "angle  of a stand-in student's gradient to that of dense targets; norm: ratio",
        f"worst  largest angle at temperature{'s' * (len(pilot.own.temperatures) > 1)} {temperatures}"
        + ("; of *, with one set of draws" if drawn else ""),
        "> recommended   = the job's own"
        + (f"   * unbiased; angle: mean of {DRAW_SETS} sets of draws" if drawn else ""),
        *(["– draws alone are no distribution: no KL, and so never recommended by it"] if alone else []),
    ]


def _worth(trial: Trial, request: PilotRequest) -> str:
    worth = trial.worth
    workers = f"{request.workers} worker{'s' * (request.workers != 1)}"
    pays = (
        "never pays against a live teacher, which is as quick as reading"
        if worth.students is None
        else f"pays from {worth.students} student{'s' * (worth.students != 1)} of {request.epochs} epochs on"
    )
    return f"{si(worth.bytes, 'B')}, {duration(worth.build_s)} with {workers};\n  {pays}"


def _own(pilot: Pilot) -> Trial | None:
    return next((trial for trial in pilot.trials if trial.encoding == pilot.own), None)


def _say(text: str) -> None:
    out.print(Text(text), soft_wrap=False)
