"""The training loop: one student, from its first step or its last checkpoint to its record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from storage.errors import BadRequest, DivergedLoss, Interrupted
from student_train.average import WeightAverage
from student_train.checkpoint import (
    Position,
    delete_checkpoint,
    gather_state,
    read_checkpoint,
    restore_state,
    write_checkpoint,
)
from student_train.evaluate import evaluate
from student_train.events import EpochDone, Progress, Report, StudentFinished, StudentStarted
from student_train.feed import Feed
from student_train.needs import ArrayKey, Shapes
from student_train.objective import Objective, Tapped, check_student, student_layers
from student_train.options import StudentOptions
from student_train.positions import accumulate_over_positions
from student_train.results import EpochMetrics, Held, RunRecord, write_metrics, write_record
from student_train.schedule import learning_rate_at
from student_train.step import Model, Step, accumulate_gradients
from student_train.students import Student, StudentSpec, build_student, save_student

REPORT_EVERY_S = 1.0  # each report reads the loss, which waits for the device
TALLY_STEPS = 64  # losses are summed on the device this many steps at a time


@dataclass(frozen=True)
class Run:
    """All that one student is trained from.

    Attributes:
        options: its section of the job.
        spec: what it is.
        feature_shapes: of one row of each feature.
        train: rows to learn from.
        held: rows to evaluate on, with labels; the teacher's top classes come with their selection.
        folder: where it leaves its files.
        identity: what it is made from; a checkpoint of anything else is refused.
        device: where it is trained.
    """

    options: StudentOptions
    spec: StudentSpec
    feature_shapes: dict[ArrayKey, tuple[int, ...]]
    train: Feed
    held: Feed
    folder: Path
    identity: dict[str, Any]
    device: torch.device


def train_student(run: Run, *, report: Report, stop: Callable[[], bool]) -> RunRecord:
    """Train one student and return its record.

    Args:
        run: what is trained, from what.
        report: told of steps and epochs.
        stop: asked after every step; if it says so, a checkpoint is written and the run can go on later.

    Raises:
        Interrupted: `stop` said so.
        DivergedLoss: the loss became NaN or infinite; the last checkpoint is from before that.
        StaleCache: the folder holds a run of another job.
    """
    options, device = run.options, run.device

    # The model. This is the one place that seeds torch's global generator; nothing else of this room draws from it
    # but the student's own weights and dropout.
    torch.manual_seed(options.seed)
    student = build_student(run.spec)
    layers = student_layers(options.objective)
    shapes = Shapes(check_student(student, layers, run.spec.input_shape, run.spec.num_classes), run.feature_shapes)
    objective = Objective(options.objective, shapes).to(device)
    student = student.to(device).train()
    average = WeightAverage(student, options.ema_decay) if options.ema_decay is not None else None
    exported: Student = student if average is None else average.student
    trained = [*student.parameters(), *objective.parameters()]
    optimizer = make_optimizer(options, trained)
    tapped: Callable[..., Any] = Tapped(student, layers)
    forward = torch.compile(tapped) if options.compile else tapped
    accumulate = partial(
        accumulate_over_positions if run.spec.of_tokens else accumulate_gradients,
        Model(student, forward, objective, trained, run.spec.num_classes),
        autocast=torch.autocast(device.type, torch.bfloat16, enabled=options.autocast == "bf16"),
    )

    # The position: the start, or where the last checkpoint was written.
    position, best = Position(), None
    found = read_checkpoint(run.folder, run.identity)
    if found is not None:
        position, tensors = found
        best = restore_state(tensors, student, objective, optimizer, average)
    steps = run.train.num_steps(options.batch_size)
    total_steps = options.epochs * steps
    done_steps = position.epoch * steps + position.step
    parameters = sum(parameter.numel() for parameter in student.parameters())
    report(StudentStarted(options.name, parameters, total_steps, done_steps))
    rate_at = partial(
        learning_rate_at,
        peak=options.peak_learning_rate,
        warmup_steps=options.warmup_epochs * steps,
        total_steps=total_steps,
        schedule=options.schedule,
    )
    history = list(position.history)
    tops_N = run.held.selection.tops_N
    held_tops_N = None if tops_N is None else torch.from_numpy(tops_N).to(device)
    clock = Stopwatch(position.seconds, position.epoch_seconds)
    best_epoch, best_score = position.best_epoch, position.best_score
    tally = Tally(objective.names, device)
    if found is not None and "tally" in tensors:
        tally.restore(tensors["tally"])

    def checkpoint(epoch: int, step: int) -> None:
        tally.check(options, epoch)
        where = Position(
            epoch=epoch,
            step=step,
            history=tuple(history),
            best_epoch=best_epoch,
            best_score=best_score,
            seconds=clock.seconds,
            epoch_seconds=clock.epoch_seconds,
        )
        state = gather_state(student, objective, optimizer, average, best)
        write_checkpoint(run.folder, where, state | {"tally": tally.state()}, run.identity)

    def interrupt(epoch: int, step: int) -> Interrupted:
        checkpoint(epoch, step)
        return Interrupted(f"student {options.name} stopped in epoch {epoch + 1} after {step} of {steps} steps")

    for epoch in range(position.epoch, options.epochs):
        if _out_of_patience(options, best_epoch, epoch):
            break
        first_step = position.step if epoch == position.epoch else 0
        reported_at, reported_rows, rows = time.monotonic(), 0, 0
        batches = run.train.shuffled(options.batch_size, seed=options.seed, epoch=epoch, first_step=first_step)
        for step, batch in enumerate(batches, start=first_step):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(epoch * steps + step)
            taken = accumulate(batch, measure_shares=step == 0)
            if options.clip_norm is not None:
                nn.utils.clip_grad_norm_(trained, options.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            if average is not None:
                average.update(epoch * steps + step)
            tally.add(taken.rows, taken)
            rows += len(batch.inputs)

            now = time.monotonic()
            if now - reported_at >= REPORT_EVERY_S:
                mean_loss = tally.check(options, epoch)[0]
                rows_per_s = (rows - reported_rows) / (now - reported_at)
                done = epoch * steps + step + 1
                report(Progress(options.name, epoch + 1, options.epochs, done, total_steps, mean_loss, rows_per_s))
                reported_at, reported_rows = now, rows
            stopping = stop()
            every = options.checkpoint_every_steps
            if stopping or (every is not None and (epoch * steps + step + 1) % every == 0):
                clock.lap(training=True)
                if stopping:
                    raise interrupt(epoch, step + 1)
                checkpoint(epoch, step + 1)

        train_loss, *terms = tally.check(options, epoch)  # waits for the device, so that the clock is right
        shares = tally.shares()
        clock.lap(training=True)
        held = evaluate(exported.eval(), run.held, held_tops_N, batch_size=options.batch_size, stop=stop)
        student.train()
        clock.lap(training=False)
        if held is None:
            raise interrupt(epoch, steps)
        metrics = EpochMetrics(
            **held.model_dump(),
            epoch=epoch + 1,
            view=run.train.view_of(epoch),
            train_loss=train_loss,
            terms=dict(zip(objective.names, terms, strict=True)),
            shares=dict(zip(objective.names, shares, strict=True)),
            learning_rate=rate_at((epoch + 1) * steps - 1),
            seconds=clock.epoch_seconds,
            rows_per_s=run.train.num_rows / clock.epoch_seconds,
        )
        if metrics.cross_entropy is not None and not isfinite(metrics.cross_entropy):
            raise diverged(options, epoch, f"cross-entropy on the held rows = {metrics.cross_entropy}")
        history.append(metrics)
        if options.patience_epochs is not None:
            score = _score(options, metrics)
            if best_score is None or score > best_score:
                best_epoch, best_score = epoch + 1, score
                best = {name: tensor.detach().clone() for name, tensor in exported.state_dict().items()}
        tally, clock.epoch_seconds = Tally(objective.names, device), 0.0
        checkpoint(epoch + 1, 0)
        write_metrics(run.folder, history)
        report(EpochDone(options.name, metrics))

    # The result: weights, figures, and last the record, which says that all the rest is there.
    weights = dict(exported.state_dict()) if best is None else best
    chosen = history[-1] if best_epoch is None else history[best_epoch - 1]
    save_student(run.folder, run.spec, weights)
    write_metrics(run.folder, history)
    record = RunRecord(
        **chosen.model_dump(include=set(Held.model_fields)),
        student=options.name,
        status="finished",
        architecture=options.architecture,
        parameters=parameters,
        epoch=chosen.epoch,
        epochs=len(history),
        seconds=clock.seconds,
        rows_per_s=run.train.num_rows * len(history) / sum(metrics.seconds for metrics in history),
        device=str(device),
        torch_version=torch.__version__,
        identity=run.identity,
    )
    write_record(run.folder, record)
    delete_checkpoint(run.folder)
    report(StudentFinished(record))
    return record


class Stopwatch:
    """Seconds of a run and of its present epoch's training, over all interruptions."""

    def __init__(self, seconds: float, epoch_seconds: float):
        self.seconds = seconds
        self.epoch_seconds = epoch_seconds
        self._lap_at = time.monotonic()

    def lap(self, *, training: bool) -> None:
        """Add the time since the last lap."""
        now = time.monotonic()
        self.seconds += now - self._lap_at
        self.epoch_seconds += (now - self._lap_at) if training else 0.0
        self._lap_at = now


