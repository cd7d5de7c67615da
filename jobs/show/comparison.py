"""Runs side by side in a terminal: which setting is best and by how much, a table, what each swept key does.

Where the held rows are of several datasets, a second table has the figures on each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich import box
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from jobs.show.terminal import errors, out
from storage.tasks import TASKS
from student_train.comparing.compared import Compared
from student_train.comparing.figures import NONE, in_units, short
from student_train.comparing.headline import alike, headline, named
from student_train.comparing.runs import ShownRun
from student_train.comparing.settings import Setting, Varied
from student_train.comparing.values import ON_DATASET
from student_train.options.by_dataset import teacher_of, teachers_named
from student_train.run_files.records import beside

MOST_SETTINGS = 200  # of a table; --json has all
MOST_BY_DATASET = 20  # settings that are shown on each dataset; --json has all
MOST_REASONS = 20
MOST_WARNINGS = 4


class Column(NamedTuple):
    """A column: its head, a cell of each setting, what it costs, if that is told, and whether it is what varies."""

    head: str
    cell: Callable[[Setting], str]
    left: bool = False
    cost: str | None = None
    varied: bool = False


def print_comparison(found: Sequence[Compared], runs: Sequence[ShownRun], title: str) -> None:
    """Print settings that were measured on the same rows, and apart from them those of other rows."""
    for number, each in enumerate(found):
        if number:
            _say(f"\nmeasured on other rows, and not to be compared with those above ({number + 1} of {len(found)}):")
        _print_one(each, title)
    without = [run for run in runs if run.status != "finished"]
    for run in without[:MOST_REASONS]:
        reason = run.reason or f"after {run.so_far}; the same job goes on from there"
        _say(f"{run.name} {run.status}: {reason.splitlines()[0]}")
    if len(without) > MOST_REASONS:
        _say(f"… {len(without) - MOST_REASONS} more are not finished; --json lists all")
    for run in runs:
        if run.status == "finished" and run.reason is not None:
            errors.print(Text(f"{run.name}: {run.reason}"))
        for fault in run.faults:
            errors.print(Text(f"{run.name}: {getattr(fault, 'what', fault)}"))
    for each in found:
        for name, fault in each.faults.items():
            errors.print(Text(f"{name}: {fault}"))


def _print_one(found: Compared, title: str) -> None:
    """Print settings that were measured on the same rows: in words, as tables, and what sweeps show."""
    students, settings = sum(len(setting.runs) for setting in found.settings), len(found.settings)
    held = "rows that are unknown" if found.num_rows is None else f"{found.num_rows:,} held rows of {found.rows}"
    of = f" of {_many(settings, 'setting')}" if students > settings else ""
    _say(f"{title}: {_many(students, 'student')}{of}, measured on {held}")
    for line in headline(found):
        _say(line)
    out.print()
    _print_tables(found)
    for line in _legend(found):
        _say(line)
    if found.datasets:
        _print_by_dataset(found)
    if found.beside:
        _print_by_teacher(found)
    no_better = TASKS[found.task].no_better
    for name, text in list(found.near_chance.items())[:MOST_WARNINGS]:
        _say(f"warning: {name} is {no_better}: {text}")
    if len(found.near_chance) > MOST_WARNINGS:
        _say(f"warning: {len(found.near_chance) - MOST_WARNINGS} settings more are {no_better}; --json has all")
    for effect in found.effects:
        best = effect.best(found.gain)
        values = "   ".join(
            f"{value}: {found.gain.number(mean)}" for value, mean in zip(effect.values, effect.means, strict=True)
        )
        won = (
            ""
            if best is None or not effect.whole
            else (f"   {effect.values[best]} is best in {effect.won(found.gain)} of {len(effect.whole)}")
        )
        if effect is found.effects[0]:
            _say(f"mean {found.gain.name}, {found.gain.unit}, of settings that are alike but for")
        _say(f"  {effect.varied.title}   {values}{won}")


def _print_tables(found: Compared) -> None:
    """Print one table, or as many as it takes for none to be too wide, in which each setting is known by its number."""
    number, name, *rest = _columns(found)
    costs = [column for column in rest if column.cost]
    varied = [column for column in rest if column.varied]
    results = [column for column in rest if not column.cost and not column.varied]
    for parts in (
        [[name, *varied, *results, *costs]],
        [[name, *varied, *results], costs],
        [[name, *results], varied, costs],
    ):
        tables = [_fitting(found, [number, *part], reference=part is parts[0]) for part in parts if part]
        if None not in tables:
            break
    else:  # names as long as a line
        for setting in found.settings[:MOST_SETTINGS]:
            _say(f"{number.cell(setting)}  {named(setting, found)}")
        tables = [_table(found, [number, *part], reference=False) for part in (results, costs) if part]
    for place, table in enumerate(tables):
        if place:
            out.print()
        out.print(table)
    if len(found.settings) > MOST_SETTINGS:
        _say(f"… {len(found.settings) - MOST_SETTINGS} settings more; --json has all")


def _print_by_dataset(found: Compared) -> None:
    """Print the figures on the held rows of each dataset: settings by their numbers, if need be without their names."""
    _say("\nby dataset:")
    named, numbered = (_by_dataset(found, names=names) for names in (True, False))
    out.print(named if _width(named) <= out.width else numbered)
    if len(found.settings) > MOST_BY_DATASET:
        _say(f"… {len(found.settings) - MOST_BY_DATASET} settings more; --json has all")


def _by_dataset(found: Compared, *, names: bool) -> Table:
    gain, lines = found.gain, list[tuple[str, ...]]()
    heads = ["#", "", f"{_head(found)}\n{gain.unit}", "ppl", "KL\nnats", "accu-\nracy %", "agree-\nment %"]

    def line(number: str, who: str, figures: dict[str, float | None], deviation: float | None = None) -> None:
        accuracy = NONE if gain.column == "accuracy" else _share(figures.get("accuracy"))
        agreement = NONE if gain.column == "agreement" else _share(figures.get("agreement"))
        rest = _number(figures.get("perplexity"), 4), _number(figures.get("kl")), accuracy, agreement
        lines.append((number, who, gain.with_deviation(figures.get(gain.column), deviation), *rest))

    for dataset, rows in found.datasets.items():
        lines.append(("", f"{dataset}, {_many(rows, 'row')}", *[""] * 5))
        for number, setting in enumerate(found.settings[:MOST_BY_DATASET], 1):
            figures = {column: setting.mean(column, dataset) for column in ON_DATASET}
            who = _marked(setting, found) if names else ""
            line(str(number), who, figures, setting.deviation(gain.column, dataset))
        for teacher in found.teachers:
            if dataset in teacher.by_dataset:
                line("", f"teacher {teacher_of(teacher.name, dataset)}", teacher.by_dataset[dataset])
    return _plain_table(heads, lines)


def _plain_table(heads: Sequence[str], lines: Sequence[tuple[str, ...]]) -> Table:
    """Return a table of the columns that say something; the second one's cells begin at the left."""
    kept = [place for place in range(len(heads)) if any(each[place] not in (NONE, "") for each in lines)]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for place in kept:
        table.add_column(Text(heads[place]), justify="left" if place == 1 else "right", vertical="bottom")
    for each in lines:
        table.add_row(*(Text(each[place]) for place in kept))
    return table


