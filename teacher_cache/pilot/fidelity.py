"""How near an encoding comes to the dense targets: KL, calibration, and the gradient that a student would feel.

Everything is relative to `dense`, the teacher's float32 logits over the classes that a student has. A student is not
needed: one stands in, the teacher's own logits, shrunk, with seeded noise of the same deviation. What matters is the
gradient with respect to its logits, d/dz, for all of a network's gradients follow from it.

Rows are taken a block at a time, in float64, so that no second copy of a vocabulary's logits is ever held.

Shapes: N rows, B rows of a block, C classes, K kept classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from storage.encodings import AnyEncoding, SparseEncoding
from storage.encodings.never import never
from storage.targets.calibration import NUM_BINS, bin_of, expected_error
from storage.targets.soft import NEVER, DenseTargets, SoftTargets, SparseTargets
from storage.tasks.base import MOST_COUNTED, Answered, Task
from teacher_cache.pilot.ladder import DRAW_SETS

BLOCK_ELEMENTS = 2**21  # of logits; 16 MiB in float64, which the heap gives again, and several such at a time
STUDENT_SHRINK, STUDENT_NOISE, STUDENT_SEED = 0.5, 0.5, 0  # half of what the teacher says; noise in its deviations


class PilotAnswers(NamedTuple):
    """What the teacher said of the rows of a pilot, on its device.

    Attributes:
        logits_NV: float32, with columns of padding beyond the classes, if the teacher has them.
        num_classes: C.
        labels_N: int64, −1 where there is none.
        keys_N: int64, of the samples.
    """

    logits_NV: Tensor
    num_classes: int
    labels_N: Tensor
    keys_N: Tensor

    def blocks(self) -> Iterator[PilotAnswers]:
        """Yield a few rows at a time."""
        rows = max(1, BLOCK_ELEMENTS // self.logits_NV.shape[1])
        for logits_BV, labels_B, keys_B in zip(
            self.logits_NV.split(rows), self.labels_N.split(rows), self.keys_N.split(rows), strict=True
        ):
            yield PilotAnswers(logits_BV, self.num_classes, labels_B, keys_B)

    def repeated(self, count: int) -> PilotAnswers:
        """Return so many rows, these over and over."""
        rows = torch.arange(count, device=self.logits_NV.device) % len(self.labels_N)
        return PilotAnswers(self.logits_NV[rows], self.num_classes, self.labels_N[rows], self.keys_N[rows])

    @property
    def dense(self) -> DenseTargets:
        """Every logit of the classes, exactly."""
        return DenseTargets(self.logits_NV[:, : self.num_classes])

    def encoded(self, encoding: AnyEncoding) -> dict[str, Tensor]:
        """Return the arrays of an encoding."""
        return encoding.encode(self.logits_NV, num_classes=self.num_classes, labels_B=self.labels_N, keys_B=self.keys_N)

    def decoded(self, encoding: AnyEncoding) -> SoftTargets:
        """Return what a loss would see of an encoding."""
        # of vectors there is no pilot
        return cast("SoftTargets", encoding.decode(self.encoded(encoding), self.num_classes))


class Gradient(NamedTuple):
    """A gradient over all rows beside the dense one: the angle between them in degrees, and the ratio of norms."""

    degrees: float
    norm_ratio: float


class Fidelity(NamedTuple):
    """How near an encoding is.

    Attributes:
        kl: mean KL(dense‖decoded) at temperature 1, nats; None where nothing but draws is stored.
        calibration: expected calibration error of what is decoded, at temperature 1; None likewise, or without labels.
        gradients: temperature → gradient. Of draws, temperature 1 only: the mean over DRAW_SETS seeds.
        single: of draws, the gradient of one set of them; else None.
    """

    kl: float | None
    calibration: float | None
    gradients: dict[float, Gradient]
    single: Gradient | None


def measure(answers: PilotAnswers, encoding: AnyEncoding) -> Fidelity:
    """Return how near an encoding comes to the teacher's own answers."""
    sampled = encoding if isinstance(encoding, SparseEncoding) and encoding.n else None
    kls, expected = [], Calibration()
    of_temperature = {temperature: _Angle() for temperature in encoding.temperatures}
    single = _Angle()
    for block in answers.blocks():
        decoded, student_BC = block.decoded(encoding), stand_in(block.dense.logits_BC)
        log_q_BC = density(decoded)
        if log_q_BC is not None:
            kls.append(divergence(block.dense, log_q_BC))
            expected.add(log_q_BC, block.labels_N)
        for temperature, angle in of_temperature.items():
            if sampled is None:
                dense_BC = pair_gradient(block.dense, student_BC, temperature)
                angle.add(pair_gradient(decoded, student_BC, temperature), dense_BC)
            elif temperature == 1:
                dense_BC = pair_gradient(block.dense, student_BC, temperature)
                gradients = drawn_gradients(block, sampled, student_BC)
                mean_BC = next(gradients)  # by the job's own seed: what a student would be trained on
                single.add(mean_BC, dense_BC)
                for gradient_BC in gradients:
                    mean_BC += gradient_BC
                angle.add(mean_BC / DRAW_SETS, dense_BC)
    return Fidelity(
        kl=float(torch.cat(kls).mean().clamp(min=0)) if kls else None,  # rounding may leave it a little below 0
        calibration=expected.error,
        gradients={t: angle.gradient for t, angle in of_temperature.items() if t == 1 or sampled is None},
        single=None if sampled is None else single.gradient,
    )


