"""The record of a settled run, `run.json`: it says that all the other files of its folder are there. No torch here.

Written by `running/run.py` through `folder.py`, last of all, or by `running/one_pass.py` where a run could not begin;
read by `preparing/prepare.py`, `comparison.py` and `comparing/runs.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from storage.digests import digest
from storage.errors import CorruptObject
from storage.format.objects import LocalObjects
from storage.format.sealed import read_json, seal_json
from storage.options import Options
from storage.views import PLAIN
from student_train.options.steps_taken import StepsTaken

RUN_FILE = "run.json"
JOB_FILE = "job.toml"  # as `options/job_text.py` writes it
CHECKPOINT_FILE = "checkpoint.json"  # of a run that is not settled
SEVERAL = ("by_dataset", "by_teacher", "rmse_of")  # figures of `Measured` that are apart for some
RESULT_FILES = ("student.json", "student.safetensors")  # as `students/files.py` writes them, which imports torch


class Held(Options):
    """A student's figures on the held rows; None where rows have no label, or no teacher to agree with.

    Attributes:
        accuracy: share of rows whose top class is the label.
        cross_entropy: to the labels, nats.
        calibration_error: expected calibration error over 15 bins of confidence.
        agreement: share of rows whose top class is the teacher's.
        kl: Σ p log(p/q), p the teacher and q the student at temperature 1, nats; of language models alone. Where not
            all of the teacher's classes are stored, those that are not count as one (`RunRecord.kl_over`).
        perplexity: exp of the cross-entropy; of language models alone.
        cosine: mean over rows to the teacher's vector; of vectors alone.
        spearman: rank correlation of the cosines of pairs of rows, the student's and the teacher's; likewise.
        retrieval: share of rows whose nearest other row is the teacher's; likewise (`running/measuring/vectors.py`).
        rmse: root of the mean squared error over rows, in the unit of the number; of several, over rows and numbers,
            each in its own deviations in the dataset, for their units may differ; of numbers alone.
        r2: mean over the numbers of 1 − squared errors / spread around their mean; likewise.
        teacher_rmse: that of the teacher that it is measured beside, over the same rows.
        macro_f1: mean over the classes that have a label of F1, 2 · right / (said + there); of texts alone.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")  # a loss may be NaN, which JSON has no word for

    accuracy: float | None = None
    cross_entropy: float | None = None
    calibration_error: float | None = None
    agreement: float | None = None
    macro_f1: float | None = None
    perplexity: float | None = None
    kl: float | None = None
    cosine: float | None = None
    spearman: float | None = None
    retrieval: float | None = None
    rmse: float | None = None
    r2: float | None = None
    teacher_rmse: float | None = None


class BesideTeacher(Options):
    """How far a student is from one of its several teachers.

    Attributes:
        agreement, kl, cosine, spearman, retrieval, teacher_rmse: as of `Held`.
        over: over which classes `kl` is taken, in words.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")

    agreement: float | None = None
    kl: float | None = None
    cosine: float | None = None
    spearman: float | None = None
    retrieval: float | None = None
    teacher_rmse: float | None = None
    over: str | None = None

    @model_serializer(mode="wrap")
    def _known(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return it without what its task has not: students of classes have no figures of vectors, nor the reverse."""
        of_classes = self.agreement is not None or self.kl is not None
        return {
            name: value
            for name, value in dump(self).items()
            if value is not None or (of_classes and name in ("agreement", "kl", "over"))
        }


