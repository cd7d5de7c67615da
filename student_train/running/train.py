"""A whole student job: what is left of it is trained, in passes that many students share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from storage.errors import Interrupted, StillroomError, StorageFailure, TryAgain
from student_train.devices import find_device
from student_train.feed.batches import Needs
from student_train.feed.residency import FeedPool
from student_train.options.job_text import job_text
from student_train.options.sections import FleetOptions, TrackOptions
from student_train.preparing.prepare import passes, prepare
from student_train.preparing.projection import choose_for, fit
from student_train.preparing.request import PreparedRun, Request
from student_train.run_files.predictions import HeldTable
from student_train.run_files.records import RunRecord
from student_train.running.cohort import own_failure
from student_train.running.events import (
    BatchIsAllRows,
    FeedChosen,
    Loading,
    MemoryProjected,
    Report,
    RunsNotLocked,
    StepsNotRecorded,
    StudentFailed,
    StudentSkipped,
)
from student_train.running.halving import Halving
from student_train.running.loop import train_together
from student_train.running.predictions import held_table
from student_train.running.run import Run, RunContext, failure_record
from student_train.running.tracking import tracking
from student_train.stepping.parallel import Parallel
from student_train.stepping.recorder import is_recorded


@dataclass(frozen=True)
class Summary:
    """What became of each student.

    Attributes:
        records: of those that finished or were set aside, in the job's order.
        errors: of the failed ones, by name.
    """

    records: tuple[RunRecord, ...]
    errors: dict[str, StillroomError]

    @property
    def exit_code(self) -> int:
        """Return 0 if all are done, else the failures' code; 1 if they differ."""
        codes = {error.exit_code for error in self.errors.values()}
        return 0 if not codes else codes.pop() if len(codes) == 1 else 1


def train_students(
    request: Request, *, report: Report = lambda event: None, stop: Callable[[], bool] = lambda: False
) -> Summary:
    """Train every student of a request that is not settled yet.

    All students are checked before the first step of any. One that fails while it trains is recorded as failed and
    does not disturb the others.

    Args:
        request: what is asked for.
        report: told of everything that happens (`events.py`).
        stop: asked after every step; if it says so, the students' state is kept and Interrupted is raised.

    Raises:
        BadRequest: of some kind; nothing was started.
        Interrupted: `stop` said so.
        StorageFailure: the disk refused; what is written stays good.
    """
    device, parallel = find_device(request.device), request.parallel
    students = prepare(request)
    parallel.wait()  # until all have seen what is there, and before one of them writes
    records = {student.name: student.settled for student in students if student.settled is not None}
    skip_settled(students, report)
    left = [student for student in students if student.settled is None]
    errors: dict[str, StillroomError] = {}
    if left:
        residency = choose_for(request, left, device)
        if parallel.size > 1:
            request = replace(request, fleet=_of_many_processes(request.fleet, parallel))
        fleet, memory = fit(left, residency, request.data.window_shards, device, request.fleet)
        report(MemoryProjected(memory.host_bytes, memory.device_bytes))
        if fleet.cuda_graphs != request.fleet.cuda_graphs:
            report(StepsNotRecorded("all students", "there might be no memory for it"))
        shown = left[0].train.views
        report(FeedChosen(residency.place, residency.why, 0 if shown is None else shown.count))
        if of_one_step := tuple(s.name for s in left if s.options.batch_size > s.train.num_rows):
            report(BatchIsAllRows(of_one_step, left[0].train.num_rows))
        pool = FeedPool(request.cache, device, place=residency.place, window_shards=request.data.window_shards)
        # With [halving] the passes of all students, so that whoever is compared is the same after an interruption.
        together = passes(left if fleet.halving is None else students, fleet.at_once)
        with tracking(fleet.track, left, report) as tracked:
            for all_of_pass in together:
                done = [student.settled for student in all_of_pass if student.settled is not None]
                stopped = tuple(record for record in done if record.status == "stopped")
                students_of_pass = [student for student in all_of_pass if student.settled is None]
                if not students_of_pass:
                    continue
                found, failed = _train_pass(students_of_pass, request, fleet, pool, device, stopped, tracked, stop)
                records |= found
                errors |= failed
    return Summary(tuple(records[s.name] for s in students if s.name in records), errors)


def skip_settled(students: Sequence[PreparedRun], report: Report) -> None:
    """Tell of students that are settled; delete checkpoints that a kill has left beside records of finished ones."""
    for student in students:
        if student.settled is not None:
            if student.settled.status == "finished":
                student.files.delete_checkpoint()
            report(StudentSkipped(student.settled))


