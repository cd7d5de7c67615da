"""Units: runs that take their steps together, by themselves or stacked, and how a fleet is put into teams.

Stacked or one by one is decided by timing a few steps of both on blank rows, on copies of the students.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import torch

from student_train.devices import is_out_of_memory
from student_train.feed.batches import Batch
from student_train.preparing.blank import blank_batch
from student_train.running.events import Report, StackingChosen
from student_train.running.run import Run
from student_train.stepping.alone import Alone
from student_train.stepping.recorder import WARM_STEPS
from student_train.stepping.stack.stack import Stack, stack_key
from student_train.stepping.tally import Tally

Stacking = Literal["auto", "always", "never"]

TRIED_SINGLES = 4  # students whose steps are timed one by one; the others of a group are alike
TRIED_STEPS = 3
TRIAL_S = 5.0  # after which no further step is tried: what takes so long is not decided by a few percent
CLEARLY_FASTER = 0.95  # of the time of one by one; a stack that gains less is not worth its memory


class Team:
    """One or more runs at the same step of their runs.

    Args:
        runs: one, or those that are to be stacked.
        halved: whether it is what is left of a stack that ran out of memory.

    Attributes:
        stepper: what takes the steps.
        views: number of the first view of each batch that a step needs.
    """

    def __init__(self, runs: Sequence[Run], *, halved: bool = False):
        self.runs = list(runs)
        self.halved = halved
        first = self.runs[0]
        own = [run.options.first_view for run in self.runs]
        self.views = sorted(set(own))
        states = [run.state for run in self.runs]
        seen = [self.views.index(view) for view in own]
        self.stepper: Alone | Stack = (
            Alone(states[0], first.context.parallel, recorded=first.context.recorded)
            if len(states) == 1
            else Stack(states, seen, recorded=first.context.recorded)
        )
        self._refusal_told = False
        self.tally = self._empty_tally()
        if all(run.tally for run in self.runs):
            self.tally.restore([run.tally for run in self.runs])
        self.batch_size = first.options.batch_size
        for run in self.runs:
            run.stacked = len(self.runs) > 1

    @property
    def epoch(self) -> int:
        """Return the epoch of the next step, from 0."""
        return self.runs[0].epoch

    @property
    def step(self) -> int:
        """Return the next step within its epoch, from 0."""
        return self.runs[0].step

    @property
    def name(self) -> str:
        """Return what it is called in messages."""
        first = self.runs[0].name
        return first if len(self.runs) == 1 else f"{first} and {len(self.runs) - 1} like it"

    def take(self, batches: Sequence[Batch]) -> None:
        """Take a step on some rows, one batch for each of `views`."""
        rates = [run.rate for run in self.runs]
        number = self.runs[0].done_steps
        self.tally.add(self.stepper.step(batches, rates, number, measure_shares=self.step == 0))
        for run in self.runs:
            run.step += 1

    def new_refusal(self) -> str | None:
        """Return why steps are not recorded although they were to be, once."""
        if self._refusal_told or self.stepper.refusal is None:
            return None
        self._refusal_told = True
        return self.stepper.refusal

    def checkpoint(self, *, every_student: bool) -> None:
        """Write the checkpoints if one is due, or in any case: all of a stack together, so that a kill parts nobody."""
        if not every_student and not any(run.due_for_checkpoint() for run in self.runs):
            return
        stack = [run.name for run in self.runs] if len(self.runs) > 1 else []
        for place, run in enumerate(self.runs):
            run.checkpoint(self.tally.state(place), stack)
        if stack:
            for run in self.runs:
                run.commit_checkpoint()

    def synchronise(self) -> None:
        """Agree with the other processes on what they measure."""
        assert isinstance(self.stepper, Alone)  # stacks are of one process
        self.stepper.synchronise()

    def begin_epoch(self) -> None:
        """Forget the losses of the epoch before."""
        self.tally = self._empty_tally()

    def split(self, groups: Sequence[Sequence[Run]], *, halved: bool = False) -> list[Team]:
        """Return teams of some of these runs, each with its losses so far; this one is of no use then.

        A smaller stack is a copy; without memory for it each run is a team by itself, in the memory that it has.
        """
        for place, run in enumerate(self.runs):
            run.tally = self.tally.state(place) if self.step else {}
        self.stepper.release()
        made: list[Team] = []
        try:
            for group in groups:
                made += [Team(group, halved=halved)] if group else []
            return made
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        for team in made:
            team.stepper.release()
        return [Team([run]) for group in groups for run in group]

    def _empty_tally(self) -> Tally:
        state = self.runs[0].state
        return Tally(len(self.runs), state.objective.names, state.student.device)


def arrange(runs: Sequence[Run], stacking: Stacking, report: Report) -> list[Team]:
    """Return the runs in teams: those that can be one program are stacked where that is faster, or asked for."""
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        where = (run.epoch, run.step, run.stacked)
        groups[(run.name,) if stacking == "never" else (*stack_key(run.state), where)].append(run)
    teams = []
    for group in groups.values():
        stacked = len(group) > 1 and _decide(group, stacking, report)
        teams += [Team(group)] if stacked else [Team([run]) for run in group]
    return teams


def _decide(group: Sequence[Run], stacking: Stacking, report: Report) -> bool:
    """Return whether a group is to be stacked, and tell why."""
    names = tuple(run.name for run in group)
    if group[0].stacked is not None:
        report(StackingChosen(names, group[0].stacked, "as they were when they stopped"))
        return group[0].stacked
    try:
        one_by_one_s, stacked_s = _time_both(group)
    except Exception as error:  # dropout, a user's own model, memory: by itself each student still has its chance
        first_line = (str(error).splitlines() or ["no reason given"])[0]
        report(StackingChosen(names, False, f"they cannot be one program: {first_line} ({type(error).__name__})"))
        return False
    figures = f"a step of all takes {1e3 * stacked_s:.3g} ms stacked, {1e3 * one_by_one_s:.3g} ms one by one"
    stacked = stacking == "always" or stacked_s < CLEARLY_FASTER * one_by_one_s
    report(StackingChosen(names, stacked, figures if stacking == "auto" else f"the job says so; {figures}"))
    return stacked


def _time_both(group: Sequence[Run]) -> tuple[float, float]:
    """Return the seconds of a step of all, one by one and stacked, medians of a few; on copies and blank rows."""
    first, states = group[0], [run.state for run in group]
    batch = blank_batch(states[0].student, first.prepared)
    views = sorted({run.options.first_view for run in group})
    seen = [views.index(run.options.first_view) for run in group]
    stacked_s = _time_steps(
        [Stack([state.copy() for state in states], seen, recorded=first.context.recorded)], [batch] * len(views)
    )
    singles = [Alone(state.copy(), recorded=first.context.recorded) for state in states[:TRIED_SINGLES]]
    return _time_steps(singles, [batch]) * len(group) / len(singles), stacked_s


def _time_steps(steppers: Sequence[Alone | Stack], batches: Sequence[Batch]) -> float:
    """Return the seconds of a step of all of them, the median of a few; they are of no use then."""
    device = batches[0].inputs.device

    def timed() -> float:
        began = time.perf_counter()
        for stepper in steppers:
            stepper.step(batches, [0.0] * len(stepper.states), 0, measure_shares=False)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    for _ in range(WARM_STEPS + 1 if device.type == "cuda" else 1):  # compiles kernels, fills caches, and records
        timed()
    found = [timed()]
    while len(found) < TRIED_STEPS and sum(found) < TRIAL_S:
        found.append(timed())
    for stepper in steppers:
        stepper.release()
    return statistics.median(found)
