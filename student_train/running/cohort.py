"""A cohort: the runs of one pass, in teams; who joins a step, who leaves, and what is told and written of them."""

from __future__ import annotations

import contextlib
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from typing import TypeVar

import torch

from storage.errors import Interrupted, StillroomError, StorageFailure, is_out_of_memory
from student_train.feed.batches import Batch
from student_train.feed.feed import Feed
from student_train.run_files.records import RunRecord
from student_train.running.events import (
    PassStarted,
    Progress,
    Report,
    StackTakenApart,
    StepsNotRecorded,
    StudentFailed,
    StudentFinished,
    StudentStopped,
)
from student_train.running.halving import Halving
from student_train.running.measuring.latency import Latency, measure_latency
from student_train.running.measuring.predictions import Respondent, ask_students
from student_train.running.run import Run
from student_train.running.team import Team
from student_train.stepping.recorder import forget_recordings

Result = TypeVar("Result")
REPORT_EVERY_S = 1.0  # each report reads the losses, which waits for the device


@dataclass
class Outcome:
    """What became of students, by name: records of those that are done, errors of those that failed."""

    records: dict[str, RunRecord] = field(default_factory=dict)
    errors: dict[str, StillroomError] = field(default_factory=dict)


class Cohort:
    """The students of one pass.

    Args:
        teams: that they are in.
        held: rows that a student who is done is asked about.
        report: told of what happens.
        stop: asked while it is.
    """

    def __init__(self, teams: Sequence[Team], held: Feed, report: Report, stop: Callable[[], bool]):
        self.teams = list(teams)
        self.outcome = Outcome()
        self._held = held
        self._latencies: dict[str, Latency] = {}  # by what a student is: those that are alike are as fast
        self._report = report
        self._parallel = self.teams[0].runs[0].context.parallel
        # Where several processes agree on when to stop, the one that asks students must not wait for the others.
        self._stop = stop if self._parallel.size == 1 else lambda: False
        everyone = [run for team in self.teams for run in team.runs]
        self._name = everyone[0].name if len(everyone) == 1 else f"{len(everyone)} students"
        self._epochs = max(run.prepared.total_epochs for run in everyone)
        self._total_steps = sum(run.total_steps for run in everyone)
        self._most_steps = max(run.total_steps for run in everyone)
        self._by_steps = all(run.options.epochs is None for run in everyone)
        self._gone_steps = 0  # of students that left: none of theirs is to come
        self._reported_at, self._rows = time.monotonic(), 0

    def begin(self) -> None:
        """Tell that the pass begins."""
        self._report(PassStarted(self._name, self._total_steps, self._done_steps(), self._by_steps))

    def at(self, epoch: int, step: int, batch_size: int) -> list[Team]:
        """Return the teams whose next step this is."""
        return [team for team in self.teams if (team.epoch, team.step, team.batch_size) == (epoch, step, batch_size)]

    def take(self, team: Team, batches: Sequence[Batch]) -> None:
        """Let a team take a step. What fails tries the same rows again, without recordings, or as parts of a stack."""
        try:
            team.take(batches)
            # a row counts for each student that steps on it
            self._rows += len(batches[0].inputs) * len(team.runs)
            if (why := team.new_refusal()) is not None:
                self._report(StepsNotRecorded(team.name, why))
            return
        except (Interrupted, StorageFailure):
            raise
        except Exception as error:  # a user's own model, or memory
            if self._parallel.size > 1:
                raise  # the other processes wait for this one: only the end of all helps
            failure, no_memory = own_failure(team.name, error), is_out_of_memory(error)
        # Outside of the block, whose traceback keeps the step's tensors alive.
        if no_memory and forget_recordings():  # theirs may be what is missing
            torch.cuda.empty_cache()  # torch would keep it
            self.take(team, batches)
            return
        if len(team.runs) == 1:
            self.fail(team.runs[0], failure)
            return
        parts = _parts(team, no_memory)
        self._report(StackTakenApart(team.name, len(parts), failure.found or failure.what))
        place = self.teams.index(team)
        self.teams[place : place + 1] = parts  # in its place: the order of steps stays
        shown = dict(zip(team.views, batches, strict=True))
        for part in parts:
            self.take(part, [shown[view] for view in part.views])

    def without_recordings_if_need_be(self, ask: Callable[[], Result]) -> Result:
        """Return what students are asked; where memory runs out, once more without recordings."""
        try:
            return ask()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = error.with_traceback(None)  # whose frames would keep the step's tensors
        if not forget_recordings():
            raise failure
        torch.cuda.empty_cache()  # torch would keep what is free
        return ask()

    def progress(self, epoch: int) -> None:
        """Tell how far all are, about once a second."""
        now = time.monotonic()
        if now - self._reported_at < REPORT_EVERY_S:
            return
        if self._parallel.size == 1:  # else all processes must come to it at the same step
            self.check(epoch)
        losses = [means[0] for team in self.teams for means in team.tally.means()]
        rows_per_s = self._rows / (now - self._reported_at)
        loss = statistics.median(losses) if losses else float("nan")
        done, total = self._done_steps(), self._total_steps
        first = max((run for team in self.teams for run in team.runs), key=lambda run: run.done_steps)
        steps = first.done_steps, self._most_steps, first.done_steps / first.steps
        self._report(Progress(self._name, epoch + 1, self._epochs, done, total, loss, rows_per_s, *steps))
        self._reported_at, self._rows = now, 0

    def check(self, epoch: int) -> None:
        """Mark students whose losses are not finite as diverged; they leave. Waits for the device."""
        # copies: who fails leaves, and the teams are others then
        for team in [team for team in self.teams if team.epoch == epoch]:
            for run, means in zip(list(team.runs), team.tally.means(), strict=True):
                if not all(map(isfinite, means)):
                    self.fail(run, run.diverged(f"training loss = {means[0]}"))

    def lap(self, epoch: int, since: float, *, training: bool = True) -> float:
        """Add the time since `since` to that of all students in an epoch; return the time now."""
        now = time.monotonic()
        for team in self.teams:
            for run in team.runs:
                if run.epoch == epoch:
                    run.seconds += now - since
                    run.epoch_seconds += (now - since) if training else 0.0
        return now

    def due_within(self, epoch: int) -> bool:
        """Whether a student in an epoch is to be measured now, in the middle of it."""
        return any(run.due_within_epoch() for team in self.teams if team.epoch == epoch for run in team.runs)

    def due_for_checkpoint(self, epoch: int) -> bool:
        """Whether a student's job wants a checkpoint after this step."""
        return any(run.due_for_checkpoint() for team in self.teams if team.epoch == epoch for run in team.runs)

    def checkpoint(self, epoch: int, *, every_student: bool) -> None:
        """Write the checkpoints of students in an epoch: those due, or all; never one of a diverged student."""
        self.check(epoch)
        for team in self.teams:
            if team.epoch == epoch:
                team.checkpoint(every_student=every_student)

    def interrupt(self) -> Interrupted:
        """Write all checkpoints, and return what is to be raised."""
        for epoch in {team.epoch for team in self.teams}:  # a kill may have left teams an epoch apart
            self.checkpoint(epoch, every_student=True)
        first = self.teams[0].runs[0] if self.teams else None
        where = f" in epoch {first.epoch + 1} after {first.step} of {first.steps} steps" if first else ""
        who = f"student {self._name}" if self._name == (first and first.name) else self._name
        return Interrupted(f"{who} stopped{where}")

    @contextlib.contextmanager
    def failing(self, run: Run) -> Iterator[None]:
        """Mark a student as failed if the block raises an error that is its own."""
        try:
            yield
        except (Interrupted, StorageFailure):
            raise
        except StillroomError as error:
            self.fail(run, error)

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        """Mark all students that are left as failed if the block raises an error of the rows that they share."""
        try:
            yield
        except (Interrupted, StorageFailure):
            raise
        except StillroomError as error:
            for run in [run for team in self.teams for run in team.runs]:
                self.fail(run, error)

    def fail(self, run: Run, error: StillroomError) -> None:
        """Write that a student failed; it leaves."""
        run.fail(error)
        self.outcome.errors[run.name] = error.with_traceback(None)  # whose frames would keep the whole pass
        self._report(StudentFailed(run.name, error))
        self._leave([run])

    def set_aside(self, halving: Halving, epochs: int) -> None:
        """Stop the students that others have outrun after so many epochs."""
        present = [run for team in self.teams for run in team.runs if run.epoch == epochs]
        outrun = halving.outrun(present, epochs)
        self._predict([run for run, _ in outrun])  # before the record, which says that all is there
        for run, reason in outrun:
            run.checkpoint({})  # it goes on from here should the job ever let it
            record = run.set_aside(reason, halving.section, self._latency(run))
            self.outcome.records[run.name] = record
            self._report(StudentStopped(record))
            self._leave([run])

    def finish_those_that_ended(self) -> None:
        """Write the results of students that have had their steps; they leave."""
        ended = [run for team in self.teams for run in team.runs if run.ended]
        self._predict(ended)  # likewise
        for run in ended:
            with self.failing(run):
                record = run.finish(self._latency(run))
                self.outcome.records[run.name] = record
                self._report(StudentFinished(record))
                self._leave([run])

    def _predict(self, runs: Sequence[Run]) -> None:
        """Write what students say of the held rows, which are read once for all of them. Raises Interrupted."""
        for size in {run.options.rows_at_once for run in runs if run.prepared.files.writes}:
            alike = [run for run in runs if run.options.rows_at_once == size]
            asked = [Respondent(run.prepared.files, run.result(), run.context.held) for run in alike]
            if not self.without_recordings_if_need_be(partial(self._ask, asked, size)):
                raise self.interrupt()

    def _ask(self, asked: Sequence[Respondent], batch_size: int) -> bool:
        return ask_students(asked, self._held, batch_size=batch_size, stop=self._stop)

    def _latency(self, run: Run) -> Latency:
        kind = repr(run.prepared.blueprint)  # repr: options may be lists, which no key can be
        if kind not in self._latencies:
            blueprint, batch_size = run.prepared.blueprint, run.options.rows_at_once
            self._latencies[kind] = measure_latency(run.result(), blueprint.input_shape, batch_size=batch_size)
        return self._latencies[kind]

    def _done_steps(self) -> int:
        return self._gone_steps + sum(run.done_steps for team in self.teams for run in team.runs)

    def _leave(self, leaving: Sequence[Run]) -> None:
        """Take students out of their teams; the others of a stack go on as a smaller one."""
        for team in [team for team in self.teams if any(run in team.runs for run in leaving)]:
            staying = [run for run in team.runs if run not in leaving]
            self._gone_steps += sum(run.total_steps for run in team.runs if run in leaving)
            place = self.teams.index(team)
            self.teams[place : place + 1] = team.split([staying], halved=team.halved)


def own_failure(name: str, error: Exception) -> StillroomError:
    """Return an error of whatever a user's own model raised, or of memory that ran out, without its traceback."""
    if isinstance(error, StillroomError):
        return error
    frame = traceback.extract_tb(error.__traceback__)[-1]  # where it was raised
    return StillroomError(
        f"student {name} failed",
        found=f"{type(error).__name__}: {error}  ({frame.filename}:{frame.lineno})",
        do="correct it and run the same command again; the other students are not affected",
    )


def _parts(team: Team, no_memory: bool) -> list[Team]:
    """Return what becomes of a stack that failed: halves where memory ran out the first time, else each alone."""
    middle = (len(team.runs) + 1) // 2
    halves = [team.runs[:middle], team.runs[middle:]]
    if no_memory and not team.halved:
        torch.cuda.empty_cache()  # does nothing where there is no GPU in use
        return team.split(halves, halved=True)
    return team.split([[run] for run in team.runs])
