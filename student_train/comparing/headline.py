"""What a sweep has shown, in a few sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from storage.tasks import TASKS
from student_train.comparing.compared import Compared
from student_train.comparing.figures import NONE, lasting, short
from student_train.comparing.noise import Difference
from student_train.comparing.settings import Setting


def headline(found: Compared) -> list[str]:
    """Return which setting is best and by how much, against the next, the teacher, and labels alone."""
    best = found.best
    if best is None:
        return []
    gain, count = found.gain, len(best.values(found.gain.column))
    of = f" (mean of {count} seeds{gain.deviation_text(best.deviation(gain.column))})" if count > 1 else ""
    among = f"best of {len(found.settings)} settings: " if len(found.settings) > 1 else ""
    figure = f"{gain.name} {gain.text(best.mean(gain.column))}{of}"
    return [f"{among}{named(best, found)}: {figure}", *_not_held(found), *_beside(found, best), *_alone(found)]


def named(setting: Setting, found: Compared) -> str:
    """Return a setting's name and what varies of it: "mlp, lr 0.01, T 4"."""
    values = [(each.title, each.text(setting)) for each in found.varied] if setting.label != setting.name else []
    return ", ".join([setting.label, *(f"{title} {text}" for title, text in values if text is not None)])


def _not_held(found: Compared) -> list[str]:
    runs = [run for setting in found.settings for run in setting.runs]
    trained = [run.name for run in runs if run.measures_trained_rows]
    of = "all" if len(trained) == len(runs) else ", ".join(trained[:3] + ["…"] * (len(trained) > 3))
    return [f"warning: measured on rows that they were trained on, which are not held: {of}"] * bool(trained)


def _alone(found: Compared) -> list[str]:
    return [
        f"students of teachers {', '.join(names)} are compared with {teacher} alone, not with the others"
        for names, teacher in found.alone.items()
    ]


def _beside(found: Compared, best: Setting) -> Iterator[str]:
    """Yield how far the best is from the next, from each teacher, and from labels alone; or why that is unknown."""
    rest = [setting for setting in found.settings if setting.name in found.behind]
    if rest:
        alike = [setting for setting in rest if not found.behind[setting.name].is_told]
        more = "" if len(rest) < 2 else f"; {_told_apart(len(alike), len(rest))}"
        who = "next, on labels alone" if rest[0] is found.labels_alone else "next"
        yield f"{who}: {named(rest[0], found)}, {behind(found.behind[rest[0].name], found)}{more}"
    for teacher in found.teachers:
        figure = teacher.figures.get(found.gain.column)
        if figure is not None:
            beside = "" if teacher.behind is None else f", {behind(teacher.behind, found)}"
            yield f"teacher {teacher.name}: {found.gain.text(figure)}{beside}"
    alone, taught = found.labels_alone, found.taught
    if alone is None and not TASKS[found.task].has_classes:
        return  # of vectors there is no label to learn from
    if alone is None:
        yield "labels alone: no such student was trained, so that what the teacher adds is unknown"
    elif alone is not best and alone.name in found.behind and alone is not rest[0]:
        yield f"labels alone: {named(alone, found)}, {behind(found.behind[alone.name], found)}"
    elif alone is best and taught is not None and taught.name in found.behind:
        yield f"the best was trained on labels alone; with a teacher: {named(taught, found)}, " + behind(
            found.behind[taught.name], found
        )


def _told_apart(alike: int, others: int) -> str:
    """Return how many others can be told from the best.

    >>> _told_apart(0, 2), _told_apart(3, 3)
    ('all 2 others are told from the best', 'none of the 3 others is told from the best')
    """
    if alike == 0:
        return f"all {others} others are told from the best"
    if alike == others:
        return f"none of the {others} others is told from the best"
    return f"{alike} of {others} others {'is' if alike == 1 else 'are'} not told from the best"


def behind(less: Difference, found: Compared) -> str:
    """Return by how much one is behind the best, and whether that is told: "1.30 ± 0.41 points behind"."""
    gain = found.gain
    known = f"{gain.number(abs(less.mean))} ± {gain.number(less.half)}" if less.half is not None else None
    if known is None:
        return f"{gain.number(abs(less.mean))} {gain.points} {'ahead' if less.mean < 0 else 'behind'}"
    where = f"{gain.points} {'ahead' if less.mean < 0 else 'behind'}"
    return f"{known} {where}" + ("" if less.is_told else ", not told apart")


def alike(found: Compared) -> dict[str, str]:
    """Return what all settings cost alike, in words, by the name of the figure; of one setting nothing."""
    words: dict[str, tuple[str, Callable[[float | None], str], Callable[[Setting], float | None]]] = {
        "parameters": ("{} parameters", short, lambda setting: setting.mean("parameters")),
        "epochs": ("epochs: {}", short, lambda setting: setting.trained("epochs")),
        "steps": ("steps: {}", short, lambda setting: setting.trained("steps")),
        "seconds": ("a pass of {}, which all its students share", lasting, lambda setting: setting.mean("seconds")),
    }
    told = {}
    for name, (text, spelled, cost) in words.items():
        values = {spelled(cost(setting)) for setting in found.settings}
        if len(found.settings) > 1 and len(values) == 1 and values != {NONE}:
            told[name] = text.format(*values)
    return told
