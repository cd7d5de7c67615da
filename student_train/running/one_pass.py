"""One pass: students of the same rows take hold of their folders, begin, and are trained by the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import or_
from typing import Literal

import torch

from storage.errors import Interrupted, StillroomError, StorageFailure, TryAgain
from student_train.feed.feed import Feed
from student_train.feed.residency import FeedPool
from student_train.options.job_text import job_text
from student_train.options.sections import FleetOptions
from student_train.options.steps_taken import StepsTaken
from student_train.preparing.request import PreparedRun, Request
from student_train.run_files.predictions import HeldTable
from student_train.run_files.records import RunRecord
from student_train.running.cohort import Outcome, own_failure
from student_train.running.events import Loading, Report, RunsNotLocked, StudentFailed
from student_train.running.halving import Halving
from student_train.running.loop import train_together
from student_train.running.measuring.predictions import held_table
from student_train.running.run import Run, RunContext, failure_record
from student_train.stepping.recorder import is_recorded
from student_train.tasks import task_of

HeldKey = tuple[tuple[str, ...], str, str | None]  # of held rows: datasets, fingerprint, teacher to agree with


def _repeating(request: Request, decided: Sequence[PreparedRun], taken: StepsTaken) -> str:
    """Return the job of a student and of those it began with, each of whom the others' rounding depends on."""
    options = {student.name: student for student in request.students}
    options |= {student.name: student.options for student in decided}  # in which nothing is left open
    # one that the job has no more is left out: nobody knows its options
    students = [options[name] for name in taken.stacks[0].students if name in options]
    return job_text(request.cache.url, request.runs, request.data, students, taken)


@dataclass(frozen=True)
class OnePass:
    """A pass over rows that several students share.

    Attributes:
        students: to be trained, which learn from, and are measured on, the same rows.
        stopped: records of those of the pass that were set aside before this command began.
        request: that they are of.
        fleet: how they are trained together.
        pool: of feeds.
        device: where.
        report: told of everything that happens.
        stop: asked after every step, and shard that is loaded.
        tables: held rows as they are before a student is asked; of all passes.
        outcome: what has become of them.
    """

    students: Sequence[PreparedRun]
    stopped: tuple[RunRecord, ...]
    request: Request
    fleet: FleetOptions
    pool: FeedPool
    device: torch.device
    report: Report
    stop: Callable[[], bool]
    tables: dict[HeldKey, HeldTable]
    outcome: Outcome = field(default_factory=Outcome)

    def train(self) -> Outcome:
        """Train the students; return records and errors by name. Raises as `train_students`."""
        with ExitStack() as locks:
            ready = self._locked(locks)
            runs = self._begun(ready)
            feeds = self._feeds(ready, runs) if runs else None
            if feeds is None:
                return self.outcome
            section, default = self.fleet.halving, task_of(self.students[0].blueprint).best_by
            found = train_together(
                runs,
                *feeds,
                seed=self.request.data.order_seed,
                stacking=self.fleet.stacking,
                halving=None if section is None else Halving(section.by(default), self.stopped),
                report=self.report,
                stop=lambda: self.request.parallel.agree(self.stop()),
            )
        return Outcome(found.records, self.outcome.errors | found.errors)

    def _fail(self, name: str, error: StillroomError) -> None:
        self.outcome.errors[name] = error
        self.report(StudentFailed(name, error))

    def _locked(self, locks: ExitStack) -> list[PreparedRun]:
        """Return the students whose folders are ours until the locks are given back."""
        ready, held_all = [], True
        for student in self.students:
            try:
                held_all &= locks.enter_context(student.files.locked())
                ready.append(student)
            except TryAgain as error:
                self._fail(student.name, error)
        if not held_all:
            self.report(RunsNotLocked(str(self.request.runs)))
        return ready

    def _begun(self, ready: Sequence[PreparedRun]) -> list[Run]:
        """Return runs that are at their first step, or last checkpoint, in this process and in all others."""
        # all of them first: whether what is staged counts, the others of its stack say
        for student in ready:
            student.files.settle_checkpoint()
        for student in ready:
            student.files.forget_record()
        self.request.parallel.wait()  # until it is clear what they go on from
        begun = dict[str, Run]()
        for student in ready:
            key = (student.held.datasets, student.held.fingerprint, student.agree_with)
            if key not in self.tables:
                self.tables[key] = held_table(self.request.cache, student.held, student.agree_with)
            try:
                begun[student.name] = Run(student, self._context(student, self.tables[key]))
            except StorageFailure:
                raise
            except Exception as error:  # a user's own model, or a device out of memory
                failure = own_failure(student.name, error)
                student.files.write_failure(failure_record(student, failure, self.device))
                self._fail(student.name, failure)
        # Which also waits until all have read their checkpoints, before one of them writes.
        everywhere = self.request.parallel.all_agree([student.name in begun for student in self.students])
        for student, agreed in zip(self.students, everywhere, strict=True):
            if not agreed and begun.pop(student.name, None) is not None:
                self._fail(student.name, TryAgain(f"another process could not begin student {student.name}"))
        return list(begun.values())

    def _context(self, student: PreparedRun, held: HeldTable) -> RunContext:
        request, tops_N = self.request, student.held.tops_N
        return RunContext(
            device=self.device,
            held=held,
            cache=request.cache.url,
            job=partial(_repeating, request, self.students),
            tops_N=None if tops_N is None else torch.from_numpy(tops_N).to(self.device),
            parallel=request.parallel,
            recorded=is_recorded(
                self.fleet.cuda_graphs, student.blueprint, self.device, recompute=student.options.recompute
            ),
        )

    def _feeds(self, ready: Sequence[PreparedRun], runs: Sequence[Run]) -> tuple[Feed, Feed] | None:
        """Return rows to learn from and rows to be measured on; None if they cannot be read, which all fail by."""
        name = self.students[0].name if len(self.students) == 1 else f"{len(self.students)} students"

        def tick(rows: Literal["rows", "held rows"], done: int, shards: int) -> None:
            self.report(Loading(name, rows, done, shards))
            if self.stop():
                raise Interrupted(f"{name} stopped before the first step of a student")

        try:
            needs = reduce(or_, (student.needs for student in ready))
            train = self.pool.feed(self.students[0].train, needs, partial(tick, "rows"))
            held_needs = reduce(or_, (student.held_needs for student in ready))
            return train, self.pool.feed(self.students[0].held, held_needs, partial(tick, "held rows"))
        except (Interrupted, StorageFailure):
            raise
        except StillroomError as error:
            for run in runs:
                run.fail(error)
                self._fail(run.name, error)
            return None