def calibration_of_dense(answers: PilotAnswers) -> float | None:
    """Return the expected calibration error of the teacher itself; None without labels."""
    expected = Calibration()
    for block in answers.blocks():
        expected.add(block.dense.logits_BC.double().log_softmax(dim=1), block.labels_N)
    return expected.error


def entropy_of_dense(answers: PilotAnswers) -> float:
    """Return the mean entropy of the teacher's distributions at temperature 1, nats; log C of one that says nothing."""
    sums = 0.0
    for block in answers.blocks():
        log_p_BC = block.dense.logits_BC.double().log_softmax(dim=1).clamp(min=NEVER)
        sums -= float((log_p_BC.exp() * log_p_BC).sum())
    return sums / len(answers.labels_N)


def standing_of_dense(answers: PilotAnswers, task: Task) -> tuple[str | None, bool]:
    """Return how the teacher stands beside chance, in words, and whether it is hardly better; None without labels."""
    correct, nats = 0, 0.0
    for block in answers.blocks():
        known_B = block.labels_N >= 0
        log_p_BC, labels_B = block.dense.logits_BC[known_B].double().log_softmax(dim=1), block.labels_N[known_B]
        correct += int((log_p_BC.argmax(dim=1) == labels_B).sum())
        nats -= float(log_p_BC.gather(1, labels_B[:, None]).sum())
    labelled_N = answers.labels_N[answers.labels_N >= 0]
    if not len(labelled_N):
        return None, False
    few = answers.num_classes <= MOST_COUNTED
    counts = torch.bincount(labelled_N, minlength=answers.num_classes).tolist() if few else []
    return task.standing(Answered(len(labelled_N), correct, nats), answers.num_classes, counts)


def density(targets: SoftTargets) -> Tensor | None:
    """Return the log-probability of every class that targets stand for, float64 (B, C); None if they are draws alone.

    Of sparse ones the tail's mass is spread evenly over all classes that are not kept.
    """
    if isinstance(targets, DenseTargets):
        return targets.logits_BC.double().log_softmax(dim=1).clamp(min=NEVER)
    assert isinstance(targets, SparseTargets)
    if not targets.ids_BK.shape[1]:
        return None
    log_p_BK, num_classes = targets.log_p_BK.double(), targets.num_classes
    real_BK = log_p_BK > NEVER
    others_B = (num_classes - real_BK.sum(dim=1)).clamp(min=1)  # where all are kept there is no tail to share out
    tail_B = targets.log_rest(1.0).double() - others_B.log()
    spread_BC = tail_B[:, None].repeat(1, num_classes + 1)
    spread_BC.scatter_(1, targets.ids_BK.where(real_BK, num_classes), log_p_BK)  # padding to a column of its own
    return spread_BC[:, :num_classes]


def divergence(dense: DenseTargets, log_q_BC: Tensor) -> Tensor:
    """Return KL(dense‖q) of each row at temperature 1, nats, float64 (B,)."""
    log_p_BC = dense.logits_BC.double().log_softmax(dim=1).clamp(min=NEVER)
    return (log_p_BC.exp() * (log_p_BC - log_q_BC)).sum(dim=1)


