"""What a target asks for: a share of the teacher's operations, parameters, or measured time; and which share is met."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Literal, NamedTuple

from storage.errors import BadRequest

if TYPE_CHECKING:
    from student_train.students import Change, Student

Measure = Literal["flops", "parameters", "latency"]
UNITS: dict[Measure, str] = {"flops": "FLOPs of a row", "parameters": "parameters", "latency": "ms for one row"}
LATENCY_REPEATS = 15
TRIES = 24  # of a share, halving what is left between two: far finer than a unit


class Target(NamedTuple):
    """How large a student is to be, as a share of its teacher."""

    measure: Measure
    share: float


def measured(student: Student, measure: Measure) -> float:
    """Return how large a student is, by one measure."""
    from student_train.students import size_of_student

    if measure == "latency":
        return latency_ms(student)
    return float(size_of_student(student)._asdict()[measure])


def size_like(student: Student, changes: Sequence[Change], measure: Measure) -> float:
    """Return how large a student would be with further changes, without memory where its network runs so."""
    import torch

    changed = changed_copy(student, changes, "cpu" if measure == "latency" else "meta")
    try:
        return measured(changed, measure)
    except (NotImplementedError, RuntimeError):
        if next(changed.parameters()).device != torch.device("meta"):
            raise
        return measured(changed_copy(student, changes, "cpu"), measure)


def changed_copy(student: Student, changes: Sequence[Change], device: str) -> Student:
    """Return a student with further changes, whose changed layers have fresh weights."""
    from student_train.students import moved, rebuild

    changed = moved(copy.deepcopy(student), device)
    changed.network = rebuild(changed.network, changes)
    return changed.eval()


def latency_ms(student: Student) -> float:
    """Return the median time of a pass over one row, in milliseconds, on this machine's processor."""
    import torch

    times = []
    with torch.inference_mode():
        inputs = student.blank(1, student.blueprint.input_shape)
        for _ in range(LATENCY_REPEATS + 2):
            started = time.perf_counter()
            student(inputs)
            times.append(time.perf_counter() - started)
    return 1e3 * median(times[2:])


def largest_share(size_at: Callable[[float], float], target: Target, whole: float, smallest: float) -> float:
    """Return the largest share of units at which a student is as small as its target.

    Args:
        size_at: how large it is with this share of its units, from 0 to 1; rising.
        target: of the size.
        whole: size of the teacher.
        smallest: size at share 0.

    Raises:
        BadRequest: even the smallest is larger.

    >>> round(largest_share(lambda share: 100 * share**2, Target("flops", 0.25), 100, 0), 3)
    0.5
    """
    wanted = target.share * whole
    if smallest > wanted:
        raise BadRequest(
            f"a student of {target.share:g} of its teacher's {target.measure} cannot be made so",
            found=f"{_told(smallest)} {UNITS[target.measure]} with one unit left in every layer, "
            f"{smallest / whole:.3g} of the teacher's",
            expected=f"{_told(wanted)} or less",
            do=f"--{target.measure} {min(1.0, 1.05 * smallest / whole):.2g} or more; or another way",
        )
    low, high = 0.0, 1.0
    for _ in range(TRIES):
        middle = (low + high) / 2
        low, high = (middle, high) if size_at(middle) <= wanted else (low, middle)
    return low


def _told(size: float) -> str:
    return f"{size:,.0f}" if size >= 100 else f"{size:.3g}"  # of ms parts too
