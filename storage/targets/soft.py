"""Soft targets, decoded: what a teacher said of some rows, in the form that losses use.

A loss sees a `Pair`: log-probabilities of teacher and student over the same classes. For dense targets these are all
classes; for sparse ones the K stored classes and, last, one bucket that holds exactly the mass of all the others.

Shapes: B rows, C classes, K kept classes, N draws, T temperatures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from storage.targets.support import NEVER, Pair, Support, first_of_its_kind, kept_and_rest, leave_out, log1m_exp

__all__ = ["NEVER", "DenseTargets", "OneTeacher", "Pair", "SoftTargets", "SparseTargets", "Statistics", "spread"]


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
    """What one teacher, or a mixture of several, said of B rows. What is said of no student has no gradient."""

    @property
    def has_bucket(self) -> bool:
        """Whether the last column of a pair is a bucket."""
        return True

    @abstractmethod
    def pair(self, student_BC: Tensor, temperature: float) -> Pair:
        """Return teacher and student at one temperature; the student's half has its gradient."""

    @abstractmethod
    def others_pair(self, student_BC: Tensor, labels_B: Tensor, temperature: float) -> Pair:
        """Return both given that the class is not the label; a column without mass may stand for it."""

    @abstractmethod
    def label_log_p(self, labels_B: Tensor, temperature: float) -> Tensor:
        """Return the label's log-probability, (B,)."""

    @abstractmethod
    def log_p(self, temperature: float) -> Tensor:
        """Return log-probabilities of all classes, (B, C); what is not stored shares its mass evenly."""

    def variance(self, temperature: float) -> Tensor:
        """Return Σ (p − 1/C)², (B,)."""
        p_BC = self.log_p(temperature).exp()
        return (p_BC - 1 / p_BC.shape[1]).square().sum(dim=1)

    def covariance(self, q_BC: Tensor, temperature: float) -> Tensor:
        """Return Σ (p − 1/C)(q − 1/C), (B,); what is not stored shares its mass evenly."""
        even = 1 / q_BC.shape[1]
        return ((self.log_p(temperature).exp() - even) * (q_BC - even)).sum(dim=1)


class OneTeacher(SoftTargets):
    """What one teacher said: losses that are linear in its probabilities are taken of each one by itself."""

    @abstractmethod
    def top(self) -> tuple[Tensor, Tensor]:
        """Return the log-probability at temperature 1 of the likeliest class, and the class, (B,) each."""

    @abstractmethod
    def standardised_pair(self, student_BC: Tensor, temperature: float) -> Pair:
        """Return `pair` of both sides' logits with mean 0 and deviation 1 in each row."""


@dataclass(frozen=True, slots=True)
class DenseTargets(OneTeacher):
    """Every logit, (B, C) float32; −∞ of a class that can never be, whose log-probability is NEVER."""

    logits_BC: Tensor

    @property
    def has_bucket(self) -> bool:
        return False

    def pair(self, student_BC: Tensor, temperature: float) -> Pair:
        """Return both over all C classes."""
        return Pair(self.log_p(temperature), torch.log_softmax(student_BC.float() / temperature, dim=1))

    def others_pair(self, student_BC: Tensor, labels_B: Tensor, temperature: float) -> Pair:
        return dense_others_pair(self.logits_BC / temperature, student_BC, labels_B, temperature)

    def label_log_p(self, labels_B: Tensor, temperature: float) -> Tensor:
        return self.log_p(temperature).gather(1, labels_B[:, None])[:, 0]

    def log_p(self, temperature: float) -> Tensor:
        # not in place: of whom compiles or maps it, it may be shared
        return torch.log_softmax(self.logits_BC / temperature, dim=1).clamp(min=NEVER)

    def top(self) -> tuple[Tensor, Tensor]:
        top = self.log_p(1.0).max(dim=1)
        return top.values, top.indices

    def likeliest(self, k: int) -> Tensor:
        """Return the k classes that have most probability, (B, k) int64, in no order; all if there are no more."""
        return self.logits_BC.topk(min(k, self.logits_BC.shape[1]), dim=1, sorted=False).indices

    def support(self, temperature: float, ids_BK: Tensor) -> Support:
        """Return some classes, ascending, of which one may repeat the one before it, and the rest."""
        log_p_BK, log_rest_B = kept_and_rest(self.logits_BC, ids_BK, temperature)
        log_p_BK = log_p_BK.clamp(min=NEVER).masked_fill(~first_of_its_kind(ids_BK), NEVER)
        return Support(self.logits_BC.shape[1], ids_BK, log_p_BK, log_rest_B)

    def standardised_pair(self, student_BC: Tensor, temperature: float) -> Pair:
        return DenseTargets(standardise(self.logits_BC)).pair(standardise(student_BC), temperature)


