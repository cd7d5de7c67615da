"""Settings: students that differ in their seed alone. And in what settings differ."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from student_train.comparing.figures import NONE
from student_train.comparing.noise import deviation
from student_train.comparing.runs import ShownRun, Unit

FINISHED = ("finished", "lost")  # its weights may be gone since; what it was measured at holds
MEASURED = (*FINISHED, "stopped")  # statuses of students that can be compared
# A part of a name such as a sweep makes, `lr_0.01`; of `1e-05` the hyphen is no end.
PARTS = re.compile(r"-(?=[A-Za-z])")
SHORT = {"learning_rate": "lr", "temperature": "T", "batch_size": "batch", "weight_decay": "decay"}


@dataclass(frozen=True)
class Setting:
    """Students that differ in their seed alone.

    Attributes:
        name: of all of them, without what tells their seeds apart.
        label: the same without what columns say.
        runs: of all of them, the best first.
    """

    name: str
    label: str
    runs: tuple[ShownRun, ...]

    @property
    def first(self) -> ShownRun:
        """Return its best student, which stands for it where one is shown."""
        return self.runs[0]

    @property
    def counted(self) -> tuple[ShownRun, ...]:
        """Return those whose figures count, one of each seed: the finished ones; where none is, whoever has figures."""
        finished = [run for run in self.runs if run.status in FINISHED]
        able = finished or [run for run in self.runs if run.status in MEASURED] or self.runs
        by_chance = {run.chance: run for run in sorted(able, key=lambda run: run.name, reverse=True)}
        return tuple(run for run in able if by_chance[run.chance] is run)

    @property
    def keys(self) -> dict[str, Any]:
        """Return what its section of the job says."""
        return self.first.keys

    @property
    def statuses(self) -> dict[str, int]:
        """Return how many have not finished, by status; and how many are copies of one that counts."""
        finished = [run for run in self.runs if run.status == "finished"]
        copies = len(finished) - len({run.chance for run in finished})
        others = Counter(run.status for run in self.runs if run.status != "finished")
        return dict(others) | ({"copies": copies} if copies else {})

    @property
    def is_measured(self) -> bool:
        """Whether one of them was measured at its end, and can be compared."""
        return any(run.status in MEASURED for run in self.runs)

    @property
    def labels_alone(self) -> bool:
        """Whether no teacher had a part in it."""
        return bool(self.first.identity) and not self.first.has_teacher

    def values(self, column: str, dataset: str | None = None) -> list[float]:
        """Return a figure of each student that has it, on all held rows or on those of one dataset."""
        found = [run.figures_of(dataset).get(column) for run in self.counted]
        return [value for value in found if value is not None]

    def trained(self, unit: Unit) -> float | None:
        """Return how long it was trained, in epochs or steps; None: its job says so in the other, or nobody knows."""
        return self.mean(unit) if self.first.unit == unit else None

    def mean(self, column: str, dataset: str | None = None) -> float | None:
        """Return the mean of a figure; None: nobody has it."""
        values = self.values(column, dataset)
        return fmean(values) if values else None

    def deviation(self, column: str, dataset: str | None = None) -> float | None:
        """Return a figure's deviation over seeds; None of less than two."""
        return deviation(self.values(column, dataset))


class Varied(NamedTuple):
    """What varies: a key of the students, or several that vary together.

    Attributes:
        keys: such as "kd.temperature".
        title: of a column.
    """

    keys: tuple[str, ...]
    title: str

    def text(self, setting: Setting) -> str | None:
        """Return a setting's value as text; None: it has none."""
        keys = setting.keys
        values = [written(keys[key]) if key in keys else NONE for key in self.keys]
        return None if set(values) == {NONE} else "/".join(values)

    def order(self, setting: Setting) -> tuple[Any, ...]:
        """Return what its values are sorted by: numbers, and lists of them, in their order; before them nothing."""
        found = [setting.keys.get(key) for key in self.keys]
        return tuple(_order(value) for value in found)


def _order(value: Any) -> tuple[int, Any]:
    match value:
        case None:
            return 0, 0
        case int() | float():
            return 1, float(value)
        case [*below] if all(isinstance(each, int | float) for each in below):
            return 2, tuple(below)
    return 3, written(value)


