"""Events of training as lines of JSON, and what became of students in figures."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

from pydantic import BaseModel

from jobs.show.night import Level, Night, told
from jobs.show.train_progress import TrainProgress
from storage.errors import StillroomError
from student_train.run_files.records import RunRecord
from student_train.running import events
from student_train.running.train import Summary

TELL_EVERY_S = 30.0  # of what happens each second
WARNINGS = (events.TeacherNearChance, events.ResultLost, events.RunsNotLocked, events.TrackerFailed, events.NotKept)
FIGURES = (
    "accuracy",
    "cross_entropy",
    "agreement",
    "calibration_error",
    "macro_f1",
    "perplexity",
    "kl",
    "spearman",
    "rmse",
    "r2",
)


class TrainEvents:
    """Writes what happens to students, an event a line.

    Args:
        night: that writes them.
    """

    def __init__(self, night: Night):
        self._night = night
        self._told_s: dict[str, float] = {}
        self._remarks = TrainProgress(_Remarks(night))  # what is to be said of an evaluation

    def report(self, event: events.Event) -> None:
        """Take an event; of those that come each second, one in a while."""
        name = event_name(type(event))
        if isinstance(event, events.Progress):
            self._night.at(event.students, event.done_steps, event.total_steps, "steps")
        if isinstance(event, events.Progress | events.Loading):
            now_s = time.monotonic()
            if now_s - self._told_s.get(name, -TELL_EVERY_S) < TELL_EVERY_S:
                return
            self._told_s[name] = now_s
        level: Level = "warning" if isinstance(event, WARNINGS) else "info"
        self._night.event(name, "error" if isinstance(event, events.StudentFailed) else level, **fields(event))
        if isinstance(event, events.EpochDone | events.WithinEpoch):
            self._remarks.report(event)


class _Remarks:
    """Passes on notes alone, for all else is an event. A `Watcher`."""

    def __init__(self, night: Night):
        self.note = night.note

    def begin(self, name: str, total: int | None, done: int = 0, unit: str | None = None) -> None: ...

    def advance(self, count: int, detail: str = "") -> None: ...

    def detail(self, text: str) -> None: ...

    def complete(self) -> None: ...


def event_name(kind: type) -> str:
    """Return what an event is called in a log.

    >>> event_name(events.StudentFinished)
    'student_finished'
    """
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def fields(event: events.Event) -> dict[str, Any]:
    """Return the fields of an event, as JSON has them; what a run was made from is left out, which its job says."""
    return {each.name: _value(getattr(event, each.name)) for each in dataclasses.fields(event)}


def _value(value: Any) -> Any:
    if isinstance(value, RunRecord):
        return value.model_dump(mode="python", exclude={"identity", "taken", "halving"})
    if isinstance(value, BaseModel):
        return value.model_dump(mode="python")
    return told(value) if isinstance(value, StillroomError) else value


def tell_summary(summary: Summary, night: Night) -> None:
    """Tell what became of all students of a job, as an event and in figures."""
    counts = {"finished": 0, "stopped": 0, "failed": len(summary.errors)}
    for record in summary.records:
        counts[record.status] += 1
        night.figures.set("train_seconds", record.seconds, student=record.student)
        if record.rows_per_s is not None:
            night.figures.set("train_rows_per_second", record.rows_per_s, student=record.student)
        for figure in FIGURES:
            if (value := getattr(record, figure)) is not None:
                night.figures.set("train_figure", value, student=record.student, figure=figure)
    for status, count in counts.items():
        night.figures.add("train_students", count, status=status)  # a chain has several trainings
    failed = {name: told(error) for name, error in summary.errors.items()}
    night.event("trained", "error" if failed else "info", **counts, errors=failed)
