"""What a run of students reports to whoever watches it. Nothing in this room prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from storage.errors import StillroomError
from student_train.results import EpochMetrics, RunRecord


@dataclass(frozen=True, slots=True)
class FeedChosen:
    """Where rows are kept for all students of the job, and how many views of them are shown in turn (0: plain)."""

    residency: str
    why: str
    views: int = 0


@dataclass(frozen=True, slots=True)
class Loading:
    """So many shards of so many are on the device; only when rows are resident."""

    student: str
    done_shards: int
    shards: int


@dataclass(frozen=True, slots=True)
class StudentStarted:
    """A student begins, or goes on after `done_steps` of `total_steps`."""

    student: str
    parameters: int
    total_steps: int
    done_steps: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Some steps later, about once a second."""

    student: str
    epoch: int
    epochs: int
    done_steps: int
    total_steps: int
    loss: float
    rows_per_s: float


@dataclass(frozen=True, slots=True)
class EpochDone:
    """An epoch was trained and evaluated."""

    student: str
    metrics: EpochMetrics


@dataclass(frozen=True, slots=True)
class StudentFinished:
    """A student is trained and written."""

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


Event = FeedChosen | Loading | StudentStarted | Progress | EpochDone | StudentFinished | StudentSkipped | StudentFailed
Report = Callable[[Event], None]
