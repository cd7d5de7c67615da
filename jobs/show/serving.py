"""Which losses a teacher's encoding serves, in a line or two: what neither stage can say, for each knows its half."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pydantic import TypeAdapter

from storage.encodings import Encoding
from storage.errors import BadRequest
from student_train.losses import LOSSES
from student_train.options.terms import ObjectiveTerm, SoftTerm, VectorTerm
from student_train.tasks import TASKS

SHOWN = 4  # names of teachers in a line
ANY = 7.77  # a temperature that nobody declares: who serves it serves any
TERM: TypeAdapter[ObjectiveTerm] = TypeAdapter(ObjectiveTerm)


class Served(NamedTuple):
    """Losses on soft targets by name.

    Attributes:
        at: temperatures in words, and the losses that can be used there; "" for those that have none.
        never: those that cannot be used, as they are by default.
        unsaid: temperatures by default, and the losses that cannot be used there: a job is to say another.
    """

    at: dict[str, list[str]]
    never: list[str]
    unsaid: dict[float, list[str]]


def losses_served(encoding: Encoding, task: str, width: int | None = None) -> Served:
    """Return which losses on soft targets can learn from an encoding, and at which temperatures.

    Args:
        encoding: of the teacher.
        task: of the dataset, by name; some refuse losses that compare rows.
        width: numbers of an answer; of one alone no loss on directions makes anything. None: more.
    """
    at: dict[str, list[str]] = {}
    never, unsaid = [], dict[float, list[str]]()
    for name in LOSSES:
        term = _term(name)
        if term is None or isinstance(term, VectorTerm) == encoding.classes:
            continue
        pointless = width == 1 and LOSSES[name].by_direction(term)
        where = None if pointless or _refused(name, term, task) else _where(name, term, encoding)
        if where is None:
            never.append(name)
        else:
            at.setdefault(where, []).append(name)
            default = getattr(term, "temperature", None) or TASKS[task].temperature
            if where and not _serves(encoding, _term(name, temperature=default)):
                unsaid.setdefault(default, []).append(name)
    return Served(at, never, unsaid)


def served_lines(who: str | Sequence[str], encoding: Encoding, task: str, width: int | None = None) -> list[str]:
    """Return what an encoding serves: "big serves at T = 1: kd, jsd", and below it what it does not.

    Args:
        who: a teacher, or all that have this encoding.
        encoding, task, width: as `losses_served`.
    """
    names = [who] if isinstance(who, str) else [*who]
    several, shown = len(names) > 1, names[:SHOWN]
    rest = [f"{len(names) - SHOWN} more"] if names[SHOWN:] else []
    who = _told([*shown, *rest])
    if not encoding.soft:
        has, it = ("have", "they serve") if several else ("has", "it serves")
        return [f"{who} {has} features alone: {it} losses on features, and none on soft targets"]
    served = losses_served(encoding, task, width)
    parts = [
        f"{f'at {where}: ' if where else 'of no temperature: ' * (len(served.at) > 1)}{', '.join(names)}"
        for where, names in sorted(served.at.items(), reverse=True)
    ]
    return [
        f"{who} serve{'s' * (not several)} {'; '.join(parts)}",
        *[f"  not: {', '.join(served.never)}"] * bool(served.never),
        *(
            f"  say their temperature: {', '.join(names)}, which a job that leaves it out means at {default:g}"
            for default, names in served.unsaid.items()
        ),
    ]


def _term(name: str, **options: float) -> SoftTerm | VectorTerm | None:
    """Return a term on soft targets as a job gives it; None of a loss that has none."""
    try:
        term = TERM.validate_python({"loss": name, "teacher": "t"} | options)
    except ValueError:  # labels, and features, which are named
        return None
    return term if isinstance(term, SoftTerm | VectorTerm) else None


def _refused(name: str, term: SoftTerm | VectorTerm, task: str) -> bool:
    """Return whether a task has no such loss: one that compares rows, where a part of them is computed at a time."""
    if not LOSSES[name].couples_rows(term):
        return False
    try:
        TASKS[task].refuse_coupling("s", "d", [name])
    except BadRequest:
        return True
    return False


def _where(name: str, term: SoftTerm | VectorTerm, encoding: Encoding) -> str | None:
    """Return at which temperatures a loss can be used, in words; None: at none."""
    if (
        isinstance(term, VectorTerm) or "temperature" not in type(term).model_fields
    ):  # of infonce it is the student's alone
        return "" if _serves(encoding, term) else None
    if _serves(encoding, _term(name, temperature=ANY)):
        return "any T"
    declared = sorted({*encoding.temperatures, *encoding.standardised_temperatures})
    found = [each for each in declared if _serves(encoding, _term(name, temperature=each))]
    return f"T = {_listed(found)}" if found else None


def _serves(encoding: Encoding, term: SoftTerm | VectorTerm | None) -> bool:
    """Return whether an encoding has all that a term needs of soft targets."""
    return term is not None and not any(encoding.lacks(each.capability) for each in LOSSES[term.loss].needs(term).soft)


def _listed(values: Iterable[float]) -> str:
    return _told([f"{value:g}" for value in values])


def _told(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
