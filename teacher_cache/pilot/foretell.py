"""How long a pilot of a teacher will take, from a small part of it: told before the rest is done.

A few rows are asked about, over and over, as all will be; and one encoding of each sort is measured on the answers,
until either has taken long enough to go by.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import cycle, islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from storage.encodings import AnyEncoding, SparseEncoding
from storage.errors import MissingSource, duration
from storage.tasks import task_of
from teacher_cache.building.prepared import Stage
from teacher_cache.pilot.answers import ask_rows, joined, shares_of
from teacher_cache.pilot.cost import cost_of
from teacher_cache.pilot.ladder import ladder
from teacher_cache.pilot.rows import SpreadRows, choose_sites, read_spread, rows_wanted, runs_of, sites_per_row
from teacher_cache.teachers.model import Teacher
from teacher_cache.teachers.options import TeacherOptions

if TYPE_CHECKING:
    from teacher_cache.pilot.fidelity import PilotAnswers

Result = TypeVar("Result")
FEW_SITES, FEW_ROWS, FEW_RUNS = 64, 16, 8
ENOUGH_S = 0.5  # of more things than one, to tell what each takes
TIMES, LONG_S = 3, 0.5  # what takes longer is measured once


class Foretold(NamedTuple):
    """Seconds that a pilot of one teacher will take.

    Attributes:
        ask_s: of reading rows, and of the teacher.
        encode_s: of all encodings: storing, reading, and how near they come.
        sites: that the teacher answers, what they are called, and how many encodings there are.
    """

    ask_s: float
    encode_s: float
    sites: tuple[int, str, int]

    @property
    def total_s(self) -> float:
        return self.ask_s + self.encode_s

    def __str__(self) -> str:
        count, unit, encodings = self.sites
        return (
            f"about {duration(self.total_s)}: {duration(self.ask_s)} to ask it about {count:,} {unit}s, "
            f"{duration(self.encode_s)} for {encodings} encodings"
        )


def foretell(teacher: Teacher, options: TeacherOptions, stages: Sequence[Stage], wanted: int) -> Foretold:
    """Return how long `ask` and `cost_of` of every encoding will take. Raises as `ask`."""
    import torch

    shares = shares_of(stages, wanted)
    stage, _ = shares[0]
    few = read_spread(stage, FEW_SITES)
    task = task_of(stage.dataset.spec)
    asked: list[PilotAnswers] = []

    def ask_s(count: int) -> float:
        rows = SpreadRows(*(values[torch.arange(count) % len(values)] for values in few))
        chosen_N = choose_sites(task, rows.labels, max(FEW_SITES, wanted * count // all_rows))
        seconds, parts = _timed(lambda: ask_rows(teacher, options, stage, rows, chosen_N))
        asked[:] = [part.answers for part in parts]
        return seconds

    rows_of_each = [rows_wanted(of, share) for of, share in shares]
    all_rows = sum(rows_of_each)
    asking_s = _extrapolated(ask_s, all_rows, FEW_ROWS)
    read_s = sum(reading_s(of, share) for of, share in shares)
    answers = joined(asked)
    tried = ladder(answers.num_classes, options.encoding)
    sites = sum(count * sites_per_row(of.dataset) for (of, _), count in zip(shares, rows_of_each, strict=True))
    encode_s = _encodings_s(answers, tried, sum(share for _, share in shares))
    return Foretold(read_s + asking_s, encode_s, (sites, task.site_name, len(tried)))


def reading_s(stage: Stage, wanted: int) -> float:
    """Return the seconds of reading about `wanted` sites: by runs of neighbouring rows, which are what takes long.

    Others each time, as long as there are any: what was read before may come from memory.
    """
    runs = runs_of(stage, wanted)
    next_run = cycle(runs)

    def read_s(count: int) -> float:
        some = sorted(islice(next_run, count))

        def read() -> None:
            with suppress(MissingSource):  # of so few rows perhaps none can be read
                read_spread(stage, wanted, some)

        return _timed(read)[0]

    return _extrapolated(read_s, len(runs), FEW_RUNS)


def _encodings_s(answers: PilotAnswers, tried: Sequence[AnyEncoding], sites: int) -> float:
    """Return the seconds that all encodings will take of so many sites."""
    total = 0.0
    for sort, count in Counter(map(_sort, tried)).items():
        encoding = next(each for each in tried if _sort(each) == sort)

        def cost_s(sites: int, encoding: AnyEncoding = encoding) -> float:
            return _timed(partial(cost_of, answers.repeated(sites), encoding, 1.0))[0]

        total += count * _extrapolated(cost_s, sites, FEW_SITES)
    return total


def _extrapolated(seconds_of: Callable[[int], float], total: int, few: int) -> float:
    """Return the seconds of `total` things: what one takes, and what it takes more of enough others to be clear."""
    seconds_of(1)  # what is set up once, in a process, is no part of it
    one_s, count = _quickest(partial(seconds_of, 1)), min(total, few, max(2, total // 8))
    while (more_s := _quickest(partial(seconds_of, count)) - one_s) < max(ENOUGH_S, 2 * one_s) and count < total:
        count = min(total, 4 * count)
    return one_s + max(0.0, more_s) * (total - 1) / max(1, count - 1)


def _quickest(seconds: Callable[[], float]) -> float:
    """Return the least of what is measured: what others do on the machine only adds, and to little it may add much."""
    found = [seconds()]
    while len(found) < TIMES and found[0] < LONG_S:
        found.append(seconds())
    return min(found)


def _sort(encoding: AnyEncoding) -> tuple[str, bool]:
    """Return what decides, more than all else, how long an encoding takes: draws are compared many times."""
    return encoding.kind, isinstance(encoding, SparseEncoding) and encoding.n > 0


def _timed(work: Callable[[], Result]) -> tuple[float, Result]:
    began = time.monotonic()
    result = work()
    return time.monotonic() - began, result