def settings_of(runs: Sequence[ShownRun], order: Callable[[ShownRun], float]) -> list[Setting]:
    """Return the settings of some runs, the best mean first, those without a figure last.

    Args:
        runs: in any order.
        order: a run's figure, less being better; infinite: it has none.
    """
    alike: dict[str, list[ShownRun]] = {}
    for run in runs:
        alike.setdefault(_meaning(run), []).append(run)
    names = {key: common_name(sorted(run.name for run in of)) for key, of in alike.items()}
    twice = Counter(names.values())
    names = {key: name if twice[name] == 1 else alike[key][0].name for key, name in names.items()}
    labels = _labels({key: (name, alike[key][0].keys) for key, name in names.items()})
    found = [
        Setting(names[key], labels[key], tuple(sorted(of, key=lambda run: (order(run), run.name))))
        for key, of in alike.items()
    ]
    return sorted(found, key=lambda setting: (fmean(map(order, setting.counted)), setting.name))


def varied_of(settings: Sequence[Setting]) -> list[Varied]:
    """Return what varies between settings of one label, in the order of a job; what varies together is one."""
    by_label: dict[str, list[dict[str, Any]]] = {}
    for setting in settings:
        by_label.setdefault(setting.label, []).append(setting.keys)
    richest = sorted(settings, key=lambda setting: -len(setting.keys))  # whose order is that of all
    names = list(dict.fromkeys(name for setting in richest for name in setting.keys))
    swept = [name for name in names if any(len({_json(k.get(name)) for k in of}) > 1 for of in by_label.values())]
    together: dict[tuple[int, ...], list[str]] = {}
    for name in swept:
        values = [_json(setting.keys.get(name)) for setting in settings]
        first = {value: values.index(value) for value in values}
        together.setdefault(tuple(first[value] for value in values), []).append(name)
    titles = _titles(swept)
    return [Varied(tuple(keys), _title([titles[key] for key in keys])) for keys in together.values()]


def common_name(names: Sequence[str]) -> str:
    """Return the parts that all names have in one place; of names without any the first, and how many more there are.

    >>> common_name(["mlp-lr_0.01-s_0", "mlp-lr_0.01-s_1"])
    'mlp-lr_0.01'
    """
    first = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    parts = [PARTS.split(name) for name in names]
    if len({len(each) for each in parts}) > 1:
        return first
    return "-".join(each[0] for each in zip(*parts, strict=True) if len(set(each)) == 1) or first


def written(value: Any) -> str:
    """Return a value of a job in as few letters as tell it from any other.

    >>> written(0.5), written(1e-5), written(0.0100000001)
    ('0.5', '1e-05', '0.0100000001')
    """
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return value if isinstance(value, str) else _json(value)


def _labels(named: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, str]:
    """Return the names without the parts that say what columns say, where settings stay apart all the same."""
    short = {key: _without_values(name) for key, (name, _) in named.items()}
    of: dict[str, list[str]] = {}
    for key, label in short.items():
        of.setdefault(label, []).append(key)
    for keys in of.values():
        # one of its kind needs its whole name; two that no column tells apart, too
        if len(keys) == 1 or len({_json(named[key][1]) for key in keys}) < len(keys):
            short |= {key: named[key][0] for key in keys}
    return short


def _without_values(name: str) -> str:
    parts = PARTS.split(name)
    while len(parts) > 1 and "_" in parts[-1]:
        parts.pop()
    return "-".join(parts)


def _titles(keys: Sequence[str]) -> dict[str, str]:
    """Return what a column calls each key: its last part, shortened if it is well known; the whole if two end alike."""
    ends = {key: key.rpartition(".")[2] for key in keys}
    twice = Counter(ends.values())
    return {key: SHORT.get(end, end) if twice[end] == 1 else key for key, end in ends.items()}


def _title(titles: Sequence[str]) -> str:
    """Return one title of keys that vary together.

    >>> _title(["labels.weight", "kd.weight"]), _title(["lr", "batch"])
    ('labels/kd weight', 'lr/batch')
    """
    parts = [title.rpartition(".") for title in titles]
    if len(titles) > 1 and all(first for first, _, _ in parts) and len({last for _, _, last in parts}) == 1:
        return f"{'/'.join(first for first, _, _ in parts)} {parts[0][2]}"
    return "/".join(titles)


def _meaning(run: ShownRun) -> str:
    """Return what a setting's students have in common: all but chance; of one of whom nothing is known, itself."""
    if not run.identity:
        return run.name
    same = dict(run.identity)
    for section, chance in (("student", "seed"), ("data", "order_seed")):
        part = same.get(section, {})
        if not isinstance(part, dict):
            return run.name
        same[section] = {name: value for name, value in part.items() if name != chance}
    return _json(same)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