def _of_many_processes(fleet: FleetOptions, parallel: Parallel) -> FleetOptions:
    """Return how several processes train: each student by itself, told to trackers by one of them."""
    alone = {"stacking": "never", "cuda_graphs": "never"}
    return fleet.model_copy(update=alone if parallel.writes else alone | {"track": TrackOptions()})


def _train_pass(
    students: Sequence[PreparedRun],
    request: Request,
    fleet: FleetOptions,
    pool: FeedPool,
    device: torch.device,
    stopped: tuple[RunRecord, ...],
    report: Report,
    stop: Callable[[], bool],
) -> tuple[dict[str, RunRecord], dict[str, StillroomError]]:
    """Train the students of one pass; return records and errors by name."""
    errors: dict[str, StillroomError] = {}

    def fail(student: PreparedRun, error: StillroomError) -> None:
        errors[student.name] = error
        report(StudentFailed(student.name, error))

    name = students[0].options.name if len(students) == 1 else f"{len(students)} students"

    def tick(done: int, shards: int) -> None:
        report(Loading(name, done, shards))
        if stop():
            raise Interrupted(f"{name} stopped before the first step of a student")

    with ExitStack() as locks:
        ready, held_all = [], True
        for student in students:
            try:
                held_all &= locks.enter_context(student.files.locked())
                ready.append(student)
            except TryAgain as error:
                fail(student, error)
        if not held_all:
            report(RunsNotLocked(str(request.runs)))
        runs = _begin(ready, students, request, fleet, device, fail)
        if not runs:
            return {}, errors
        needs = Needs()
        for student in ready:
            needs |= student.needs
        try:
            train = pool.feed(students[0].train, needs, tick)
            held = pool.feed(students[0].held, Needs(labels=True), tick)
        except (Interrupted, StorageFailure):
            raise
        except StillroomError as error:  # of the rows, which all of them were to learn from
            return {}, errors | {run.name: _told(run, error, report) for run in runs}
        outcome = train_together(
            runs,
            train,
            held,
            seed=request.data.order_seed,
            stacking=fleet.stacking,
            halving=None if fleet.halving is None else Halving(fleet.halving, stopped),
            report=report,
            stop=lambda: request.parallel.agree(stop()),
        )
    return outcome.records, errors | outcome.errors


def _begin(
    ready: Sequence[PreparedRun],
    students: Sequence[PreparedRun],
    request: Request,
    fleet: FleetOptions,
    device: torch.device,
    fail: Callable[[PreparedRun, StillroomError], None],
) -> list[Run]:
    """Return what is to be trained of the students of a pass, in this process and in all others.

    Args:
        ready: those whose folders are ours.
        students: of the pass.
        request: that they are of.
        fleet: how they are trained together.
        device: where they are trained.
        fail: told of those that cannot begin.
    """
    for student in ready:
        student.files.settle_checkpoint()
    for student in ready:
        student.files.forget_failure()
    request.parallel.wait()  # until what they go on from is settled
    begun, tables = dict[str, Run](), dict[str | None, HeldTable]()
    for student in ready:
        tops_N, agree_with = student.held.tops_N, student.agree_with
        if agree_with not in tables:
            tables[agree_with] = held_table(request.cache, student.held, agree_with)
        context = RunContext(
            device=device,
            held=tables[agree_with],
            cache=request.cache.url,
            job=job_text(request.cache.url, request.runs, request.data, [student.options]),
            tops_N=None if tops_N is None else torch.from_numpy(tops_N).to(device),
            parallel=request.parallel,
            recorded=is_recorded(fleet.cuda_graphs, student.blueprint, device),
        )
        try:
            begun[student.name] = Run(student, context)
        except StorageFailure:
            raise
        except Exception as error:  # a user's own model, or a device out of memory
            failure = own_failure(student.name, error)
            student.files.write_failure(failure_record(student, failure, device))
            fail(student, failure)
    # Which also waits until all have read their checkpoints, before one of them writes.
    everywhere = request.parallel.all_agree([student.name in begun for student in students])
    for student, agreed in zip(students, everywhere, strict=True):
        name = student.name
        if not agreed and begun.pop(name, None) is not None:
            fail(student, TryAgain(f"another process could not begin student {name}"))
    return list(begun.values())


def _told(run: Run, error: StillroomError, report: Report) -> StillroomError:
    """Write and tell that a student failed; return why."""
    run.fail(error)
    report(StudentFailed(run.name, error))
    return error