@dataclass(frozen=True, slots=True)
class SparseTargets(OneTeacher):
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
        # a row of one value deviates by nothing
        scores_BK = self.log_p_BK / (self.statistics.std_B[:, None] * temperature).clamp(min=1e-6)
        return spread(scores_BK, self.log_p_BK > NEVER, log_rest_B), log_rest_B

    def support(self, temperature: float, labels_B: Tensor | None = None) -> Support:
        """Return the kept classes, the label if one is given, and the rest at one temperature."""
        kept = Support(self.num_classes, self.ids_BK, self.kept_log_p(temperature), self.log_rest(temperature))
        return kept if labels_B is None else kept.naming(labels_B, self.label_log_p(labels_B, temperature))

    def pair(self, student_BC: Tensor, temperature: float) -> Pair:
        """Return both over the K kept classes and the bucket of all others, (B, K + 1)."""
        return self.support(temperature).pair(student_BC, temperature)

    def pair_and_label(self, student_BC: Tensor, labels_B: Tensor, temperature: float) -> tuple[Pair, Tensor]:
        """Return `pair`, and the student's log-probability of the label, (B,), from one pass over the scores."""
        return self.support(temperature).pair_and_label(student_BC, labels_B, temperature)

    def others_pair(self, student_BC: Tensor, labels_B: Tensor, temperature: float) -> Pair:
        """Return both over the kept classes, the label and the bucket, (B, K + 2)."""
        return self.support(temperature, labels_B).others_pair(student_BC, labels_B, temperature)

    def label_log_p(self, labels_B: Tensor, temperature: float) -> Tensor:
        """Return what was stored for the label that the row had when it was encoded."""
        assert self.statistics is not None  # checked before the first step: `Encoding.lacks`
        return self.statistics.label_log_p_BT[:, self.statistics.temperatures.index(temperature)]

    def log_p(self, temperature: float) -> Tensor:
        return self.support(temperature).spread_out()

    def top(self) -> tuple[Tensor, Tensor]:
        top = self.log_p_BK.max(dim=1)
        return top.values, self.ids_BK.gather(1, top.indices[:, None])[:, 0]

    def standardised_pair(self, student_BC: Tensor, temperature: float) -> Pair:
        log_p_BK, log_rest_B = self.standardised(temperature)
        support = Support(self.num_classes, self.ids_BK, log_p_BK, log_rest_B)
        return support.pair(standardise(student_BC), temperature)

    def variance(self, temperature: float) -> Tensor:
        """Return Σ p² − 1/C from the statistics, and never less than an even rest has: rounding goes below it."""
        assert self.statistics is not None  # checked before the first step: `Encoding.lacks`
        squares_B = self.statistics.sum_squares_BT[:, self.statistics.temperatures.index(temperature)]
        support, even = self.support(temperature), 1 / self.num_classes
        kept_BK = (support.log_p_BK.exp() - even).masked_fill(support.log_p_BK <= NEVER, 0.0)
        least_B = kept_BK.square().sum(dim=1) + support.num_others * (support.log_even.exp() - even).square()
        return torch.maximum(squares_B - even, least_B)

    def covariance(self, q_BC: Tensor, temperature: float) -> Tensor:
        support, even = self.support(temperature), 1 / self.num_classes
        above_BK = (support.log_p_BK.exp() - support.log_even.exp()[:, None]).masked_fill(
            support.log_p_BK <= NEVER, 0.0
        )
        # With p = even + above, the sum of q − 1/C over all classes is 0, so that even drops out.
        return (above_BK * (q_BC.gather(1, self.ids_BK) - even)).sum(dim=1)

    def expected_log_q(self, student_BC: Tensor) -> Tensor:
        """Return Σ p log q at temperature 1, (B,): exact for the kept classes, from draws for the rest, unbiased."""
        assert self.draws_BN is not None  # checked before the first step: `Encoding.lacks`
        assert self.counts_BN is not None
        # not by 0: a blank row has no draws
        p_BN = self.counts_BN / self.counts_BN.sum(dim=1, keepdim=True).clamp(min=1)
        if self.ids_BK.shape[1]:
            p_BN = self.support(1.0).log_tail.exp()[:, None] * p_BN
        # Sorted, since a draw that is padding may name a kept class once more.
        ids_BM, order_BM = torch.cat([self.ids_BK, self.draws_BN], dim=1).sort(dim=1)
        p_BM = torch.cat([self.log_p_BK.exp(), p_BN], dim=1).gather(1, order_BM)
        return (p_BM * kept_and_rest(student_BC, ids_BM)[0]).sum(dim=1)


def dense_others_pair(log_p_BC: Tensor, student_BC: Tensor, labels_B: Tensor, temperature: float) -> Pair:
    """Return teacher and student over all classes, given that the class is not the label, (B, C).

    Args:
        log_p_BC: the teacher's scores at this temperature, float32.
        student_BC: raw scores.
        labels_B: int64.
        temperature: of the student's half.
    """
    both = (leave_out(log_p_BC, labels_B), leave_out(student_BC, labels_B) / temperature)
    # The label is set after all, not left at what EMPTY gives: where no other class can be, it would have all mass.
    log_p_BC, log_q_BC = (torch.log_softmax(each, dim=1).scatter(1, labels_B[:, None], NEVER) for each in both)
    return Pair(log_p_BC.clamp(min=NEVER), log_q_BC)


def standardise(logits_BC: Tensor) -> Tensor:
    """Return logits, float32, with mean 0 and deviation 1 in each row; a row of one value stays 0."""
    centred_BC = logits_BC.float() - logits_BC.float().mean(dim=1, keepdim=True)
    variance_B1 = centred_BC.square().mean(dim=1, keepdim=True)
    return centred_BC * (variance_B1 + 1e-12).rsqrt()


def spread(scores_BK: Tensor, real_BK: Tensor, log_rest_B: Tensor) -> Tensor:
    """Return log-probabilities that have all mass that `log_rest_B` leaves, shared by scores; NEVER if not real."""
    log_p_BK = scores_BK.masked_fill(~real_BK, -torch.inf).log_softmax(dim=1) + log1m_exp(log_rest_B)[:, None]
    return log_p_BK.masked_fill(~real_BK, NEVER)