class HeldOf(Held):
    """Figures on some held rows; and, of a student of several teachers or numbers, those of each.

    Attributes:
        rmse_of: of several numbers, the root of each one's mean squared error in its own unit, by name; else empty.
        by_teacher: of one teacher it is empty, and not written; the first is in it, and in `agreement` and `kl` too.
    """

    by_teacher: dict[str, BesideTeacher] = Field(default_factory=dict)
    rmse_of: dict[str, float] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _of_several(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = dump(self)
        for name in SEVERAL:
            if not getattr(self, name, None):
                found.pop(name, None)
        return found

    def only_held(self) -> dict[str, float]:
        """Return the figures of `Held` that are known."""
        return {name: value for name in Held.model_fields if (value := getattr(self, name)) is not None}

    @property
    def named_by_teacher(self) -> dict[str, float]:
        """Return what is known beside each teacher, by names such as "kl beside law"."""
        return {
            beside(name, teacher): value
            for teacher, own in self.by_teacher.items()
            for name, value in own.model_dump(exclude={"over"}, exclude_none=True).items()
        }


class OfDataset(HeldOf):
    """The figures on the held rows of one of several datasets, those that are sums over sites.

    Attributes:
        rows: how many are held of it.
    """

    rows: int


class Measured(HeldOf):
    """The figures on all held rows; and, where these are of several datasets, on those of each.

    Attributes:
        by_dataset: of one dataset it is empty, and not written.
    """

    by_dataset: dict[str, OfDataset] = Field(default_factory=dict)

    @property
    def named_apart(self) -> dict[str, float]:
        """Return what is known beside each teacher, of each number and dataset, by names such as "accuracy of law"."""
        return (
            self.named_by_teacher
            | {f"rmse of {number}": value for number, value in self.rmse_of.items()}
            | {
                f"{name} of {dataset}": value
                for dataset, own in self.by_dataset.items()
                for name, value in (own.only_held() | own.named_by_teacher).items()
            }
        )


def beside(figure: str, teacher: str) -> str:
    """Return the name of a figure that is taken beside one of several teachers."""
    return f"{figure} beside {teacher}"


class EpochMetrics(Measured):
    """One evaluation, after an epoch or in the middle of one.

    Attributes:
        epoch: which, from 1.
        step: of the run, how many are taken; None before that was kept.
        epochs_done: the same in epochs.
        view: of the rows that were trained on.
        train_loss: the objective, mean over the rows since the evaluation before, while they were trained on.
        terms: the same for each term, before its weight.
        shares: of each term's gradient among all terms' (norms over the weights), in the epoch's first step. A term
            with next to none teaches nothing.
        learning_rate: of the last step.
        seconds: of training since the evaluation before, evaluation apart.
        rows_per_s: trained rows a second.
    """

    epoch: int
    step: int | None = None
    epochs_done: float | None = None
    view: str = PLAIN
    train_loss: float
    terms: dict[str, float]
    shares: dict[str, float]
    learning_rate: float
    seconds: float
    rows_per_s: float


class RunRecord(Measured):
    """One settled student: finished, stopped or failed.

    Attributes:
        epoch, step: whose weights were exported: the last, or the best where the job asks for it.
        best_by: by which figure those are the best; None: they are the last.
        epochs, steps: how many were trained, the last epoch perhaps in part.
        epochs_done: the steps in epochs; None before that was kept.
        seconds: of training and evaluation, over all interruptions.
        latency_ms: of one row, after training and on the device of the training (`latency.py`).
        inference_rows_per_s: of batches, there and then.
        cache: where the rows were read.
        kl_over: against which teacher `kl` is, and over which classes.
        identity: what the run was made from: the student's options, fingerprints, rows.
        error: of a failed run; of a stopped one, why others outran it.
        halving: the section of the job that stopped it.
        taken: how its steps were taken; None of a failed run, and before format 2.
        job_digest: of its job file.
        student_digest: of its student.json, which has that of the weights; None before that was kept.
        predictions_digest: of its predictions.parquet; None before that was kept, or where nobody asked for them.
    """

    format_version: Literal[1, 2] = 2
    student: str
    status: Literal["finished", "failed", "stopped"]
    architecture: str
    parameters: int | None = None
    epoch: int | None = None
    step: int | None = None
    best_by: str | None = None
    epochs: int = 0
    steps: int | None = None
    epochs_done: float | None = None
    seconds: float = 0.0
    rows_per_s: float | None = None
    latency_ms: float | None = None
    inference_rows_per_s: float | None = None
    device: str
    torch_version: str
    cache: str | None = None
    kl_over: str | None = None
    error: str | None = None
    halving: dict[str, Any] | None = None
    taken: StepsTaken | None = None
    job_digest: str | None = None
    student_digest: str | None = None
    predictions_digest: str | None = None
    identity: dict[str, Any]


def write_record(folder: Path, record: RunRecord) -> None:
    """Write a run's record: from now on it is settled."""
    LocalObjects(folder).put(RUN_FILE, seal_json(record.model_dump(mode="json")))


def read_record(folder: Path) -> RunRecord | None:
    """Return the record of a run, or None where there is none.

    Raises:
        CorruptObject: the file is not one, or not as it was written.
        UnsupportedFormat: it was written by a later format.
    """
    path = folder / RUN_FILE
    if not path.exists():
        return None
    try:
        return RunRecord.model_validate_json(json.dumps(read_json(path)))
    except (OSError, ValueError) as error:
        raise CorruptObject(
            f"{path} is not the record of a run", found=str(error), do=f"delete {folder} and train this student again"
        ) from None


def lost_files(folder: Path, record: RunRecord) -> tuple[str, ...]:
    """Return which files of a trained student are gone, or another's, although its record says that they are there."""
    if record.status == "failed":
        return ()
    gone = tuple(name for name in RESULT_FILES if not (folder / name).exists())
    # Weights of another run beside this record would pass for its own: a digest of their own they have.
    if not gone and record.student_digest not in (None, digest((folder / RESULT_FILES[0]).read_bytes())):
        return (f"its own {RESULT_FILES[0]}",)
    return gone


def read_job(folder: Path, record: RunRecord | None) -> str | None:
    """Return the job that repeats a run, or None where there is none.

    Raises:
        CorruptObject: it is not the one of its record.
    """
    path = folder / JOB_FILE
    if not path.exists():
        return None
    try:
        data = path.read_bytes()
        if record is not None and record.job_digest not in (None, digest(data)):
            raise ValueError("its bytes do not match the digest in the record")
        return data.decode()
    except (OSError, ValueError) as error:
        raise CorruptObject(
            f"{path} is not what was written",
            found=str(error),
            do=f"delete it; what the run was made from, {RUN_FILE} says too",
        ) from None
