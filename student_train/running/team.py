"""A team: runs that take their steps together, by themselves or stacked."""

from __future__ import annotations

from collections.abc import Sequence

from storage.errors import is_out_of_memory
from student_train.feed.batches import Batch
from student_train.running.run import Run
from student_train.stepping.alone import Alone
from student_train.stepping.stack.stack import Stack
from student_train.stepping.stepper import Stepper
from student_train.stepping.tally import Tally


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
        self.stepper: Stepper = (
            Alone(states[0], first.context.parallel, recorded=first.context.recorded)
            if len(states) == 1
            else Stack(states, seen, recorded=first.context.recorded)
        )
        self._refusal_told = False
        self.tally = self._empty_tally()
        if all(run.tally for run in self.runs):
            self.tally.restore([run.tally for run in self.runs])
        self.batch_size = first.options.batch_size
        self.rows_at_once = first.options.rows_at_once
        for run in self.runs:
            run.step_with([each.name for each in self.runs])

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
        # shares once an epoch: they take a backward pass for each term
        self.tally.add(self.stepper.step(batches, rates, number, measure_shares=self.step == 0))
        for run in self.runs:
            run.step += 1

    def new_refusal(self) -> str | None:
        """Return why steps are not recorded although they were to be, once."""
        if self._refusal_told or self.stepper.refusal is None:
            return None
        self._refusal_told = True
        for run in self.runs:
            run.recorded = False
        return self.stepper.refusal

    def checkpoint(self, *, every_student: bool) -> None:
        """Write the checkpoints if one is due, or in any case: all of a stack together, so that a kill parts nobody."""
        if not every_student and not any(run.due_for_checkpoint() for run in self.runs):
            return
        stack = [run.name for run in self.runs] if len(self.runs) > 1 else []
        for place, run in enumerate(self.runs):
            run.checkpoint(self.tally.state(place), stack)
        # only once all are staged
        if stack:
            for run in self.runs:
                run.commit_checkpoint()

    def begin_row(self, measured: Sequence[bool], *, whole_epoch: bool) -> None:
        """Forget the losses of runs that were measured just now; of a whole epoch those of its steps too."""
        if whole_epoch:
            self.tally = self._empty_tally()
            return
        for place in [place for place, was in enumerate(measured) if was]:
            self.tally.begin_row(place)

    def split(self, parts: Sequence[Sequence[Run]], *, halved: bool = False) -> list[Team]:
        """Return teams of some of these runs, each with its losses so far; this one is of no use then.

        A smaller stack is a copy; without memory for it each run is a team by itself, in the memory that it has.
        """
        for place, run in enumerate(self.runs):
            run.tally = self.tally.state(place) if self.step else {}  # between epochs there is nothing to take along
        self.stepper.release()
        made: list[Team] = []
        try:
            for part in parts:
                made += [Team(part, halved=halved)] if part else []
            return made
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        for team in made:
            team.stepper.release()
        return [Team([run]) for part in parts for run in part]

    def _empty_tally(self) -> Tally:
        state = self.runs[0].state
        return Tally(len(self.runs), state.objective.names, state.student.device)