class Tally:
    """Sums of an epoch's losses, kept on the device so that no step waits for it.

    Args:
        names: of the terms.
        device: where losses are.
    """

    def __init__(self, names: list[str], device: torch.device):
        self._sums = torch.zeros(2 + len(names), dtype=torch.float64, device=device)  # rows, objective, each term
        self._shares = torch.zeros(len(names), dtype=torch.float64, device=device)
        self._recent: list[tuple[int, Tensor, list[Tensor]]] = []

    def add(self, rows: int, step: Step) -> None:
        """Count a batch of so many rows, with its mean losses."""
        if step.shares is not None:
            self._shares.copy_(step.shares)
        self._recent.append((rows, step.loss, step.values))
        if len(self._recent) >= TALLY_STEPS:
            self._collect()

    def check(self, options: StudentOptions, epoch: int) -> list[float]:
        """Return the means over rows so far, the objective's first; waits for the device.

        Raises:
            DivergedLoss: one of them is not finite.
        """
        self._collect()
        rows, *sums = self._sums.tolist()
        means = [total / max(rows, 1) for total in sums]
        if not all(isfinite(mean) for mean in means):
            raise diverged(options, epoch, f"training loss = {means[0]}")
        return means

    def shares(self) -> list[float]:
        """Return each term's share of the gradient, in the epoch's first step."""
        return [float(share) for share in self._shares.tolist()]

    def state(self) -> Tensor:
        """Return all figures, for a checkpoint."""
        self._collect()
        return torch.cat([self._sums, self._shares])

    def restore(self, state: Tensor) -> None:
        """Go on from `state()`."""
        self._sums.copy_(state[: len(self._sums)])
        self._shares.copy_(state[len(self._sums) :])

    def _collect(self) -> None:
        if self._recent:
            rows_K = torch.tensor([rows for rows, _, _ in self._recent], dtype=torch.float64, device=self._sums.device)
            losses = torch.stack([torch.stack([loss, *values]) for _, loss, values in self._recent]).double()
            self._sums += torch.cat([rows_K.sum().reshape(1), rows_K @ losses])
            self._recent.clear()


