"""Figures that are apart: on the held rows of each dataset, and beside each teacher; and how figures are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from student_train.comparing.compared import Compared
from student_train.comparing.figures import NONE, in_units
from student_train.comparing.settings import Setting
from student_train.options.by_dataset import teacher_of
from student_train.run_files.records import beside


class Cell(NamedTuple):
    """What a table shows, and by what it is sorted; None comes last whichever way."""

    text: str
    value: float | str | None


class DatasetLine(NamedTuple):
    """Figures of a setting, or of a teacher (None), on the held rows of one dataset."""

    dataset: str
    setting: Setting | None
    name: str
    cells: list[Cell]


class TeacherLine(NamedTuple):
    """Figures of a setting beside one of several teachers, on the held rows of a dataset; None: on all of them."""

    teacher: str
    dataset: str | None
    setting: Setting
    cells: list[Cell]


def percent(value: float | None, digits: int = 2) -> str:
    """Return a share: 97.41 %."""
    return NONE if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many digits."""
    return NONE if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def perplexity(value: float | None) -> str:
    """Return a perplexity in four digits."""
    return number(value, 4)


def nats(value: float | None) -> str:
    """Return nats to four places."""
    return NONE if value is None else f"{value:.4f}"


def by_dataset(found: Compared) -> tuple[list[str], list[DatasetLine]]:
    """Return the heads of figures on the held rows of each dataset, and their lines; none where these are of one."""
    gain, lines = found.gain, list[DatasetLine]()
    others: dict[str, tuple[str, Callable[[float | None], str]]] = {
        "perplexity": ("perplexity", perplexity),
        "kl": ("KL, nats", nats),
        "accuracy": ("accuracy", percent),
        "agreement": ("agreement", percent),
    }
    others.pop(gain.column, None)
    written = {gain.column: (f"{gain.name}, {gain.unit}", gain.number)} | others

    def add(dataset: str, setting: Setting | None, name: str, figures: Mapping[str, float | None], more: str) -> None:
        values = {column: figures.get(column) for column in written}
        texts = {column: written[column][1](value) + more * (column == gain.column) for column, value in values.items()}
        lines.append(DatasetLine(dataset, setting, name, [Cell(texts[column], values[column]) for column in written]))

    for dataset in found.datasets:
        for each in found.settings:
            known = {column: each.mean(column, dataset) for column in written}
            add(dataset, each, each.label, known, gain.deviation_text(each.deviation(gain.column, dataset)))
        for teacher in found.teachers:
            if dataset in teacher.by_dataset:
                add(dataset, None, f"teacher {teacher_of(teacher.name, dataset)}", teacher.by_dataset[dataset], "")
    kept = [k for k in range(len(written)) if any(line.cells[k].value is not None for line in lines)]
    heads = [head for head, _ in written.values()]
    return [heads[k] for k in kept], [line._replace(cells=[line.cells[k] for k in kept]) for line in lines]


def by_teacher(found: Compared) -> tuple[list[str], list[TeacherLine]]:
    """Return the heads of figures beside each of several teachers, and their lines; none where students have one.

    On all held rows first, then on those of each dataset.
    """
    written: dict[str, tuple[str, Callable[[float | None], str]]] = {
        "kl": ("KL, nats", nats),
        "agreement": ("agreement", percent),
        "spearman": ("Spearman", number),
        "cosine": ("cosine", number),
        "retrieval": ("same nearest", percent),
        "teacher_rmse": ("teacher's RMSE", in_units),
    }
    lines = [
        TeacherLine(teacher, dataset, setting, [Cell(told(value), value) for (_, told), value in told_and_values])
        for teacher in found.beside
        for dataset in (None, *found.datasets)
        for setting in found.settings
        if teacher in setting.first.by_teacher
        for told_and_values in [
            [(each, setting.mean(beside(figure, teacher), dataset)) for figure, each in written.items()]
        ]
    ]
    kept = [k for k in range(len(written)) if any(line.cells[k].value is not None for line in lines)]
    heads = [head for head, _ in written.values()]
    return [heads[k] for k in kept], [line._replace(cells=[line.cells[k] for k in kept]) for line in lines]
