"""Units: trainees that take their steps together, by themselves or stacked, and how a fleet is put into units.

Stacked or one by one is decided by timing a few steps of both on blank rows, on copies of the students.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import torch

from student_train.blank import blank_batch
from student_train.devices import is_out_of_memory
from student_train.events import Report, StackingChosen
from student_train.needs import Batch
from student_train.recorder import WARM_STEPS
from student_train.single import Single
from student_train.stack.stack import Stack, stack_key
from student_train.tally import Tally
from student_train.trainee import Trainee

Stacking = Literal["auto", "always", "never"]

TRIED_SINGLES = 4  # students whose steps are timed one by one; the others of a group are alike
TRIED_STEPS = 3
TRIAL_S = 5.0  # after which no further step is tried: what takes so long is not decided by a few percent
CLEARLY_FASTER = 0.95  # of the time of one by one; a stack that gains less is not worth its memory


class Unit:
    """One or more trainees at the same step of their runs.

    Args:
        trainees: one, or those that are to be stacked.
        halved: whether it is what is left of a stack that ran out of memory.

    Attributes:
        stepper: what takes the steps.
        views: number of the first view of each batch that a step needs.
    """

    def __init__(self, trainees: Sequence[Trainee], *, halved: bool = False):
        self.trainees = list(trainees)
        self.halved = halved
        first = self.trainees[0]
        own = [trainee.options.first_view for trainee in self.trainees]
        self.views = sorted(set(own))
        learners = [trainee.learner for trainee in self.trainees]
        seen = [self.views.index(view) for view in own]
        self.stepper: Single | Stack = (
            Single(learners[0], first.run.parallel, recorded=first.run.recorded)
            if len(learners) == 1
            else Stack(learners, seen, recorded=first.run.recorded)
        )
        self._refusal_told = False
        self.tally = self._empty_tally()
        if all(trainee.tally for trainee in self.trainees):
            self.tally.restore([trainee.tally for trainee in self.trainees])
        self.batch_size = first.options.batch_size
        for trainee in self.trainees:
            trainee.stacked = len(self.trainees) > 1

    @property
    def epoch(self) -> int:
        """Return the epoch of the next step, from 0."""
        return self.trainees[0].epoch

    @property
    def step(self) -> int:
        """Return the next step within its epoch, from 0."""
        return self.trainees[0].step

    @property
    def name(self) -> str:
        """Return what it is called in messages."""
        first = self.trainees[0].name
        return first if len(self.trainees) == 1 else f"{first} and {len(self.trainees) - 1} like it"

    def take(self, batches: Sequence[Batch]) -> None:
        """Take a step on some rows, one batch for each of `views`."""
        rates = [trainee.rate for trainee in self.trainees]
        number = self.trainees[0].done_steps
        self.tally.add(self.stepper.step(batches, rates, number, measure_shares=self.step == 0))
        for trainee in self.trainees:
            trainee.step += 1

    def new_refusal(self) -> str | None:
        """Return why steps are not recorded although they were to be, once."""
        if self._refusal_told or self.stepper.refusal is None:
            return None
        self._refusal_told = True
        return self.stepper.refusal

    def checkpoint(self, *, every_student: bool) -> None:
        """Write the checkpoints if one is due, or in any case: all of a stack together, so that a kill parts nobody."""
        if not every_student and not any(trainee.due_for_checkpoint() for trainee in self.trainees):
            return
        stack = [trainee.name for trainee in self.trainees] if len(self.trainees) > 1 else []
        for place, trainee in enumerate(self.trainees):
            trainee.checkpoint(self.tally.state(place), stack)
        if stack:
            for trainee in self.trainees:
                trainee.commit_checkpoint()

    def synchronise(self) -> None:
        """Agree with the other processes on what they measure."""
        assert isinstance(self.stepper, Single)  # stacks are of one process
        self.stepper.synchronise()

    def begin_epoch(self) -> None:
        """Forget the losses of the epoch before."""
        self.tally = self._empty_tally()

    def split(self, groups: Sequence[Sequence[Trainee]], *, halved: bool = False) -> list[Unit]:
        """Return units of some of these trainees, each with its losses so far; this one is of no use then.

        A smaller stack is a copy; without memory for it each trainee is a unit by itself, in the memory that it has.
        """
        for place, trainee in enumerate(self.trainees):
            trainee.tally = self.tally.state(place) if self.step else {}
        self.stepper.release()
        made: list[Unit] = []
        try:
            for group in groups:
                made += [Unit(group, halved=halved)] if group else []
            return made
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        for unit in made:
            unit.stepper.release()
        return [Unit([trainee]) for group in groups for trainee in group]

    def _empty_tally(self) -> Tally:
        learner = self.trainees[0].learner
        return Tally(len(self.trainees), learner.objective.names, learner.student.device)


def arrange(trainees: Sequence[Trainee], stacking: Stacking, report: Report) -> list[Unit]:
    """Return the trainees in units: those that can be one program are stacked where that is faster, or asked for."""
    groups: dict[tuple[Any, ...], list[Trainee]] = defaultdict(list)
    for trainee in trainees:
        where = (trainee.epoch, trainee.step, trainee.stacked)
        groups[(trainee.name,) if stacking == "never" else (*stack_key(trainee.learner), where)].append(trainee)
    units = []
    for group in groups.values():
        stacked = len(group) > 1 and _decide(group, stacking, report)
        units += [Unit(group)] if stacked else [Unit([trainee]) for trainee in group]
    return units


def _decide(group: Sequence[Trainee], stacking: Stacking, report: Report) -> bool:
    """Return whether a group is to be stacked, and tell why."""
    names = tuple(trainee.name for trainee in group)
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


def _time_both(group: Sequence[Trainee]) -> tuple[float, float]:
    """Return the seconds of a step of all, one by one and stacked, medians of a few; on copies and blank rows."""
    run, learners = group[0].run, [trainee.learner for trainee in group]
    rows = min(run.options.batch_size, group[0].num_rows)
    batch = blank_batch(learners[0].student, run.spec, run.encodings, run.feature_shapes, rows)
    views = sorted({trainee.options.first_view for trainee in group})
    seen = [views.index(trainee.options.first_view) for trainee in group]
    stacked_s = _time_steps(
        [Stack([learner.copy() for learner in learners], seen, recorded=run.recorded)], [batch] * len(views)
    )
    singles = [Single(learner.copy(), recorded=run.recorded) for learner in learners[:TRIED_SINGLES]]
    return _time_steps(singles, [batch]) * len(group) / len(singles), stacked_s


def _time_steps(steppers: Sequence[Single | Stack], batches: Sequence[Batch]) -> float:
    """Return the seconds of a step of all of them, the median of a few; they are of no use then."""
    device = batches[0].inputs.device

    def timed() -> float:
        began = time.perf_counter()
        for stepper in steppers:
            stepper.step(batches, [0.0] * len(stepper.learners), 0, measure_shares=False)
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
