"""The trackers beside the Parquet files: TensorBoard and MLflow, each imported only where a job asks for it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

from storage.digests import fingerprint
from storage.errors import BadRequest
from storage.format.objects import LocalObjects
from storage.format.sealed import is_sealed, read_json, seal_json
from storage.options import redacted
from student_train.preparing.installed import mlflow, tensorboard
from student_train.preparing.request import PreparedRun

Status = Literal["FINISHED", "KILLED", "FAILED"]  # MLflow's words

MLFLOW_FILE = "mlflow.json"  # which MLflow run is a student's
MLFLOW_BATCH = 1000  # metrics of one request, at most
LAST_TAG = "epoch/rows_per_s"  # written last of an epoch, so where it is, all others are


class Point(NamedTuple):
    """A scalar after so many steps of the run, from 1."""

    tag: str
    value: float
    step: int


class Tracker(Protocol):
    """What is told of every student's epochs, by `student train`'s first process alone."""

    def write(self, student: PreparedRun, points: Sequence[Point]) -> None:
        """Write all points of an epoch; they are kept when this returns. Raises whatever the library does."""

    def end(self, student: PreparedRun, status: Status) -> None:
        """Close what was opened for a student, if anything was."""


class TensorBoard:
    """Event files in the student's folder."""

    def __init__(self) -> None:
        self._module = tensorboard()
        self._writers: dict[str, Any] = {}

    def write(self, student: PreparedRun, points: Sequence[Point]) -> None:
        name = student.options.name
        if name not in self._writers:
            # Points of an epoch that a kill made to be trained twice, or of another job before, are taken back.
            self._writers[name] = self._module.SummaryWriter(
                str(student.folder / "tensorboard"), purge_step=points[0].step
            )
        for point in points:
            self._writers[name].add_scalar(*point)
        self._writers[name].flush()

    def end(self, student: PreparedRun, status: Status) -> None:
        if (writer := self._writers.pop(student.options.name, None)) is not None:
            writer.close()


class MLflow:
    """One MLflow run for each student, found again after an interruption by the file in the student's folder."""

    def __init__(self, uri: str, experiment: str):
        self._module = mlflow()
        self._place = [uri, experiment]
        try:
            self._client = self._module.MlflowClient(uri)
            found = self._client.get_experiment_by_name(experiment)
            self._experiment = self._client.create_experiment(experiment) if found is None else found.experiment_id
        except Exception as error:  # whatever the store raises
            raise BadRequest(
                f"MLflow cannot open {redacted(uri)}",  # of a database it has a password
                found=f"{type(error).__name__}: {error}".replace(uri, redacted(uri)),
                expected="a folder, or the URI of a server or database that answers",
                do="correct [track] mlflow, or drop it",
            ) from None
        self._runs: dict[str, tuple[str, int]] = {}  # run id, last step that is there, by student

    def write(self, student: PreparedRun, points: Sequence[Point]) -> None:
        name = student.options.name
        if name not in self._runs:
            self._runs[name] = self._resumed(student) or self._begun(student)
        run_id, last_step = self._runs[name]
        if points[-1].step <= last_step:
            return  # an epoch that a kill made to be trained twice
        now_ms = int(time.time() * 1000)
        metrics = [self._module.entities.Metric(tag, value, now_ms, step) for tag, value, step in points]
        for start in range(0, len(metrics), MLFLOW_BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + MLFLOW_BATCH])

    def end(self, student: PreparedRun, status: Status) -> None:
        if (run := self._runs.pop(student.options.name, None)) is not None:
            self._client.set_terminated(run[0], status)

    def _resumed(self, student: PreparedRun) -> tuple[str, int] | None:
        path = student.folder / MLFLOW_FILE
        data = path.read_bytes() if path.exists() else b"{}"
        found = read_json(path) if is_sealed(data) else json.loads(data)  # of before there were seals
        if found.get("of") != self._meaning(student):
            return None  # of another job, or kept elsewhere
        run_id: str = found["run_id"]
        self._client.update_run(run_id, status="RUNNING")
        last = self._client.get_metric_history(run_id, LAST_TAG)
        return run_id, max((metric.step for metric in last), default=0)

    def _begun(self, student: PreparedRun) -> tuple[str, int]:
        run_id: str = self._client.create_run(self._experiment, run_name=student.options.name).info.run_id
        params = [
            self._module.entities.Param(key, value if isinstance(value, str) else json.dumps(value))
            for key, value in student.options.model_dump(mode="json", exclude_none=True).items()
        ]
        self._client.log_batch(run_id, params=params)
        about = {"run_id": run_id, "of": self._meaning(student)}
        # last: a run that was begun by halves is not gone on with
        LocalObjects(student.folder).put(MLFLOW_FILE, seal_json(about))
        return run_id, 0

    def _meaning(self, student: PreparedRun) -> str:
        return fingerprint([self._place, student.identity])
