"""A class has a name wherever it goes: a teacher's scores against a dataset's classes, by name, never by place."""

from __future__ import annotations

from collections.abc import Sequence

from storage.errors import BadRequest
from storage.format.specs import DatasetSpec
from teacher_cache.teachers.kinds import KINDS
from teacher_cache.teachers.options import TeacherOptions

SHOWN = 12  # names, in a message


def check_classes(teacher: TeacherOptions, dataset: DatasetSpec) -> None:
    """Check that a teacher which names its classes has those of a dataset, in any order (invariant 13).

    Of one that is asked for features alone, nobody hears the scores.

    Raises:
        BadRequest: it has others; both lists are shown.
    """
    if not teacher.encoding.soft:
        return
    names = KINDS[teacher.origin].classes(teacher)
    for whose, given in (("teacher " + teacher.name, names or []), ("dataset " + dataset.name, dataset.classes)):
        check_distinct(whose, given)
    if names is None or not dataset.classes or sorted(names) == sorted(dataset.classes):
        return
    unknown, missing = _less(names, dataset.classes), _less(dataset.classes, names)
    raise BadRequest(
        f"teacher {teacher.name} scores other classes than dataset {dataset.name} has",
        found=listed(names) + (f"  (unknown: {listed(unknown)})" if unknown else ""),
        expected=listed(dataset.classes) + (f"  (missing: {listed(missing)})" if missing else ""),
        do="give the dataset's `classes` by the teacher's names; or keep the teacher off it with `datasets = [...]`",
    )


def check_distinct(whose: str, names: Sequence[str]) -> None:
    """Raise BadRequest if two classes have one name: nothing could tell them apart."""
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise BadRequest(
            f"two classes of {whose} have one name",
            found=listed(twice),
            expected="a name of its own for each class",
            do="name them apart, such as crane (bird) and crane (machine)",
        )


def order_of(names: Sequence[str] | None, classes: Sequence[str]) -> list[int] | None:
    """Return which of a teacher's scores is of each of a dataset's classes; None where they are in that order already.

    >>> order_of(["ship", "cat", "dog"], ["cat", "dog", "ship"])
    [1, 2, 0]
    >>> order_of(["cat", "dog"], ["cat", "dog"]) is None, order_of(None, ["cat", "dog"]) is None
    (True, True)
    """
    if names is None or not classes or list(names) == list(classes):
        return None
    places = {name: place for place, name in enumerate(names)}
    return [places[name] for name in classes]


def listed(names: Sequence[str]) -> str:
    """Return names as a message shows them: the first, and how many more."""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _less(names: Sequence[str], others: Sequence[str]) -> list[str]:
    there = set(others)
    return [name for name in names if name not in there]
