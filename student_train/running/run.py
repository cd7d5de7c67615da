"""A run: one student's way from its first step, or last checkpoint, to its record, and what it leaves on disk."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from storage.digests import digest
from storage.errors import DivergedLoss, StillroomError
from student_train.feed.devices import device_name
from student_train.options.steps_taken import StepsTaken, Stretch
from student_train.options.training import goodness
from student_train.preparing.request import PreparedRun
from student_train.run_files.checkpoint import Tensors, read_checkpoint
from student_train.run_files.position import Position
from student_train.run_files.predictions import HeldTable
from student_train.run_files.records import EpochMetrics, Measured, RunRecord
from student_train.running.measuring.latency import Latency
from student_train.stepping.parallel import ALONE, Parallel
from student_train.stepping.schedule import learning_rate_at
from student_train.stepping.state import Randomness, TrainState, below
from student_train.students import Student, settled
from student_train.students.starting.adapter import adapter_tensors, merged
from student_train.students.tensors import load_own, own_tensors


@dataclass(frozen=True)
class RunContext:
    """Where and beside whom a run is trained.

    Attributes:
        device: where.
        held: the held rows, and what is known of each without the student.
        cache: where rows are read.
        job: of how its steps were taken, the TOML that repeats it.
        tops_N: the class that its teacher gives each held row, to agree with; None without such a teacher.
        parallel: this process among those that train it.
        recorded: whether its steps are to be recorded as CUDA graphs.
    """

    device: torch.device
    held: HeldTable
    cache: str
    job: Callable[[StepsTaken], str]
    tops_N: Tensor | None = None
    parallel: Parallel = ALONE
    recorded: bool = False


class Run:
    """A student while it is trained.

    Args:
        prepared: what is trained, from what.
        context: where.

    Attributes:
        num_rows: of an epoch.
        state: what its steps change.
        epoch, step: of the next step, both from 0; `step` may be the number of an epoch's steps.
        history: one entry per evaluation.
        tally: of the epoch that was interrupted: what `Tally.state` gave, or empty.
        stacked: whether it steps in a stack; None before it is known.
        stretches: in whose company its steps were taken, one after another.
        recorded: whether its steps are replayed as CUDA graphs, as far as is known.

    Raises:
        StaleCache: the folder holds a run of another job.
        BadRequest: the student does not fit.
    """

    def __init__(self, prepared: PreparedRun, context: RunContext):
        self.prepared = prepared
        self.context = context
        self.options = options = prepared.options
        self.num_rows = prepared.train.num_rows
        self.state = TrainState.fresh(options, prepared.blueprint, prepared.feature_shapes, context.device)
        position = Position()
        self._best: Tensors | None = None
        self.tally: Tensors = {}
        found = read_checkpoint(prepared.folder, prepared.identity)
        if found is not None:
            position, tensors = found
            self.state.restore(tensors)
            self._best = below("best.", tensors) or None
            self.tally = {name: tensor for name, tensor in tensors.items() if name.startswith("tally.")}
        self._written_at: int | None = None
        self.steps = prepared.steps_an_epoch
        self.epoch, self.step = position.epoch, position.step
        self._randomise()
        self.history = list(position.history)
        # before there was more than one evaluation an epoch its number was kept, from 1
        self._best_row = position.best_row if position.best_epoch is None else position.best_epoch - 1
        self.stacked = position.stacked if found is not None else None
        self.stretches = list(position.stretches)
        self.recorded = context.recorded
        self.seconds, self.epoch_seconds = position.seconds, position.epoch_seconds
        self._rate_at = partial(
            learning_rate_at,
            peak=options.peak_learning_rate,
            warmup_steps=options.rise_steps(self.steps),
            total_steps=self.total_steps,
            schedule=options.schedule,
            floor=options.learning_rate_floor,
            decay_share=options.decay_share,
        )

    def _randomise(self) -> None:
        """Give each process but the first its own random numbers: their rows differ, and so must their dropout."""
        rank, size = self.context.parallel.rank, self.context.parallel.size
        if rank:
            # of whole numbers, so that hash() is the same in every process
            torch.manual_seed(hash((self.options.seed, self.epoch, self.step, rank, size)) % 2**63)
            self.state.randomness = Randomness(self.context.device)

    @property
    def name(self) -> str:
        """Return the student's name."""
        return self.options.name

    @property
    def total_steps(self) -> int:
        """Return the number of steps of the whole run."""
        return self.prepared.total_steps

    @property
    def done_steps(self) -> int:
        """Return how many of them are taken."""
        return self.epoch * self.steps + self.step

    @property
    def rate(self) -> float:
        """Return the learning rate of the next step."""
        return self._rate_at(self.done_steps)

    @property
    def measured_at(self) -> int:
        """Return how many steps were taken before its last evaluation."""
        if not self.history:
            return 0
        last = self.history[-1].step
        return len(self.history) * self.steps if last is None else last  # before that was kept: one after every epoch

    @property
    def ended(self) -> bool:
        """Whether it has had all its steps and their evaluation, or has run out of patience."""
        if self.done_steps >= self.total_steps:
            return self.measured_at == self.done_steps
        if self._best_row is None:
            return False
        epochs, evaluations = self.options.patience_epochs, self.options.patience_evaluations
        without_better = len(self.history) - 1 - self._best_row
        return (epochs is not None and self.epoch - self.history[self._best_row].epoch >= epochs) or (
            evaluations is not None and without_better >= evaluations
        )

    def due_within_epoch(self) -> bool:
        """Whether it is to be measured now, in the middle of an epoch: its job wants it, or its steps end here."""
        done, every = self.done_steps, self.options.evaluate_every_steps
        wanted = done == self.total_steps or (every is not None and done % every == 0)
        return wanted and 0 < self.step < self.steps and done != self.measured_at  # a whole epoch's is due in any case

    def step_with(self, students: Sequence[str]) -> None:
        """Note that from the next step on it steps with others, itself among them; alone, where they are none."""
        self.stacked = len(students) > 1
        if self.stretches and self.stretches[-1].from_step == self.done_steps:
            self.stretches.pop()  # no step was taken so
        if not self.stretches or self.stretches[-1].students != tuple(students):
            self.stretches.append(Stretch(from_step=self.done_steps, students=tuple(students)))

    def due_for_checkpoint(self) -> bool:
        """Whether the job wants a checkpoint after the steps so far."""
        every = self.options.checkpoint_every_steps
        # not twice at one step
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
            best_row=self._best_row,
            stacked=bool(self.stacked),
            stack=tuple(stack),
            stretches=tuple(self.stretches),
            seconds=self.seconds,
            epoch_seconds=self.epoch_seconds,
        )
        self._written_at = self.done_steps
        best = {f"best.{name}": tensor for name, tensor in (self._best or {}).items()}
        self.prepared.files.write_checkpoint(where, self.state.tensors() | best | tally)

    def commit_checkpoint(self) -> None:
        """Let what was written with a stack count."""
        self.prepared.files.commit_checkpoint()

    def measured(self, held: Measured, *, view: str, means: list[float], shares: list[float], steps_SK: Any) -> None:
        """Add an evaluation to the history, and after a whole epoch go on to the next.

        Args:
            held: figures on the held rows.
            view: that the epoch shows.
            means: losses over the rows since the evaluation before, the objective's first.
            shares: of each term in the gradient.
            steps_SK: losses of each step of the epoch so far, (S, 1 + K).

        Raises:
            DivergedLoss: the held rows have a loss that is not finite.
        """
        names = self.state.objective.names
        rows = self._rows_of(self.done_steps) - self._rows_of(self.measured_at)
        metrics = EpochMetrics(
            **held.model_dump(),
            epoch=self.epoch + 1,
            step=self.done_steps,
            epochs_done=self.done_steps / self.steps,
            view=view,
            train_loss=means[0],
            terms=dict(zip(names, means[1:], strict=True)),
            shares=dict(zip(names, shares, strict=True)),
            learning_rate=self._rate_at(self.done_steps - 1),
            seconds=self.epoch_seconds,
            rows_per_s=rows / max(self.epoch_seconds, 1e-9),  # a clock may not have moved
        )
        if metrics.cross_entropy is not None and not isfinite(metrics.cross_entropy):
            raise self.diverged(f"cross-entropy on the held rows = {metrics.cross_entropy}")
        self.history.append(metrics)
        if self.options.keeps_best and self._is_best():
            self._best_row = len(self.history) - 1
            # a copy: training goes on
            self._best = {n: t.detach().clone() for n, t in own_tensors(self.state.exported).items()}
        rates = [self._rate_at(self.epoch * self.steps + step) for step in range(len(steps_SK))]
        self.prepared.files.write_epoch(self.history, names, rates, steps_SK)
        self.epoch_seconds = 0.0
        if self.step == self.steps:
            self.epoch, self.step = self.epoch + 1, 0

    def _is_best(self) -> bool:
        """Return whether the last evaluation is better than all before."""
        if self._best_row is None:
            return True
        figure = self.prepared.best_by
        before, now = (getattr(self.history[row], figure) for row in (self._best_row, -1))
        return goodness(figure, now) > goodness(figure, before)

    def _rows_of(self, steps: int) -> int:
        """Return how many rows so many steps of the run have seen."""
        epochs, more = divmod(steps, self.steps)
        return epochs * self.num_rows + more * self.options.batch_size  # only an epoch's last batch is of another size

    def finish(self, latency: Latency) -> RunRecord:
        """Write the result, and last the record, which says that all the rest is there."""
        record = self._write_result("finished", latency)
        self.prepared.files.delete_checkpoint()  # last: until there is a record a kill goes on from it
        return record

    def result(self) -> Student:
        """Return the student that is written, in evaluation mode: of the best evaluation where the job asks for it.

        One with an adapter is a plain one that says the same.
        """
        return settled(merged(self._chosen())).eval()

    def _chosen(self) -> Student:
        student = self.state.exported
        if self._best is not None:
            student = copy.deepcopy(student)  # what is trained stays as it is
            load_own(student, self._best)
        return student

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
        record = failure_record(self.prepared, error, self.context.device)
        self.prepared.files.write_failure(record)
        return record

    def diverged(self, found: str) -> DivergedLoss:
        """Return the error of a loss that is not finite."""
        return DivergedLoss(
            f"student {self.name} diverged "
            + (f"within {self.done_steps} steps" if self.options.epochs is None else f"in epoch {self.epoch + 1}"),
            found=found,
            expected="a finite number",
            do=f"lower learning_rate (now {self.options.peak_learning_rate:g}), lengthen the warm-up, or set clip_norm",
        )

    def _write_result(self, status: Any, latency: Latency, **about: Any) -> RunRecord:
        """Write the weights that were chosen, and the record of all that led to them; return it."""
        student = self._chosen()
        adapter, plain = adapter_tensors(student), settled(merged(student))
        chosen = self.history[-1 if self._best_row is None else self._best_row]
        taken = self._steps_taken()
        job = self.context.job(taken)
        record = RunRecord(
            **chosen.model_dump(include=set(Measured.model_fields)),
            student=self.name,
            status=status,
            architecture=self.prepared.blueprint.architecture,
            parameters=self.state.num_parameters,
            epoch=chosen.epoch,
            step=chosen.step,
            best_by=None if self._best_row is None else self.prepared.best_by,
            epochs=self.epoch + (self.step > 0),
            steps=self.done_steps,
            epochs_done=self.done_steps / self.steps,
            seconds=self.seconds,
            rows_per_s=self._rows_of(self.done_steps) / max(sum(m.seconds for m in self.history), 1e-9),
            device=str(self.context.device),
            torch_version=torch.__version__,
            cache=self.context.cache,
            kl_over=None if self.prepared.against is None else str(self.prepared.against),
            identity=self.prepared.identity,
            taken=taken,
            job_digest=digest(job.encode()),
            **latency._asdict(),
            **about,
        )
        prepared = self.prepared
        return prepared.files.write_result(
            record, plain.blueprint, own_tensors(plain), job, prepared.tokenizer, adapter or None, prepared.made
        )

    def _steps_taken(self) -> StepsTaken:
        device = self.context.device
        return StepsTaken(
            # students of a stack end one after another: no step was taken in what was left of it
            stacks=tuple(s for s in self.stretches if s.from_step < self.done_steps) or tuple(self.stretches),
            recorded=self.recorded,
            threads=torch.get_num_threads() if device.type == "cpu" else None,
            processes=self.context.parallel.size,
            device=device_name(device),
            torch_version=torch.__version__,
        )


def failure_record(prepared: PreparedRun, error: StillroomError, device: torch.device) -> RunRecord:
    """Return the record of a failed run."""
    return RunRecord(
        student=prepared.name,
        status="failed",
        architecture=prepared.blueprint.architecture,
        device=str(device),
        torch_version=torch.__version__,
        error=str(error),
        identity=prepared.identity,
    )
