"""What a run reports, told to TensorBoard and MLflow once more where the job's `[track]` asks for it.

Training knows nothing of it: `tracking` listens to what is reported, and reads the steps of an epoch from its Parquet
file. So it can change no weight. A tracker that fails while students train (a full disk, a server that is gone) is told
once and is off for the rest of the command, since each further try may wait for minutes; the students go on. The next
command tries it again.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from student_train.options.sections import TrackOptions
from student_train.preparing.request import PreparedRun
from student_train.run_files.history import read_steps
from student_train.run_files.records import SEVERAL, EpochMetrics
from student_train.running.events import (
    EpochDone,
    Event,
    Report,
    StudentFailed,
    StudentFinished,
    StudentStopped,
    TrackerFailed,
    WithinEpoch,
)
from student_train.running.tracking.trackers import MLflow, Point, Status, TensorBoard, Tracker


@contextlib.contextmanager
def tracking(options: TrackOptions, students: Sequence[PreparedRun], report: Report) -> Iterator[Report]:
    """Yield a report that tells the job's trackers too.

    Raises:
        BadRequest: a package is missing, or MLflow's store cannot be opened.
    """
    trackers = _open(options)
    if not trackers:
        yield report
        return
    heard = _Tracking(trackers, {student.options.name: student for student in students}, report)
    try:
        yield heard.report
    finally:
        heard.close()


def _open(options: TrackOptions) -> dict[str, Tracker]:
    """Return the trackers that a job asks for, by name; nothing is imported for those that it does not."""
    trackers: dict[str, Tracker] = {}
    if options.tensorboard:
        trackers["TensorBoard"] = TensorBoard()
    if options.mlflow is not None:
        trackers["MLflow"] = MLflow(options.mlflow, options.experiment or "stillroom")
    return trackers


class _Tracking:
    def __init__(self, trackers: dict[str, Tracker], students: dict[str, PreparedRun], report: Report):
        self._trackers, self._students, self._report = trackers, students, report
        self._told: dict[str, int] = {}  # steps of each student

    def report(self, event: Event) -> None:
        self._report(event)  # first: a tracker may take its time
        match event:
            case EpochDone() | WithinEpoch():
                student, told = self._students[event.student], self._told.get(event.student, 0)
                points = epoch_points(student.folder, event.metrics, told)
                self._told[event.student] = event.metrics.step or told
                self._each(lambda tracker: tracker.write(student, points))
            case StudentFinished():
                self._end(event.record.student, "FINISHED")
            case StudentStopped():
                self._end(event.record.student, "KILLED")
            case StudentFailed():
                self._end(event.student, "FAILED")

    def close(self) -> None:
        """Close what is still open: of students that were interrupted."""
        for name in self._students:
            self._end(name, "KILLED")

    def _end(self, name: str, status: Status) -> None:
        self._each(lambda tracker: tracker.end(self._students[name], status))

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):  # a copy: one that fails is taken out
            try:
                tell(tracker)
            except Exception as error:  # whatever a library raises of a disk or a server
                del self._trackers[name]
                self._report(TrackerFailed(name, f"{type(error).__name__}: {error}"))


def epoch_points(folder: Path, metrics: EpochMetrics, told: int = 0) -> list[Point]:
    """Return all scalars of an evaluation: `step/…` of each step of its epoch, `epoch/…` after the last one.

    Args:
        folder: of the run, where the epoch's steps are.
        metrics: of the evaluation.
        told: steps of the run that need not be told again.
    """
    steps = read_steps(folder, metrics.epoch)
    end = metrics.epoch * len(steps) if metrics.step is None else metrics.step
    before = end - len(steps)
    points = [
        Point(_tag("step", column), value, before + row["step"] + 1)
        for row in steps.iter_rows(named=True)
        for column, value in row.items()
        if column not in ("epoch", "step") and before + row["step"] >= told
    ]
    whole: dict[str, float | None] = {f"term {name}": value for name, value in metrics.terms.items()}
    whole |= {f"share {name}": value for name, value in metrics.shares.items()}
    whole |= metrics.model_dump(exclude={"epoch", "step", "epochs_done", "view", "terms", "shares", *SEVERAL})
    whole |= metrics.named_apart
    return points + [Point(_tag("epoch", key), value, end) for key, value in whole.items() if value is not None]


def _tag(level: str, column: str) -> str:
    return f"{level}/" + re.sub(r"[^\w.-]", "_", column)  # characters that both take in a name