def _print_by_teacher(found: Compared) -> None:
    """Print how far students are from each of their several teachers, on all held rows and on those of each dataset."""
    _say("\nby teacher:")
    named, numbered = (_by_teacher(found, names=names) for names in (True, False))
    out.print(named if _width(named) <= out.width else numbered)
    told = [f"{name}: over {over}" for name, over in found.beside.items() if over is not None]
    if told:
        _say(f"KL of a student from teacher {'; '.join(told)}")


def _by_teacher(found: Compared, *, names: bool) -> Table:
    lines = list[tuple[str, ...]]()
    figures: list[tuple[str, str, Callable[[float | None], str]]] = [
        ("kl", "KL\nnats", _number),
        ("agreement", "agree-\nment %", _share),
        ("spearman", "spear-\nman", _number),
        ("cosine", "co-\nsine", _number),
        ("retrieval", "same near-\nest %", _share),
        ("teacher_rmse", "teach-\ner's rmse", in_units),
    ]
    for teacher in found.beside:
        for dataset in (None, *found.datasets):
            lines.append(("", f"teacher {teacher}" if dataset is None else f"  on {dataset}", *[""] * len(figures)))
            for number, setting in enumerate(found.settings[:MOST_BY_DATASET], 1):
                if teacher in setting.first.by_teacher:
                    cells = [tell(setting.mean(beside(each, teacher), dataset)) for each, _, tell in figures]
                    lines.append((str(number), _marked(setting, found) if names else "", *cells))
    return _plain_table(["#", "", *(head for _, head, _ in figures)], lines)


