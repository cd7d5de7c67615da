"""A whole student job: what is left of it is trained, in passes that many students share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from storage.errors import StillroomError
from student_train.feed.devices import find_device
from student_train.feed.residency import FeedPool
from student_train.preparing.prepare import passes, prepare
from student_train.preparing.request import PreparedRun, Request
from student_train.preparing.weighing.projection import choose_for, fit
from student_train.run_files.predictions import HeldTable
from student_train.run_files.records import RunRecord
from student_train.running.cohort import Outcome
from student_train.running.events import (
    BatchIsAllRows,
    FeedChosen,
    LeftOpen,
    MemoryProjected,
    NotBesideTeacher,
    Report,
    ResultLost,
    StartingWeights,
    StepsNotRecorded,
    StudentSkipped,
    TeacherNearChance,
)
from student_train.running.keeping import tell_kept, with_notes
from student_train.running.one_pass import HeldKey, OnePass
from student_train.running.tracking.listening import tracking


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
    device = find_device(request.device)
    report = with_notes(request.cache.kept, report)
    students = prepare(request)
    request.parallel.wait()  # until all have seen what is there, and before one of them writes
    skip_settled(students, report)
    left = [student for student in students if student.settled is None]
    _tell_prepared(left, report)
    found = _train_left(request, students, left, device, report, stop) if left else Outcome()
    records = {student.name: student.settled for student in students if student.settled is not None} | found.records
    return Summary(tuple(records[s.name] for s in students if s.name in records), found.errors)


def _train_left(
    request: Request,
    students: Sequence[PreparedRun],
    left: Sequence[PreparedRun],
    device: torch.device,
    report: Report,
    stop: Callable[[], bool],
) -> Outcome:
    """Train the students that are left, pass after pass; return their records and errors by name.

    Args:
        request: that they are of.
        students: all of it, settled ones too.
        left: those that are not settled.
        device: where.
        report, stop: as of `train_students`.
    """
    residency = choose_for(request, left, device)
    fleet, memory = fit(left, residency, request.data.window_shards, device, request.together)
    report(MemoryProjected(memory.host_bytes, memory.device_bytes))
    if fleet.cuda_graphs != request.together.cuda_graphs:
        report(StepsNotRecorded("all students", "there might be no memory for it"))
    shown = left[0].train.views
    report(FeedChosen(residency.place, residency.why, 0 if shown is None else shown.count))
    if of_one_step := tuple(s.name for s in left if s.options.batch_size > s.train.num_rows):
        report(BatchIsAllRows(of_one_step, left[0].train.num_rows))
    pool = FeedPool(request.cache, device, place=residency.place, window_shards=request.data.window_shards)
    outcome, tables = Outcome(), dict[HeldKey, HeldTable]()
    # With [halving] the passes of all students, so that whoever is compared is the same after an interruption.
    together = passes(left if fleet.halving is None else students, fleet.at_once)
    with tracking(fleet.track, left, report) as tracked:
        for all_of_pass in together:
            settled = [student.settled for student in all_of_pass if student.settled is not None]
            students_of_pass = [student for student in all_of_pass if student.settled is None]
            if students_of_pass:
                one = OnePass(
                    students_of_pass,
                    stopped=tuple(record for record in settled if record.status == "stopped"),
                    request=request,
                    fleet=fleet,
                    pool=pool,
                    device=device,
                    report=tracked,
                    stop=stop,
                    tables=tables,
                )
                found = one.train()
                outcome.records |= found.records
                outcome.errors |= found.errors
    tell_kept(request.cache.kept, report)
    return outcome


def _tell_prepared(left: Sequence[PreparedRun], report: Report) -> None:
    """Tell what was found while the students that are left were checked: each thing once, with whom it is of."""
    for warning in dict.fromkeys(warning for student in left for warning in student.warnings):
        report(TeacherNearChance(warning))
    for note in dict.fromkeys(note for student in left for note in student.decided):
        report(LeftOpen(tuple(s.name for s in left if note in s.decided), note))
    for why in dict.fromkeys(student.why_not_against for student in left):
        if why is not None:
            report(NotBesideTeacher(tuple(s.name for s in left if s.why_not_against == why), why))
    for student in left:
        if student.lost:
            report(ResultLost(student.name, student.why_anew))
        if student.started is not None and student.position is None:
            report(StartingWeights(student.name, student.started))


def skip_settled(students: Sequence[PreparedRun], report: Report) -> None:
    """Tell of students that are settled; delete checkpoints that a kill has left beside records of finished ones."""
    for student in students:
        if student.settled is not None:
            if student.settled.status == "finished":
                student.files.delete_checkpoint()
            report(StudentSkipped(student.settled))