class Calibration:
    """The expected calibration error, block by block."""

    def __init__(self) -> None:
        self._sums = torch.zeros(3, NUM_BINS, dtype=torch.float64)  # rows, confidence, correct

    def add(self, log_q_BC: Tensor, labels_B: Tensor) -> None:
        """Count rows; those without a label say nothing."""
        top = log_q_BC[labels_B >= 0].max(dim=1)
        confidence_B = top.values.exp().double().cpu()
        # Sums on the CPU: an index_add on a GPU adds in any order.
        correct_B = (top.indices == labels_B[labels_B >= 0]).double().cpu()
        bin_B = bin_of(confidence_B).long()
        for sums, values_B in zip(self._sums, (torch.ones_like(confidence_B), confidence_B, correct_B), strict=True):
            sums.index_add_(0, bin_B, values_B)

    @property
    def error(self) -> float | None:
        """Σ of the bins' share × |accuracy − confidence|; None without any label."""
        return expected_error(*self._sums) if self._sums[0].any() else None


def stand_in(logits_BC: Tensor) -> Tensor:
    """Return the logits of a student that has learned half of what its teacher says, float32 (B, C).

    That a class can never be it has not learned: to it, such a class is like the average one.
    """
    if (never_BC := never(logits_BC)) is not None:
        sum_B1 = logits_BC.masked_fill(never_BC, 0.0).sum(dim=1, keepdim=True)
        mean_B1 = sum_B1 / (~never_BC).sum(dim=1, keepdim=True)
        logits_BC = torch.where(never_BC, mean_B1, logits_BC)
    generator = torch.Generator().manual_seed(STUDENT_SEED)
    noise_BC = torch.randn(logits_BC.shape, generator=generator).to(logits_BC.device)  # the same on every device
    deviation_B1 = logits_BC.std(dim=1, keepdim=True) if logits_BC.shape[1] > 1 else torch.ones_like(logits_BC)
    return STUDENT_SHRINK * logits_BC + STUDENT_NOISE * deviation_B1 * noise_BC


def pair_gradient(targets: SoftTargets, student_BC: Tensor, temperature: float) -> Tensor:
    """Return d/dz of KL(p‖q) over the classes of `SoftTargets.pair`, summed over rows, (B, C)."""
    student_BC = student_BC.clone().requires_grad_()
    log_p, log_q = targets.pair(student_BC, temperature)
    loss = (log_p.exp() * (log_p - log_q)).sum()
    return torch.autograd.grad(loss, student_BC)[0]


def drawn_gradients(block: PilotAnswers, encoding: SparseEncoding, student_BC: Tensor) -> Iterator[Tensor]:
    """Yield d/dz of the cross-entropy with what was drawn, (B, C), for DRAW_SETS seeds, the encoding's own first.

    Kept classes count as they are, the tail's mass goes to the draws: −Σ_K p log q − p⊥ Σ_j (c_j/n) log q_j.
    """
    q_BC = student_BC.double().softmax(dim=1)
    draws_only: dict[str, Any] = {"temperatures": [1.0], "standardised_temperatures": [], "statistics": False}
    for number in range(DRAW_SETS):
        targets = block.decoded(encoding.model_copy(update=draws_only | {"seed": (encoding.seed + number) % 2**63}))
        assert isinstance(targets, SparseTargets)
        assert targets.draws_BN is not None
        assert targets.counts_BN is not None
        gradient_BC = q_BC.clone()
        rest_B1 = torch.ones_like(q_BC[:, :1])  # nothing kept: all mass is in the draws
        if targets.ids_BK.shape[1]:
            rest_B1 = targets.log_rest(1.0).double().exp()[:, None]
            gradient_BC.scatter_add_(1, targets.ids_BK, -targets.log_p_BK.double().exp())  # padding adds 0
        gradient_BC.scatter_add_(1, targets.draws_BN, -rest_B1 * targets.counts_BN.double() / encoding.n)
        yield gradient_BC


class _Angle:
    """The angle between two long vectors, from their products, block by block."""

    def __init__(self) -> None:
        self._dot = self._own = self._dense = 0.0

    def add(self, gradient_BC: Tensor, dense_BC: Tensor) -> None:
        own, dense = gradient_BC.double().flatten(), dense_BC.double().flatten()
        self._dot += float(own @ dense)
        self._own += float(own @ own)
        self._dense += float(dense @ dense)

    @property
    def gradient(self) -> Gradient:
        own, dense = math.sqrt(self._own), math.sqrt(self._dense)
        if not own or not dense:  # of no length: the same as another such, at right angles to any that has one
            return Gradient(0.0 if own == dense else 90.0, 1.0 if own == dense else own / max(dense, 1e-300))
        # Rounding may take a cosine past 1.
        return Gradient(math.degrees(math.acos(max(-1.0, min(1.0, self._dot / (own * dense))))), own / dense)