def _fitting(found: Compared, columns: Sequence[Column], *, reference: bool) -> Table | None:
    """Return a table that is narrow enough, with smaller gaps if need be; None: there is none."""
    tables = (_table(found, columns, reference=reference, gap=gap) for gap in (1, 0))
    return next((table for table in tables if _width(table) <= out.width), None)


def _columns(found: Compared) -> list[Column]:
    """Return the columns of the table of settings, without those that are empty or alike in all."""
    gain, numbers = found.gain, {setting.name: str(n) for n, setting in enumerate(found.settings, 1)}
    seeds = any(len(setting.runs) > 1 for setting in found.settings)
    columns = [
        Column("#", lambda setting: numbers[setting.name]),
        Column("setting", lambda setting: _marked(setting, found), left=True),
        *map(_varied, found.varied),
        *([Column("n", lambda setting: str(len(setting.values(gain.column))))] if seeds else []),
        Column(
            f"{_head(found)}\n{gain.unit}",
            lambda setting: gain.with_deviation(setting.mean(gain.column), setting.deviation(gain.column)),
        ),
        *([Column("best", lambda setting: _best(setting, found))] if seeds else []),
        Column("behind", lambda setting: _behind(setting, found)),
        Column("macro-F1\n%", lambda setting: _share(setting.mean("macro_f1"))),
        Column("ppl", lambda setting: _number(setting.mean("perplexity"), 4)),
        Column("KL\nnats", lambda setting: _number(setting.mean("kl"))),
        Column("co-\nsine", lambda setting: _number(setting.mean("cosine"))),
        Column("same near-\nest %", lambda setting: _share(setting.mean("retrieval"))),
        Column("R²", lambda setting: _number(setting.mean("r2"), 4)),
        Column("teach-\ner's", lambda setting: in_units(setting.mean("teacher_rmse"))),
        *([] if gain.column == "accuracy" else [Column("accu-\nracy %", lambda s: _share(s.mean("accuracy")))]),
        Column("agree-\nment %", lambda setting: _share(setting.mean("agreement"))),
        Column("para-\nmeters", lambda setting: short(setting.first.figures["parameters"]), cost="parameters"),
        Column("ms/row", lambda setting: _number(setting.mean("latency_ms")), cost="latency_ms"),
        Column("epochs", lambda setting: _number(setting.trained("epochs")), cost="epochs"),
        Column("steps", lambda setting: short(setting.trained("steps")), cost="steps"),
        Column("pass\ns", lambda setting: _number(setting.mean("seconds")), cost="seconds"),
        Column("not\nfinished", lambda s: ", ".join(f"{n} {why}" for why, n in s.statuses.items()), cost="status"),
    ]
    told = alike(found)
    return [
        column
        for column in columns
        if column.cost not in told and any(column.cell(each) not in (NONE, "") for each in found.settings)
    ]


def _varied(varied: Varied) -> Column:
    return Column(varied.title.replace(" ", "\n"), lambda setting: varied.text(setting) or NONE, varied=True)


