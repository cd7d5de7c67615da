"""A fleet: the students of one pass, in units; who joins a step, who leaves, and what is told and written of them."""

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

from storage.errors import Interrupted, StillroomError, StorageFailure
from student_train.devices import is_out_of_memory
from student_train.events import (
    PassStarted,
    Progress,
    Report,
    StackTakenApart,
    StepsNotRecorded,
    StudentFailed,
    StudentFinished,
    StudentStopped,
)
from student_train.feed.feed import Feed
from student_train.halving import Halving
from student_train.latency import Latency, measure_latency
from student_train.needs import Batch
from student_train.predictions import Asked, write_predictions
from student_train.recorder import forget_recordings
from student_train.results import RunRecord
from student_train.trainee import Trainee
from student_train.unit import Unit

Result = TypeVar("Result")
REPORT_EVERY_S = 1.0  # each report reads the losses, which waits for the device


@dataclass
class Outcome:
    """What became of students, by name: records of those that are done, errors of those that failed."""

    records: dict[str, RunRecord] = field(default_factory=dict)
    errors: dict[str, StillroomError] = field(default_factory=dict)


class Fleet:
    """The students of one pass.

    Args:
        units: that they are in.
        held: rows that a student who is done is asked about.
        report: told of what happens.
        stop: asked while it is.
    """

    def __init__(self, units: Sequence[Unit], held: Feed, report: Report, stop: Callable[[], bool]):
        self.units = list(units)
        self.outcome = Outcome()
        self._held = held
        self._latencies: dict[str, Latency] = {}  # by what a student is: those that are alike are as fast
        self._report = report
        self._parallel = self.units[0].trainees[0].run.parallel
        # Where several processes agree on when to stop, the one that asks students must not wait for the others.
        self._stop = stop if self._parallel.size == 1 else lambda: False
        everyone = [trainee for unit in self.units for trainee in unit.trainees]
        self._name = everyone[0].name if len(everyone) == 1 else f"{len(everyone)} students"
        self._epochs = max(trainee.options.epochs for trainee in everyone)
        self._total_steps = sum(trainee.total_steps for trainee in everyone)
        self._gone_steps = 0  # of students that left: none of theirs is to come
        self._reported_at, self._rows = time.monotonic(), 0

    def begin(self) -> None:
        """Tell that the pass begins."""
        self._report(PassStarted(self._name, self._total_steps, self._done_steps()))

    def at(self, epoch: int, step: int, batch_size: int) -> list[Unit]:
        """Return the units whose next step this is."""
        return [unit for unit in self.units if (unit.epoch, unit.step, unit.batch_size) == (epoch, step, batch_size)]

    def take(self, unit: Unit, batches: Sequence[Batch]) -> None:
        """Let a unit take a step. What fails tries the same rows again, without recordings, or as parts of a stack."""
        try:
            unit.take(batches)
            self._rows += len(batches[0].inputs) * len(unit.trainees)
            if (why := unit.new_refusal()) is not None:
                self._report(StepsNotRecorded(unit.name, why))
            return
        except (Interrupted, StorageFailure):
            raise
        except Exception as error:  # a user's own model, or memory
            if self._parallel.size > 1:
                raise  # the other processes wait for this one: only the end of all helps
            failure, no_memory = own_failure(unit.name, error), is_out_of_memory(error)
        # Outside of the block, whose traceback keeps the step's tensors alive.
        if no_memory and forget_recordings():  # theirs may be what is missing
            torch.cuda.empty_cache()
            self.take(unit, batches)
            return
        if len(unit.trainees) == 1:
            self.fail(unit.trainees[0], failure)
            return
        parts = _parts(unit, no_memory)
        self._report(StackTakenApart(unit.name, len(parts), failure.found or failure.what))
        place = self.units.index(unit)
        self.units[place : place + 1] = parts
        shown = dict(zip(unit.views, batches, strict=True))
        for part in parts:
            self.take(part, [shown[view] for view in part.views])

    def without_recordings_if_need_be(self, ask: Callable[[], Result]) -> Result:
        """Return what students are asked; where memory runs out, once more without recordings."""
        try:
            return ask()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = error.with_traceback(None)
        if not forget_recordings():
            raise failure
        torch.cuda.empty_cache()
        return ask()

    def progress(self, epoch: int) -> None:
        """Tell how far all are, about once a second."""
        now = time.monotonic()
        if now - self._reported_at < REPORT_EVERY_S:
            return
        if self._parallel.size == 1:  # else all processes must come to it at the same step
            self.check(epoch)
        losses = [means[0] for unit in self.units for means in unit.tally.means()]
        rows_per_s = self._rows / (now - self._reported_at)
        loss = statistics.median(losses) if losses else float("nan")
        self._report(
            Progress(self._name, epoch + 1, self._epochs, self._done_steps(), self._total_steps, loss, rows_per_s)
        )
        self._reported_at, self._rows = now, 0

    def check(self, epoch: int) -> None:
        """Mark students whose losses are not finite as diverged; they leave. Waits for the device."""
        for unit in [unit for unit in self.units if unit.epoch == epoch]:
            for trainee, means in zip(list(unit.trainees), unit.tally.means(), strict=True):
                if not all(map(isfinite, means)):
                    self.fail(trainee, trainee.diverged(f"training loss = {means[0]}"))

    def lap(self, epoch: int, since: float, *, training: bool = True) -> float:
        """Add the time since `since` to that of all students in an epoch; return the time now."""
        now = time.monotonic()
        for unit in self.units:
            for trainee in unit.trainees:
                if trainee.epoch == epoch:
                    trainee.seconds += now - since
                    trainee.epoch_seconds += (now - since) if training else 0.0
        return now

    def due_for_checkpoint(self, epoch: int) -> bool:
        """Whether a student's job wants a checkpoint after this step."""
        return any(
            trainee.due_for_checkpoint() for unit in self.units if unit.epoch == epoch for trainee in unit.trainees
        )

    def checkpoint(self, epoch: int, *, every_student: bool) -> None:
        """Write the checkpoints of students in an epoch: those due, or all; never one of a diverged student."""
        self.check(epoch)
        for unit in self.units:
            if unit.epoch == epoch:
                unit.checkpoint(every_student=every_student)

    def interrupt(self) -> Interrupted:
        """Write all checkpoints, and return what is to be raised."""
        for epoch in {unit.epoch for unit in self.units}:
            self.checkpoint(epoch, every_student=True)
        first = self.units[0].trainees[0] if self.units else None
        where = f" in epoch {first.epoch + 1} after {first.step} of {first.steps} steps" if first else ""
        who = f"student {self._name}" if self._name == (first and first.name) else self._name
        return Interrupted(f"{who} stopped{where}")

    @contextlib.contextmanager
    def failing(self, trainee: Trainee) -> Iterator[None]:
        """Mark a student as failed if the block raises an error that is its own."""
        try:
            yield
        except (Interrupted, StorageFailure):
            raise
        except StillroomError as error:
            self.fail(trainee, error)

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        """Mark all students that are left as failed if the block raises an error of the rows that they share."""
        try:
            yield
        except (Interrupted, StorageFailure):
            raise
        except StillroomError as error:
            for trainee in [trainee for unit in self.units for trainee in unit.trainees]:
                self.fail(trainee, error)

    def fail(self, trainee: Trainee, error: StillroomError) -> None:
        """Write that a student failed; it leaves."""
        trainee.fail(error)
        self.outcome.errors[trainee.name] = error.with_traceback(None)  # whose frames would keep the whole pass
        self._report(StudentFailed(trainee.name, error))
        self._leave([trainee])

    def set_aside(self, halving: Halving, epochs: int) -> None:
        """Stop the students that others have outrun after so many epochs."""
        present = [trainee for unit in self.units for trainee in unit.trainees if trainee.epoch == epochs]
        outrun = halving.outrun(present, epochs)
        self._predict([trainee for trainee, _ in outrun])
        for trainee, reason in outrun:
            trainee.checkpoint({})  # it goes on from here should the job ever let it
            record = trainee.set_aside(reason, halving.section, self._latency(trainee))
            self.outcome.records[trainee.name] = record
            self._report(StudentStopped(record))
            self._leave([trainee])

    def finish_those_that_ended(self) -> None:
        """Write the results of students that have had their epochs; they leave."""
        ended = [trainee for unit in self.units for trainee in unit.trainees if trainee.ended]
        self._predict(ended)
        for trainee in ended:
            with self.failing(trainee):
                record = trainee.finish(self._latency(trainee))
                self.outcome.records[trainee.name] = record
                self._report(StudentFinished(record))
                self._leave([trainee])

    def _predict(self, trainees: Sequence[Trainee]) -> None:
        """Write what students say of the held rows, which are read once for all of them. Raises Interrupted."""
        for size in {trainee.options.batch_size for trainee in trainees if trainee.run.parallel.writes}:
            alike = [trainee for trainee in trainees if trainee.options.batch_size == size]
            asked = [Asked(trainee.run.folder, trainee.result(), trainee.run.held) for trainee in alike]
            if not self.without_recordings_if_need_be(partial(self._write_predictions, asked, size)):
                raise self.interrupt()

    def _write_predictions(self, asked: Sequence[Asked], batch_size: int) -> bool:
        return write_predictions(asked, self._held, batch_size=batch_size, stop=self._stop)

    def _latency(self, trainee: Trainee) -> Latency:
        kind = repr(trainee.run.spec)
        if kind not in self._latencies:
            spec, batch_size = trainee.run.spec, trainee.options.batch_size
            self._latencies[kind] = measure_latency(trainee.result(), spec.input_shape, batch_size=batch_size)
        return self._latencies[kind]

    def _done_steps(self) -> int:
        return self._gone_steps + sum(trainee.done_steps for unit in self.units for trainee in unit.trainees)

    def _leave(self, leaving: Sequence[Trainee]) -> None:
        """Take students out of their units; the others of a stack go on as a smaller one."""
        for unit in [unit for unit in self.units if any(trainee in unit.trainees for trainee in leaving)]:
            staying = [trainee for trainee in unit.trainees if trainee not in leaving]
            self._gone_steps += sum(trainee.total_steps for trainee in unit.trainees if trainee in leaving)
            place = self.units.index(unit)
            self.units[place : place + 1] = unit.split([staying], halved=unit.halved)


def own_failure(name: str, error: Exception) -> StillroomError:
    """Return an error of whatever a user's own model raised, or of memory that ran out, without its traceback."""
    if isinstance(error, StillroomError):
        return error
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return StillroomError(
        f"student {name} failed",
        found=f"{type(error).__name__}: {error}  ({frame.filename}:{frame.lineno})",
        do="correct it and run the same command again; the other students are not affected",
    )


def _parts(unit: Unit, no_memory: bool) -> list[Unit]:
    """Return what a stack that failed is taken apart into: halves where memory ran out the first time, else singles."""
    middle = (len(unit.trainees) + 1) // 2
    groups = [unit.trainees[:middle], unit.trainees[middle:]]
    if no_memory and not unit.halved:
        torch.cuda.empty_cache()  # does nothing where there is no GPU in use
        return unit.split(groups, halved=True)
    return unit.split([[trainee] for trainee in unit.trainees])
