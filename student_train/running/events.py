"""What a run of students reports to whoever watches it, and in which order. Nothing in this room prints.

    StudentSkipped                              each student that is settled already
    ResultLost                                  each student that was settled, and whose weights are gone
    TeacherNearChance?, LeftOpen?, NotBesideTeacher?
    StartingWeights                             each student that begins from weights
    MemoryProjected, StepsNotRecorded?, FeedChosen, BatchIsAllRows?
    each pass:
        RunsNotLocked?
        Loading                                 each shard, unless rows are streamed or were loaded before
        StudentStarted                          each student
        StackingChosen                          each set of students that might be one program
        PassStarted
        each epoch:
            Progress, StepsNotRecorded?, StackTakenApart?
            WithinEpoch                         students that are measured by steps, or end here: StudentFinished
            EpochDone                           each student
            StudentStopped                      those that others have outrun
            StudentFinished                     those that have had all their epochs
        PassDone

StudentFailed, TrackerFailed and NotKept may come at any place; ShardsKept comes last, where the job has `keep`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from storage.errors import StillroomError
from student_train.run_files.records import EpochMetrics, RunRecord


@dataclass(frozen=True, slots=True)
class FeedChosen:
    """Where rows are kept for all students of the job, and how many views of them are shown in turn (0: plain)."""

    residency: str
    why: str
    views: int = 0


@dataclass(frozen=True, slots=True)
class MemoryProjected:
    """The bound on memory: of the process, and of a GPU where there is one."""

    host_bytes: int
    device_bytes: int | None


@dataclass(frozen=True, slots=True)
class BatchIsAllRows:
    """Students whose batch size is more than there are rows: an epoch of theirs is one step."""

    students: tuple[str, ...]
    rows: int


@dataclass(frozen=True, slots=True)
class Loading:
    """So many shards of so many are on the device, or on the host; not when rows are streamed."""

    students: str
    rows: Literal["rows", "held rows"]
    done_shards: int
    shards: int


@dataclass(frozen=True, slots=True)
class StackingChosen:
    """Whether students of one architecture step as one program, and why."""

    students: tuple[str, ...]
    stacked: bool
    why: str


@dataclass(frozen=True, slots=True)
class StepsNotRecorded:
    """Steps of a student, or of a stack, are taken one kernel at a time, for they cannot be recorded."""

    students: str
    why: str


@dataclass(frozen=True, slots=True)
class TeacherNearChance:
    """Students are about to learn from a teacher that hardly knows the dataset."""

    warning: str


@dataclass(frozen=True, slots=True)
class LeftOpen:
    """What the job leaves open was decided for students, as a note says."""

    students: tuple[str, ...]
    note: str


@dataclass(frozen=True, slots=True)
class NotBesideTeacher:
    """On the held rows students are not measured against the teacher that they would be measured against."""

    students: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class ResultLost:
    """A student was trained before, but files of its result are gone: it is trained from its first step."""

    student: str
    why: str


@dataclass(frozen=True, slots=True)
class StartingWeights:
    """A student starts from weights: what it takes of them, and what not."""

    student: str
    told: str


@dataclass(frozen=True, slots=True)
class RunsNotLocked:
    """The disk of the runs has no locks: nothing keeps a second command from training the same students."""

    folder: str


@dataclass(frozen=True, slots=True)
class StackTakenApart:
    """A stack failed in a step and goes on in so many parts, which try the same rows again."""

    stack: str
    parts: int
    why: str


@dataclass(frozen=True, slots=True)
class StudentStarted:
    """A student begins, or goes on after `done_steps` of `total_steps`."""

    student: str
    parameters: int
    total_steps: int
    done_steps: int


@dataclass(frozen=True, slots=True)
class PassStarted:
    """Students that share a pass begin.

    Attributes:
        students: the student's name, or how many there are.
        total_steps, done_steps: of all together.
        by_steps: whether their jobs say how many steps they have, and not epochs.
    """

    students: str
    total_steps: int
    done_steps: int
    by_steps: bool = False


@dataclass(frozen=True, slots=True)
class PassDone:
    """All students of a pass are settled."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Some steps later, about once a second.

    Attributes:
        students: the student's name, or how many there are.
        epoch, epochs: of the pass that they share.
        done_steps, total_steps: of all of them together.
        loss: the mean over the epoch's rows so far, of all students the median.
        rows_per_s: of all of them together.
        step, steps: of the one that is furthest, and of the one that has most.
        epochs_done: the former in epochs.
    """

    students: str
    epoch: int
    epochs: int
    done_steps: int
    total_steps: int
    loss: float
    rows_per_s: float
    step: int = 0
    steps: int = 0
    epochs_done: float = 0.0


@dataclass(frozen=True, slots=True)
class EpochDone:
    """An epoch was trained and evaluated.

    Attributes:
        first_losses: of each term in the epoch's first step, before its weight.
    """

    student: str
    metrics: EpochMetrics
    first_losses: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WithinEpoch:
    """A student was evaluated in the middle of an epoch; `first_losses` as of `EpochDone`."""

    student: str
    metrics: EpochMetrics
    first_losses: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StudentFinished:
    """A student is trained and written."""

    record: RunRecord


@dataclass(frozen=True, slots=True)
class StudentStopped:
    """A student is set aside, since others have outrun it."""

    record: RunRecord


@dataclass(frozen=True, slots=True)
class StudentSkipped:
    """A student had been trained before by this very job."""

    record: RunRecord


@dataclass(frozen=True, slots=True)
class StudentFailed:
    """A student cannot be trained; those after it still are."""

    student: str
    error: StillroomError


@dataclass(frozen=True, slots=True)
class TrackerFailed:
    """TensorBoard or MLflow failed, and is off for the rest of the command; the students go on."""

    tracker: str
    why: str


@dataclass(frozen=True, slots=True)
class NotKept:
    """Shards, or one of them, cannot be kept on this machine, or could not be used as they were; the students go on."""

    folder: str
    why: str


@dataclass(frozen=True, slots=True)
class ShardsKept:
    """How many bytes of shards came out of the folder of this machine, and how many from the store."""

    folder: str
    read_bytes: int
    fetched_bytes: int


Event = (
    FeedChosen
    | MemoryProjected
    | BatchIsAllRows
    | Loading
    | StackingChosen
    | StackTakenApart
    | StepsNotRecorded
    | RunsNotLocked
    | TeacherNearChance
    | LeftOpen
    | NotBesideTeacher
    | ResultLost
    | StartingWeights
    | StudentStarted
    | PassStarted
    | PassDone
    | Progress
    | EpochDone
    | WithinEpoch
    | StudentFinished
    | StudentStopped
    | StudentSkipped
    | StudentFailed
    | TrackerFailed
    | NotKept
    | ShardsKept
)
Report = Callable[[Event], None]
