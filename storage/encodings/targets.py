"""Soft targets, decoded: what a teacher said of some rows, in the form that losses use.

A loss sees a `Pair`: log-probabilities of teacher and student over the same classes. For dense targets these are all
classes; for sparse ones the K stored classes and, last, one bucket that holds exactly the mass of all the others.

Shapes: B rows, C classes, K kept classes, N draws, T temperatures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# The log-probability of a class that cannot be: finite, so that 0 · (log p − log q) is 0 and not NaN.
NEVER = -1e4
EMPTY = -1e9


class Pair(NamedTuple):
    """Log-probabilities over the same classes, float32, (B, K) each; a last column may be the bucket."""

    log_p: Tensor
    log_q: Tensor


@dataclass(frozen=True, slots=True)
class Statistics:
    """What is stored of each row besides its classes, float32, of the teacher's own logits.

    Attributes:
        temperatures: T of them, ascending; 1 is one.
        lse_BT: log-sum-exp of the logits over each temperature.
        label_log_p_BT: the label's log-probability at each of them; 0 where there is no label.
        sum_squares_BT: Σ p² at each of them.
        entropy_B: nats, at temperature 1.
        mean_B, std_B: of the logits over all classes; the deviation is that of the population.
        standardised_temperatures: U of them.
        standardised_lse_BU: log-sum-exp of (z − mean)/(std·T) at each of them.
    """

    temperatures: tuple[float, ...]
    lse_BT: Tensor
    label_log_p_BT: Tensor
    sum_squares_BT: Tensor
    entropy_B: Tensor
    mean_B: Tensor
    std_B: Tensor
    standardised_temperatures: tuple[float, ...] = ()
    standardised_lse_BU: Tensor | None = None


class SoftTargets(ABC):
    """What a teacher said of B rows."""

    @abstractmethod
    def pair(self, student_BC: Tensor, temperature: float) -> Pair:
        """Return teacher and student at one temperature; the student's half has its gradient."""


@dataclass(frozen=True, slots=True)
class DenseTargets(SoftTargets):
    """Every logit, (B, C) float32."""

    logits_BC: Tensor

    def pair(self, student_BC: Tensor, temperature: float) -> Pair:
        """Return both over all C classes."""
        return Pair(
            torch.log_softmax(self.logits_BC / temperature, dim=1),
            torch.log_softmax(student_BC.float() / temperature, dim=1),
        )


@dataclass(frozen=True, slots=True)
class SparseTargets(SoftTargets):
    """The largest classes exactly, draws from the rest, and statistics of the whole.

    Attributes:
        num_classes: C, those of the student.
        ids_BK: int64, ascending; a class that repeats the one before it is padding.
        log_p_BK: float32 log-probabilities at temperature 1, NEVER for padding.
        draws_BN: int64 classes drawn from the rest (from all classes if K is 0), or None.
        counts_BN: float32, how often each was drawn; 0 is padding.
        statistics: None if the cache job switched them off.
        temperatures, log_rest_BT: log of the mass outside of the kept classes at each temperature, as it was stored;
            None: temperature 1 has what the kept classes leave, and others need statistics.
        standardised_temperatures, standardised_log_rest_BU: the same for logits with mean 0 and deviation 1.
    """

    num_classes: int
    ids_BK: Tensor
    log_p_BK: Tensor
    draws_BN: Tensor | None = None
    counts_BN: Tensor | None = None
    statistics: Statistics | None = None
    temperatures: tuple[float, ...] = (1.0,)
    log_rest_BT: Tensor | None = None
    standardised_temperatures: tuple[float, ...] = ()
    standardised_log_rest_BU: Tensor | None = None

    def kept_log_p(self, temperature: float) -> Tensor:
        """Return the log-probabilities of the kept classes at one temperature, (B, K), NEVER for padding."""
        if temperature == 1:
            return self.log_p_BK
        real_BK = self.log_p_BK > NEVER
        if self.log_rest_BT is not None:
            return spread(self.log_p_BK / temperature, real_BK, self.log_rest(temperature))
        assert self.statistics is not None  # checked before the first step: `Encoding.lacks`
        lse_1_B, lse_T_B = (
            self.statistics.lse_BT[:, self.statistics.temperatures.index(wanted)] for wanted in (1.0, temperature)
        )
        return ((self.log_p_BK + lse_1_B[:, None]) / temperature - lse_T_B[:, None]).masked_fill(~real_BK, NEVER)

    def log_rest(self, temperature: float) -> Tensor:
        """Return the log of the mass outside of the kept classes at one temperature, (B,)."""
        if self.log_rest_BT is None:
            return log1m_exp(self.kept_log_p(temperature).logsumexp(dim=1))
        return self.log_rest_BT[:, self.temperatures.index(temperature)]

    def standardised(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Return `kept_log_p` and `log_rest` of the teacher's logits with mean 0 and deviation 1, (B, K) and (B,)."""
        assert self.statistics is not None  # checked before the first step, as is the temperature: `Encoding.lacks`
        assert self.standardised_log_rest_BU is not None
        log_rest_B = self.standardised_log_rest_BU[:, self.standardised_temperatures.index(temperature)]
        scores_BK = self.log_p_BK / (self.statistics.std_B[:, None] * temperature).clamp(min=1e-6)
        return spread(scores_BK, self.log_p_BK > NEVER, log_rest_B), log_rest_B

    def pair(self, student_BC: Tensor, temperature: float) -> Pair:
        """Return both over the K kept classes and the bucket of all others, (B, K + 1)."""
        log_p_BK = self.kept_log_p(temperature)
        rest_p_B = self.log_rest(temperature)
        log_q_BK, rest_q_B = kept_and_rest(student_BC.float() / temperature, self.ids_BK)
        log_q_BK = log_q_BK.masked_fill(log_p_BK <= NEVER, NEVER)
        return Pair(torch.cat([log_p_BK, rest_p_B[:, None]], 1), torch.cat([log_q_BK, rest_q_B[:, None]], 1))


def kept_and_rest(scores_BC: Tensor, ids_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of some classes, (B, K), and of all others together, (B,), from scores.

    The rest is summed by itself, not subtracted from 1: it stays exact where the kept classes have nearly all mass. A
    class may be named twice.
    """
    kept_BK = scores_BC.gather(1, ids_BK)
    # Not −inf: where all classes are kept, the gradient of an empty sum would be NaN.
    rest_B = scores_BC.scatter(1, ids_BK, EMPTY).logsumexp(dim=1).clamp(min=NEVER)
    first_BK = torch.ones_like(ids_BK, dtype=torch.bool)
    first_BK[:, 1:] = ids_BK[:, 1:] != ids_BK[:, :-1]
    lse_B = torch.logaddexp(kept_BK.masked_fill(~first_BK, -torch.inf).logsumexp(dim=1), rest_B)
    return kept_BK - lse_B[:, None], rest_B - lse_B


def spread(scores_BK: Tensor, real_BK: Tensor, log_rest_B: Tensor) -> Tensor:
    """Return log-probabilities that have all mass that `log_rest_B` leaves, shared by scores; NEVER if not real."""
    log_p_BK = scores_BK.masked_fill(~real_BK, -torch.inf).log_softmax(dim=1) + log1m_exp(log_rest_B)[:, None]
    return log_p_BK.masked_fill(~real_BK, NEVER)


def log1m_exp(log_p_B: Tensor) -> Tensor:
    """Return log(1 − exp(x)) for x ≤ 0, NEVER where nothing is left; rounding above 0 counts as 0."""
    x = log_p_B.clamp(max=0.0)
    left = torch.where(x > -0.6931, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
    return left.clamp(min=NEVER)