def _table(found: Compared, columns: Sequence[Column], *, reference: bool = True, gap: int = 1) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap, 0, 0))
    for column in columns:
        table.add_column(Text(column.head), justify="left" if column.left else "right", no_wrap=True, vertical="bottom")
    shown = found.settings[:MOST_SETTINGS]
    for setting in shown:
        table.add_row(*(Text(column.cell(setting)) for column in columns))
    if reference:
        for cells in _references(found):
            table.add_row(*(Text(cells.get(column.head.partition("\n")[0], "")) for column in columns))
    return table


def _head(found: Compared) -> str:
    return found.gain.column.replace("_", "-")


def _references(found: Compared) -> list[dict[str, str]]:
    """Return the lines of the teachers and of chance, by the head of a column."""
    gain, lines, column = found.gain, [], _head(found)
    for teacher in found.teachers:
        less = teacher.behind
        lines.append(
            {
                # of one for each dataset the table below has the names
                "setting": "teachers" if teachers_named(teacher.name) else f"teacher {teacher.name}",
                column: gain.number(teacher.figures.get(gain.column)),
                "behind": "" if less is None else _interval(less.mean, less.half, found),
            }
        )
        if gain.column != "accuracy":
            lines[-1]["accu-"] = _share(teacher.figures["accuracy"])
            lines[-1]["ppl"] = _number(teacher.figures.get("perplexity"), 4)
    if found.chance is not None:
        lines.append({"setting": "chance", column: gain.number(found.chance)})
    return lines


def _legend(found: Compared) -> list[str]:
    """Return what the columns of the tables mean, of those that are there."""
    lines, several = [], any(len(setting.values(found.gain.column)) > 1 for setting in found.settings)
    if several:
        lines.append("± behind a mean: deviation over seeds; n: seeds")
    if found.behind:
        seeds = " and the noise of seeds" if found.noise else "; one seed each: the noise of seeds is not in it"
        unit = f", in {found.gain.points}" if found.gain.points else ""
        lines.append(
            f"behind: the best{unit}, with the 95 % interval over the same {found.sites[0]:,} {found.sites[1]}{seeds}"
        )
    if any(setting.mean("perplexity") is not None for setting in found.settings):
        lines.append("ppl: perplexity, exp of the cross-entropy in nats")
    if any(setting.mean("cosine") is not None for setting in found.settings):
        lines.append(
            "cosine: mean to the teacher's vector; same nearest: rows whose nearest other row is the teacher's"
        )
    if any(setting.mean("rmse") is not None for setting in found.settings):
        unit = "in the unit of the number; of several, each in its deviations"
        lines.append(f"rmse: root mean squared error, {unit}; teacher's: that of the teacher beside")
    if found.kl_over:
        lines.append(f"KL: of a student from {'; '.join(found.kl_over)}; mean over held tokens")
    if any(setting.labels_alone for setting in found.settings) and any(not s.labels_alone for s in found.settings):
        lines.append("*: labels alone, no teacher")
    if told := alike(found):
        lines.append(f"all alike: {'; '.join(told.values())}")
    if "seconds" not in told:
        lines.append("pass: seconds of the pass that trained it, which all its students share")
    return lines


def _marked(setting: Setting, found: Compared) -> str:
    mixed = setting.labels_alone and any(not other.labels_alone for other in found.settings)
    return setting.label + (" *" if mixed else "")


def _best(setting: Setting, found: Compared) -> str:
    values = setting.values(found.gain.column)
    return NONE if not values else found.gain.number(max(values) if found.gain.sign > 0 else min(values))


def _behind(setting: Setting, found: Compared) -> str:
    less = found.behind.get(setting.name)
    return "" if less is None else _interval(less.mean, less.half, found)


def _interval(mean: float, half: float | None, found: Compared) -> str:
    return found.gain.number(mean) + ("" if half is None else f" ± {found.gain.number(half)}")


def _share(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.2f}"


def _number(value: float | None, digits: int = 3) -> str:
    return NONE if value is None else f"{value:.{digits}g}"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _width(table: Table) -> int:
    return Measurement.get(out, out.options.update(width=10_000), table).maximum


def _say(text: str) -> None:
    out.print(Text(text))
