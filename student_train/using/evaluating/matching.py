"""Classes of data and of a student, matched by their names and never by their positions (invariant 13)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from storage.errors import BadRequest
from student_train.feed.selection import NO_CLASS

SHOWN = 8  # names in a message


@dataclass(frozen=True)
class Matched:
    """How the classes of data are called by a student.

    Attributes:
        numbers: of each class of the data, the student's number of it; NO_CLASS: it has none.
        notes: in what the two differ, a sentence each.
    """

    numbers: tuple[int, ...]
    notes: tuple[str, ...]

    def labels(self, labels: Tensor) -> Tensor:
        """Return labels of the data as the student counts; NO_CLASS stays, and is of what it does not know."""
        if not self.numbers:
            return labels
        table = torch.tensor([*self.numbers, NO_CLASS])  # the last is where NO_CLASS, −1, leads
        return table[labels]


def match_classes(data: Sequence[str], student: Sequence[str], where: str, *, only_known: bool) -> Matched:
    """Return how two lists of names fit.

    Args:
        data: names of the data's classes.
        student: those of the student.
        where: what the data are called.
        only_known: whether rows of classes that the student does not know are to be left out.

    Raises:
        BadRequest: the data have classes that the student does not know, and rows of them are not to be left out; or
            it knows none; or nobody knows what the classes of one of the two are called.

    >>> match_classes(["dog", "cat"], ["cat", "dog", "fox"], "pets", only_known=False)
    Matched(numbers=(1, 0), notes=('pets has no fox, which the student knows',))
    """
    if list(data) == list(student):
        return Matched(tuple(range(len(data))), ())
    if not student or not data:
        raise BadRequest(
            f"classes of {where} and of the student cannot be matched by name",
            found=f"the student has {'no names of them' if not student else told(student)}, {where} "
            f"{'has none' if not data else 'has ' + told(data)}",
            expected="names on both sides: positions say nothing",
            do="train it again: a student that is trained now keeps its classes" if not student else None,
        )
    number = {name: place for place, name in enumerate(student)}
    strange = [name for name in data if name not in number]
    missing = [name for name in student if name not in set(data)]
    if strange and (len(strange) == len(data) or not only_known):
        none = len(strange) == len(data)
        raise BadRequest(
            f"the student knows {'no class' if none else 'not every class'} of {where}",
            found=f"{told(strange)}, which it does not know",
            expected=told(student),
            do=None if none else "rename them; or --only-known, which leaves their rows out",
        )
    notes = [f"left out: rows of {told(strange)}, which the student does not know"] if strange else []
    notes += [f"{where} has no {told(missing)}, which the student knows"] if missing else []
    return Matched(tuple(number.get(name, NO_CLASS) for name in data), tuple(notes))


def told(names: Sequence[str]) -> str:
    """Return names as a part of a sentence.

    >>> told(["ant"] * 10)
    'ant, ant, ant, ant, ant, ant, ant, ant and 2 more'
    """
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
