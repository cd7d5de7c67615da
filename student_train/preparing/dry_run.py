"""What `student train --dry-run` says: which students would be trained, on which rows, within which memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from student_train.feed.devices import find_device
from student_train.preparing.installed import check_installed
from student_train.preparing.prepare import prepare
from student_train.preparing.request import PreparedRun, Request
from student_train.preparing.weighing.projection import MemoryProjection, choose_for, fit


@dataclass(frozen=True, slots=True)
class StudentDryRun:
    """What would become of one student.

    Attributes:
        student: its name.
        action: "skip" a settled one, "resume" from a checkpoint, or "train".
        train_rows, validation_rows: how many.
        done_epochs, done_steps: of an interrupted one.
        epochs, steps: of the job; epochs have a fraction where it says steps.
        by_steps: whether it does.
    """

    student: str
    action: Literal["skip", "resume", "train"]
    train_rows: int
    validation_rows: int
    done_epochs: float
    epochs: float
    done_steps: int
    steps: int
    by_steps: bool


@dataclass(frozen=True, slots=True)
class DryRun:
    """What would become of all students, and the memory that it needs; None if nothing is left to do.

    `warnings` are of teachers near chance, of what the job leaves open, of figures that will not be there, of results
    that are lost, and of what weights lack that students start from.
    """

    students: tuple[StudentDryRun, ...]
    memory: MemoryProjection | None
    warnings: tuple[str, ...] = ()


def dry_run(request: Request) -> DryRun:
    """Return what `train_students` would do, after the same checks. Raises BadRequest, of some kind."""
    device = find_device(request.device)
    students = prepare(request)
    foreseen = tuple(map(foresee, students))
    left = [student for student in students if student.settled is None]
    if not left:
        return DryRun(foreseen, None)
    check_installed(request.fleet.track)
    residency = choose_for(request, left, device)
    _, memory = fit(left, residency, request.data.window_shards, device, request.together)
    warnings = [text for student in left for text in student.warnings]
    decided = [f"note: {text}" for student in left for text in student.decided]
    unlike = [f"note: no KL to a teacher on the held rows: {s.why_not_against}" for s in left if s.why_not_against]
    lost = [f"{student.name}: {student.why_anew}" for student in left if student.lost]
    started = [f"{student.name} {student.started}" for student in left if student.started is not None]
    return DryRun(foreseen, memory, tuple(dict.fromkeys([*warnings, *decided, *unlike, *lost, *started])))


def foresee(student: PreparedRun) -> StudentDryRun:
    """Return what would become of a checked student."""
    position, done = student.position, student.settled
    action: Literal["resume", "train"] = "train" if position is None else "resume"
    each = student.steps_an_epoch
    if done is not None:
        steps, epochs = done.steps or 0, float(done.epochs)
    else:
        steps = 0 if position is None else position.epoch * each + position.step
        epochs = 0.0 if position is None else float(position.epoch)
    by_steps = student.options.epochs is None
    return StudentDryRun(
        student=student.options.name,
        action="skip" if done is not None else action,
        train_rows=student.train.num_rows,
        validation_rows=student.held.num_rows,
        done_epochs=round(steps / each, 3) if by_steps else epochs,
        epochs=round(student.total_steps / each, 3) if by_steps else float(student.total_epochs),
        done_steps=steps,
        steps=student.total_steps,
        by_steps=by_steps,
    )