def make_optimizer(options: StudentOptions, parameters: list[nn.Parameter]) -> Optimizer:
    """Return the optimiser of a job, in torch's fused form where the device has one."""
    fused = parameters[0].device.type in ("cpu", "cuda")
    if options.optimizer == "sgd":
        return SGD(
            parameters,
            lr=options.peak_learning_rate,
            momentum=options.momentum,
            nesterov=options.momentum > 0,
            weight_decay=options.weight_decay,
            fused=fused,
        )
    return AdamW(
        parameters,
        lr=options.peak_learning_rate,
        betas=(options.momentum, 0.999),
        weight_decay=options.weight_decay,
        fused=fused,
    )


def diverged(options: StudentOptions, epoch: int, found: str) -> DivergedLoss:
    """Return the error of a run whose loss is not finite."""
    return DivergedLoss(
        f"student {options.name} diverged in epoch {epoch + 1}",
        found=found,
        expected="a finite number",
        do=f"lower learning_rate (now {options.peak_learning_rate:g}), lengthen warmup_epochs, or set clip_norm",
    )


def _score(options: StudentOptions, metrics: EpochMetrics) -> float:
    score = metrics.agreement if metrics.accuracy is None else metrics.accuracy
    if score is None:
        raise BadRequest(
            f"student {options.name} has patience_epochs, but no figure to be patient about",
            found="held rows with neither labels nor a teacher",
            do="drop patience_epochs, or name validation rows that have one",
        )
    return score


def _out_of_patience(options: StudentOptions, best_epoch: int | None, epoch: int) -> bool:
    patience = options.patience_epochs
    return patience is not None and best_epoch is not None and epoch - best_epoch >= patience
