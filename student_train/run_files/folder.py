"""The folder of a run in the hands of the process that trains it: which files are written when, and in which order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from storage.digests import digest
from storage.format.objects import LocalObjects
from student_train.run_files.checkpoint import (
    Tensors,
    commit_checkpoint,
    delete_checkpoint,
    settle_checkpoint,
    stage_checkpoint,
    write_checkpoint,
)
from student_train.run_files.history import STEPS_FOLDER, write_metrics, write_steps
from student_train.run_files.locks import locked
from student_train.run_files.position import Position
from student_train.run_files.predictions import HeldTable, write_predictions
from student_train.run_files.predictions_file import PREDICTIONS_FILE
from student_train.run_files.records import (
    JOB_FILE,
    RESULT_FILES,
    RUN_FILE,
    EpochMetrics,
    RunRecord,
    lost_files,
    read_record,
    write_record,
)
from student_train.students import Blueprint, save_student


class RunFolder:
    """A run's folder that is written.

    Args:
        path: of the folder.
        identity: what the run is made from.

    Attributes:
        writes: whether it keeps what it is given; else nobody need compute it.
    """

    writes = True

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path = path
        self.identity = identity

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the folder, so that two commands do not train one student at a time; False: its disk has no locks.

        Raises:
            TryAgain: another process holds it.
            StorageFailure: it cannot be written.
        """
        with locked(self.path / ".lock", self.path.name) as held:
            objects = LocalObjects(self.path)
            for info in objects.leftovers():  # what a kill left half written; nobody else writes here now
                objects.delete(info.path)
            yield held

    def settle_checkpoint(self) -> None:
        """Commit or drop what a kill has left staged, of a stack whose folders lie beside this one."""
        settle_checkpoint(self.path)

    def forget_record(self) -> None:
        """Delete the record of a run that is to go on; and its checkpoint and steps, where it is to begin anew.

        It is where its job was changed since, or what it had finished with is lost.
        """
        record = read_record(self.path)
        lost = record is not None and record.status == "finished" and lost_files(self.path, record)
        if record is not None and (record.identity != self.identity or lost):
            delete_checkpoint(self.path)
            for path in (self.path / STEPS_FOLDER).glob("*.parquet"):
                LocalObjects(path.parent).delete(path.name)
        LocalObjects(self.path).delete(RUN_FILE)

    def write_checkpoint(self, position: Position, tensors: Tensors) -> None:
        """Write where the run is, durable when this returns; of a stack it counts once it is committed."""
        write = stage_checkpoint if position.stack else write_checkpoint
        write(self.path, position, tensors, self.identity)

    def commit_checkpoint(self) -> None:
        """Let a stack's checkpoint count."""
        commit_checkpoint(self.path)

    def write_epoch(
        self, history: Sequence[EpochMetrics], names: Sequence[str], rates: Sequence[float], steps_SK: Any
    ) -> None:
        """Write the figures of an epoch's steps so far, and of all evaluations.

        Args:
            history: of all evaluations so far.
            names: of the objective's terms.
            rates: learning rate of each of the epoch's steps so far.
            steps_SK: losses of each of them, (S, 1 + K).
        """
        write_steps(self.path, history[-1].epoch, names, rates, steps_SK)
        write_metrics(self.path, history)

    def write_predictions(self, predictions: HeldTable) -> None:
        """Write what the student says of the held rows."""
        write_predictions(self.path, predictions)

    def write_result(
        self,
        record: RunRecord,
        blueprint: Blueprint,
        weights: Mapping[str, Tensor],
        job: str,
        tokenizer: bytes | None = None,
        adapter: Mapping[str, Tensor] | None = None,
        made: dict[str, Any] | None = None,
    ) -> RunRecord:
        """Write a student and its job, and last the record, which says that all the rest is there; return it."""
        save_student(self.path, blueprint, weights, tokenizer, adapter, made)
        LocalObjects(self.path).put(JOB_FILE, job.encode())
        student = digest((self.path / RESULT_FILES[0]).read_bytes())
        predictions = self.path / PREDICTIONS_FILE
        said = digest(predictions.read_bytes()) if predictions.exists() else None
        record = record.model_copy(update={"student_digest": student, "predictions_digest": said})
        write_record(self.path, record)
        return record

    def write_failure(self, record: RunRecord) -> None:
        """Write that the run failed; its last checkpoint stays."""
        write_record(self.path, record)

    def delete_checkpoint(self) -> None:
        """Delete the checkpoint of a run that needs none any more."""
        delete_checkpoint(self.path)


class UnwrittenFolder(RunFolder):
    """A run's folder to the processes that train the same student and leave its files to the first one."""

    writes = False

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        yield True  # nothing to hold: the first process does

    def settle_checkpoint(self) -> None:
        pass

    def forget_record(self) -> None:
        pass

    def write_checkpoint(self, position: Position, tensors: Tensors) -> None:
        pass

    def commit_checkpoint(self) -> None:
        pass

    def write_epoch(
        self, history: Sequence[EpochMetrics], names: Sequence[str], rates: Sequence[float], steps_SK: Any
    ) -> None:
        pass

    def write_predictions(self, predictions: HeldTable) -> None:
        pass

    def write_result(
        self,
        record: RunRecord,
        blueprint: Blueprint,
        weights: Mapping[str, Tensor],
        job: str,
        tokenizer: bytes | None = None,
        adapter: Mapping[str, Tensor] | None = None,
        made: dict[str, Any] | None = None,
    ) -> RunRecord:
        return record

    def write_failure(self, record: RunRecord) -> None:
        pass

    def delete_checkpoint(self) -> None:
        pass
