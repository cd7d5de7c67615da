"""A run: one student's way from its first step, or last checkpoint, to its record, and what it leaves on disk."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storage.encodings import Encoding
from storage.errors import BadRequest, DivergedLoss, StillroomError
from storage.format.objects import LocalObjects
from student_train.feed.batches import ArrayKey
from student_train.options.sections import StudentOptions
from student_train.run_files.checkpoint import (
    Position,
    Tensors,
    commit_checkpoint,
    delete_checkpoint,
    read_checkpoint,
    stage_checkpoint,
    write_checkpoint,
)
from student_train.run_files.history import write_metrics, write_steps
from student_train.run_files.predictions import HeldTable
from student_train.run_files.records import JOB_FILE, EpochMetrics, Held, RunRecord, write_record
from student_train.running.latency import Latency
from student_train.stepping.parallel import ALONE, Parallel
from student_train.stepping.schedule import learning_rate_at
from student_train.stepping.state import Randomness, TrainState, below
from student_train.students import Blueprint, Student, save_student


@dataclass(frozen=True)
class RunBasis:
    """All that one student is trained from, its rows apart.

    Attributes:
        options: its section of the job.
        blueprint: what it is.
        encodings: of the teachers whose soft targets it needs.
        feature_shapes: of one row of each feature.
        folder: where it leaves its files.
        identity: what it is made from; a checkpoint of anything else is refused.
        device: where it is trained.
        held: the held rows, and what is known of each without the student.
        cache: where rows are read.
        job: the TOML that trains this student alone.
        tops_N: the class that its teacher gives each held row, to agree with; None without such a teacher.
        parallel: this process among those that train it; only the first one writes.
        recorded: whether its steps are to be recorded as CUDA graphs.
    """

    options: StudentOptions
    blueprint: Blueprint
    encodings: dict[str, Encoding]
    feature_shapes: dict[ArrayKey, tuple[int, ...]]
    folder: Path
    identity: dict[str, Any]
    device: torch.device
    held: HeldTable
    cache: str
    job: str
    tops_N: Tensor | None = None
    parallel: Parallel = ALONE
    recorded: bool = False


class Run:
    """A student while it is trained.

    Args:
        basis: what is trained, from what.
        num_rows: of an epoch.

    Attributes:
        state: what its steps change.
        epoch, step: of the next step, both from 0; `step` may be the number of an epoch's steps.
        history: one entry per whole epoch.
        tally: of the epoch that was interrupted: what `Tally.state` gave, or empty.
        stacked: whether it steps in a stack; None before it is known.

    Raises:
        StaleCache: the folder holds a run of another job.
        BadRequest: the student does not fit.
    """

    def __init__(self, basis: RunBasis, num_rows: int):
        self.basis = basis
        self.options = options = basis.options
        self.state = TrainState.fresh(options, basis.blueprint, basis.feature_shapes, basis.device)
        position = Position()
        self._best: Tensors | None = None
        self.tally: Tensors = {}
        found = read_checkpoint(basis.folder, basis.identity)
        if found is not None:
            position, tensors = found
            self.state.restore(tensors)
            self._best = below("best.", tensors) or None
            self.tally = {name: tensor for name, tensor in tensors.items() if name.startswith("tally.")}
        self.num_rows = num_rows
        self._written_at: int | None = None
        self.steps = -(-num_rows // options.batch_size)
        self.epoch, self.step = position.epoch, position.step
        self._randomise()
        self.history = list(position.history)
        self._best_epoch, self._best_score = position.best_epoch, position.best_score
        self.stacked = position.stacked if found is not None else None
        self.seconds, self.epoch_seconds = position.seconds, position.epoch_seconds
        self._rate_at = partial(
            learning_rate_at,
            peak=options.peak_learning_rate,
            warmup_steps=options.warmup_epochs * self.steps,
            total_steps=self.total_steps,
            schedule=options.schedule,
        )

    def _randomise(self) -> None:
        """Give each process but the first its own random numbers: their rows differ, and so must their dropout."""
        rank, size = self.basis.parallel.rank, self.basis.parallel.size
        if rank:
            torch.manual_seed(hash((self.options.seed, self.epoch, self.step, rank, size)) % 2**63)
            self.state.randomness = Randomness(self.basis.device)

    @property
    def name(self) -> str:
        """Return the student's name."""
        return self.options.name

    @property
    def total_steps(self) -> int:
        """Return the number of steps of the whole run."""
        return self.options.epochs * self.steps

    @property
    def done_steps(self) -> int:
        """Return how many of them are taken."""
        return self.epoch * self.steps + self.step

    @property
    def rate(self) -> float:
        """Return the learning rate of the next step."""
        return self._rate_at(self.done_steps)

    @property
    def ended(self) -> bool:
        """Whether it has had all its epochs, or has run out of patience."""
        patience, best = self.options.patience_epochs, self._best_epoch
        return self.epoch >= self.options.epochs or (
            patience is not None and best is not None and self.epoch - best >= patience
        )

    def due_for_checkpoint(self) -> bool:
        """Whether the job wants a checkpoint after the steps so far."""
        every = self.options.checkpoint_every_steps
        return every is not None and self.done_steps % every == 0 and self.done_steps != self._written_at

    def checkpoint(self, tally: Tensors, stack: Sequence[str] = ()) -> None:
        """Write where it is, durable when this returns.

        Args:
            tally: of the epoch that it is in; empty before its first step.
            stack: names of those it is in a stack with; then it counts only when `commit_checkpoint` says so.
        """
        where = Position(
            epoch=self.epoch,
            step=self.step,
            history=tuple(self.history),
            best_epoch=self._best_epoch,
            best_score=self._best_score,
            stacked=bool(self.stacked),
            stack=tuple(stack),
            seconds=self.seconds,
            epoch_seconds=self.epoch_seconds,
        )
        self._written_at = self.done_steps
        if not self.basis.parallel.writes:
            return
        best = {f"best.{name}": tensor for name, tensor in (self._best or {}).items()}
        write = stage_checkpoint if stack else write_checkpoint
        write(self.basis.folder, where, self.state.tensors() | best | tally, self.basis.identity)

    def commit_checkpoint(self) -> None:
        """Let what was written with a stack count."""
        commit_checkpoint(self.basis.folder)

    def end_epoch(self, held: Held, *, view: str, means: list[float], shares: list[float], steps_SK: Any) -> None:
        """Add an epoch to the history and go on to the next.

        Args:
            held: figures on the held rows.
            view: that the epoch has shown.
            means: losses over the epoch's rows, the objective's first.
            shares: of each term in the gradient.
            steps_SK: losses of each step, (S, 1 + K).

        Raises:
            DivergedLoss: the held rows have a loss that is not finite.
        """
        names = self.state.objective.names
        metrics = EpochMetrics(
            **held.model_dump(),
            epoch=self.epoch + 1,
            view=view,
            train_loss=means[0],
            terms=dict(zip(names, means[1:], strict=True)),
            shares=dict(zip(names, shares, strict=True)),
            learning_rate=self._rate_at((self.epoch + 1) * self.steps - 1),
            seconds=self.epoch_seconds,
            rows_per_s=self.num_rows / max(self.epoch_seconds, 1e-9),
        )
        if metrics.cross_entropy is not None and not isfinite(metrics.cross_entropy):
            raise self.diverged(f"cross-entropy on the held rows = {metrics.cross_entropy}")
        self.history.append(metrics)
        if self.options.patience_epochs is not None:
            score = self._score(metrics)
            if self._best_score is None or score > self._best_score:
                self._best_epoch, self._best_score = self.epoch + 1, score
                self._best = {n: t.detach().clone() for n, t in self.state.exported.state_dict().items()}
        rates = [self._rate_at(self.epoch * self.steps + step) for step in range(len(steps_SK))]
        if self.basis.parallel.writes:
            write_steps(self.basis.folder, self.epoch + 1, names, rates, steps_SK)
            write_metrics(self.basis.folder, self.history)
        self.epoch, self.step, self.epoch_seconds = self.epoch + 1, 0, 0.0

    def finish(self, latency: Latency) -> RunRecord:
        """Write the result, and last the record, which says that all the rest is there."""
        record = self._write_result("finished", latency)
        if self.basis.parallel.writes:
            delete_checkpoint(self.basis.folder)
        return record

    def result(self) -> Student:
        """Return the student that is written, in evaluation mode: of the best epoch where the job has patience."""
        student = self.state.exported
        if self._best is not None:
            student = copy.deepcopy(student)
            student.load_state_dict(self._best)
        return student.eval()

    def set_aside(self, reason: str, halving: dict[str, Any], latency: Latency) -> RunRecord:
        """Write the result so far of a student that others have outrun; its checkpoint stays.

        Args:
            reason: why it is stopped.
            halving: the section of the job that decided so.
            latency: how fast it answers.
        """
        return self._write_result("stopped", latency, error=reason, halving=halving)

    def fail(self, error: StillroomError) -> RunRecord:
        """Write that it failed, and why; its last checkpoint stays."""
        record = failure_record(self.basis, error)
        if self.basis.parallel.writes:
            write_record(self.basis.folder, record)
        return record

    def diverged(self, found: str) -> DivergedLoss:
        """Return the error of a loss that is not finite."""
        return DivergedLoss(
            f"student {self.name} diverged in epoch {self.epoch + 1}",
            found=found,
            expected="a finite number",
            do=f"lower learning_rate (now {self.options.peak_learning_rate:g}), lengthen warmup_epochs, "
            "or set clip_norm",
        )

    def _write_result(self, status: Any, latency: Latency, **about: Any) -> RunRecord:
        weights = dict(self.state.exported.state_dict()) if self._best is None else self._best
        chosen = self.history[-1] if self._best_epoch is None else self.history[self._best_epoch - 1]
        record = RunRecord(
            **chosen.model_dump(include=set(Held.model_fields)),
            student=self.name,
            status=status,
            architecture=self.options.architecture,
            parameters=self.state.num_parameters,
            epoch=chosen.epoch,
            epochs=len(self.history),
            seconds=self.seconds,
            rows_per_s=self.num_rows * len(self.history) / max(sum(m.seconds for m in self.history), 1e-9),
            device=str(self.basis.device),
            torch_version=torch.__version__,
            cache=self.basis.cache,
            identity=self.basis.identity,
            **latency._asdict(),
            **about,
        )
        if self.basis.parallel.writes:
            save_student(self.basis.folder, self.basis.blueprint, weights)
            LocalObjects(self.basis.folder).put(JOB_FILE, self.basis.job.encode())
            write_record(self.basis.folder, record)
        return record

    def _score(self, metrics: EpochMetrics) -> float:
        score = metrics.agreement if metrics.accuracy is None else metrics.accuracy
        if score is None:
            raise BadRequest(
                f"student {self.name} has patience_epochs, but no figure to be patient about",
                found="held rows with neither labels nor a teacher",
                do="drop patience_epochs, or name validation rows that have one",
            )
        return score


def failure_record(basis: RunBasis, error: StillroomError) -> RunRecord:
    """Return the record of a failed run."""
    return RunRecord(
        student=basis.options.name,
        status="failed",
        architecture=basis.options.architecture,
        device=str(basis.device),
        torch_version=torch.__version__,
        error=str(error),
        identity=basis.identity,
    )
