"""Some classes of each row by name and all others as one bucket: what divergences of sparse targets are taken over.

Shapes: B rows, C classes, K named classes, M teachers, U classes named by any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The log-probability of a class that cannot be: finite, so that 0 · (log p − log q) is 0 and not NaN.
NEVER = -1e4
EMPTY = -1e9  # a score that has no power at any temperature
# Scores that are worked on at a time: on a CPU they stay in its cache.
BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**28}


class Pair(NamedTuple):
    """Log-probabilities over the same classes, float32, (B, K) each; a last column may be the bucket."""

    log_p: Tensor
    log_q: Tensor


@dataclass(frozen=True, slots=True)
class Support:
    """A teacher's probabilities of some classes of each row, and of all others together.

    Attributes:
        num_classes: C.
        ids_BK: int64, ascending; a class that repeats the one before it does not count.
        log_p_BK: float32, NEVER where a class does not count.
        log_rest_B: log of the mass of all other classes.
    """

    num_classes: int
    ids_BK: Tensor
    log_p_BK: Tensor
    log_rest_B: Tensor

    @property
    def num_others(self) -> Tensor:
        """How many classes are not named, int64."""
        return self.num_classes - first_of_its_kind(self.ids_BK).sum(dim=1)

    @property
    def log_tail(self) -> Tensor:
        """The log of the mass of the others, NEVER where there are none: what was rounded is then no mass."""
        return torch.where(self.num_others > 0, self.log_rest_B, NEVER)

    @property
    def log_even(self) -> Tensor:
        """The log of each other class's mass, if all have the same."""
        return (self.log_tail - self.num_others.clamp(min=1).log()).clamp(min=NEVER)

    def pair(self, student_BC: Tensor, temperature: float) -> Pair:
        """Return teacher and student over the named classes and the bucket of all others, (B, K + 1)."""
        return self._pair(*kept_and_rest(student_BC, self.ids_BK, temperature))

    def pair_and_label(self, student_BC: Tensor, labels_B: Tensor, temperature: float) -> tuple[Pair, Tensor]:
        """Return `pair`, and the student's log-probability of the label, (B,), from one pass over the scores."""
        # stable: of a label that is named already, its own column is the repetition
        ids_BK, order_BK = _with(self.ids_BK, labels_B).sort(dim=1, stable=True)
        sorted_BK, log_rest_B = kept_and_rest(student_BC, ids_BK, temperature)
        # back in the order from before
        log_q_BK, label_log_q_B1 = sorted_BK.gather(1, order_BK.argsort(dim=1)).split([self.ids_BK.shape[1], 1], dim=1)
        label_log_q_B = label_log_q_B1[:, 0]
        named_B = (self.ids_BK == labels_B[:, None]).any(dim=1)
        # a label that is not named is one of the others
        log_q_rest_B = torch.where(named_B, log_rest_B, torch.logaddexp(log_rest_B, label_log_q_B))
        return self._pair(log_q_BK, log_q_rest_B), label_log_q_B

    def others_pair(self, student_BC: Tensor, labels_B: Tensor, temperature: float) -> Pair:
        """Return both given that the class is not the label, which is named; its column has no mass."""
        log_p_BK = self.log_p_BK.masked_fill(self.ids_BK == labels_B[:, None], NEVER)
        log_all_B = torch.logaddexp(log_p_BK.logsumexp(dim=1), self.log_tail)
        log_p_BK = torch.where(log_p_BK <= NEVER, NEVER, log_p_BK - log_all_B[:, None])
        log_tail_B = torch.where(self.log_tail <= NEVER, NEVER, self.log_tail - log_all_B)
        given = Support(self.num_classes, self.ids_BK, log_p_BK, log_tail_B)
        return given.pair(leave_out(student_BC, labels_B), temperature)

    def naming(self, labels_B: Tensor, label_log_p_B: Tensor) -> Support:
        """Return the same with the label among the named classes, (B, K + 1).

        Args:
            labels_B: int64.
            label_log_p_B: what the teacher gave it; counts where it is not named yet.
        """
        named_B = (self.ids_BK == labels_B[:, None]).any(dim=1)
        rest_B = self.log_rest_B + log1m_exp(label_log_p_B - self.log_rest_B)  # less the label
        ids_BK, order_BK = _with(self.ids_BK, labels_B).sort(dim=1, stable=True)
        log_p_BK = _with(self.log_p_BK, torch.where(named_B, NEVER, label_log_p_B)).gather(1, order_BK)
        return Support(self.num_classes, ids_BK, log_p_BK, torch.where(named_B, self.log_rest_B, rest_B))

    def find(self, ids_BU: Tensor) -> Tensor:
        """Return log-probabilities of any classes, (B, U); of one that is not named, an even share of the others'."""
        if not self.ids_BK.shape[1]:
            return self.log_even[:, None].expand(ids_BU.shape)
        at_BU = torch.searchsorted(self.ids_BK, ids_BU).clamp(max=self.ids_BK.shape[1] - 1)
        return torch.where(
            self.ids_BK.gather(1, at_BU) == ids_BU, self.log_p_BK.gather(1, at_BU), self.log_even[:, None]
        )

    def spread_out(self) -> Tensor:
        """Return log-probabilities of all classes, (B, C), the others' mass spread evenly over them."""
        everywhere_BC = self.log_even[:, None].repeat(1, self.num_classes)
        # The largest, since a class that does not count repeats one that does.
        return everywhere_BC.scatter_reduce_(1, self.ids_BK, self.log_p_BK, "amax", include_self=False)

    def _pair(self, log_q_BK: Tensor, log_q_rest_B: Tensor) -> Pair:
        log_q_BK = log_q_BK.masked_fill(~first_of_its_kind(self.ids_BK), NEVER)
        return Pair(_with(self.log_p_BK, self.log_tail), _with(log_q_BK, log_q_rest_B))


def mix_supports(supports: Sequence[Support], log_w_BM: Tensor) -> Support:
    """Return the mixture of teachers over all classes that any of them names, each one's rest spread evenly.

    Args:
        supports: M of them, of the same rows.
        log_w_BM: log of each teacher's weight in each row, they sum to 1; below NEVER it adds neither classes nor mass.
    """
    chosen_BM = log_w_BM > NEVER
    # A teacher without weight names the first class of one that has some, once more.
    heaviest_B1 = log_w_BM.argmax(dim=1, keepdim=True)
    first_B1 = torch.stack([s.ids_BK[:, 0] for s in supports], dim=1).gather(1, heaviest_B1)
    ids = [torch.where(chosen_BM[:, m, None], s.ids_BK, first_B1) for m, s in enumerate(supports)]
    ids_BU = torch.cat(ids, dim=1).sort(dim=1).values
    log_p_BUM = torch.stack([s.find(ids_BU) for s in supports], dim=2) + log_w_BM[:, None, :]
    log_p_BU = log_p_BUM.logsumexp(dim=2).masked_fill(~first_of_its_kind(ids_BU), NEVER)
    log_even = (torch.stack([s.log_even for s in supports], dim=1) + log_w_BM).logsumexp(dim=1)
    mixed = Support(supports[0].num_classes, ids_BU, log_p_BU, log_even)
    return Support(mixed.num_classes, ids_BU, log_p_BU, log_even + mixed.num_others.clamp(min=1).log())


def first_of_its_kind(ids_BK: Tensor) -> Tensor:
    """Return whether each of some ascending ids differs from the one before it, bool (B, K)."""
    first_BK = torch.ones_like(ids_BK, dtype=torch.bool)
    first_BK[:, 1:] = ids_BK[:, 1:] != ids_BK[:, :-1]
    return first_BK


def leave_out(scores_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return scores, float32, that give the label no probability."""
    return scores_BC.float().scatter(1, labels_B[:, None], EMPTY)


def kept_and_rest(scores_BC: Tensor, ids_BK: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of some classes, (B, K), and of all others together, (B,), at a temperature.

    The rest is summed by itself, not subtracted from 1: it stays exact where the named classes have nearly all mass.
    It is never below NEVER: where all classes are named, it would be −∞.

    Args:
        scores_BC: any float dtype; computed in float32, a block of rows at a time.
        ids_BK: int64, ascending; a class that repeats the one before it counts once.
        temperature: that the scores are divided by.
    """
    log_q_BK, log_rest_B, *_ = _KeptAndRest.apply(scores_BC, ids_BK, temperature)  # type: ignore[no-untyped-call]
    return log_q_BK, log_rest_B


class _KeptAndRest(torch.autograd.Function):
    """`kept_and_rest`, with a gradient that is a multiple of what the forward pass has computed, and written over it.

    So a graph through it can be walked once; torch raises RuntimeError the second time.

    With L the log-sum-exp of all scores and R that of the rest, ∂L/∂z_j = exp(z_j − L), and for the rest
    ∂R/∂z_j = exp(z_j − R), which is no more than 1: the power of j over the sum of all powers of the rest.
    """

    @staticmethod
    def forward(scores_BC: Tensor, ids_BK: Tensor, temperature: float) -> tuple[Tensor, ...]:
        """Return both; and for the backward pass the rest as it was, its powers (B, C), and their sums."""
        kept_BK = scores_BC.gather(1, ids_BK).float() / temperature
        powers_BC = torch.empty_like(scores_BC, dtype=torch.float32)
        tops, sums = [], []
        for block_BC, scores, ids in _blocks(powers_BC, scores_BC, ids_BK):
            block_BC.copy_(scores)
            if temperature != 1:
                block_BC.div_(temperature)
            block_BC.scatter_(1, ids, EMPTY)  # no part of the rest
            tops.append(block_BC.amax(dim=1))
            sums.append(block_BC.sub_(tops[-1][:, None]).exp_().sum(dim=1))  # below the largest, none overflows
        sums_B = torch.cat(sums)
        rest_B = torch.cat(tops) + sums_B.log()
        all_kept_B = kept_BK.masked_fill(~first_of_its_kind(ids_BK), -torch.inf).logsumexp(dim=1)
        lse_B = torch.logaddexp(all_kept_B, rest_B)
        log_rest_B = rest_B - lse_B
        return kept_BK - lse_B[:, None], log_rest_B.clamp(min=NEVER), log_rest_B, powers_BC, sums_B

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, ...]) -> None:
        scores_BC, ids_BK, ctx.temperature = inputs
        ctx.dtype = scores_BC.dtype
        log_q_BK, _, *beside = output
        ctx.mark_non_differentiable(*beside)
        ctx.set_materialize_grads(False)  # of the powers that would be as many zeros
        ctx.save_for_backward(ids_BK, log_q_BK, *beside)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], scores: Tensor, ids: Tensor, temperature: float
    ) -> tuple[tuple[Tensor, ...], int]:
        """Take M batches of B rows, such as those of stacked students, as one of M·B."""
        scores_MBC, ids_MBK = (
            values.expand(info.batch_size, *values.shape) if at is None else values.movedim(at, 0)
            for values, at in zip((scores, ids), in_dims, strict=False)  # the last is that of temperature
        )
        flat = (scores_MBC.flatten(0, 1), ids_MBK.flatten(0, 1), temperature)
        found = _KeptAndRest.apply(*flat)  # type: ignore[no-untyped-call]
        return tuple(values.unflatten(0, scores_MBC.shape[:2]) for values in found), 0

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, None, None]:
        ids_BK, log_q_BK, log_rest_B, powers_BC, sums_B = ctx.saved_tensors
        kept_grad_BK, rest_grad_B, *_ = gradients
        kept_grad_BK = torch.zeros_like(log_q_BK) if kept_grad_BK is None else kept_grad_BK
        rest_grad_B = torch.zeros_like(log_rest_B) if rest_grad_B is None else rest_grad_B
        rest_grad_B = torch.where(log_rest_B > NEVER, rest_grad_B, 0.0)  # it was clamped
        total_B = kept_grad_BK.sum(dim=1) + rest_grad_B
        factor_B = (rest_grad_B - total_B * log_rest_B.clamp(min=NEVER).exp()) / ctx.temperature
        gradient_BC = powers_BC.mul_((factor_B / sums_B)[:, None])
        # set, then added: a class that is named twice has one power, but the gradients of both
        gradient_BC.scatter_(1, ids_BK, log_q_BK.exp() * (-total_B / ctx.temperature)[:, None])
        gradient_BC.scatter_add_(1, ids_BK, kept_grad_BK / ctx.temperature)
        return gradient_BC.to(ctx.dtype), None, None


def _blocks(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same rows of each, so many that those of the first are a block."""
    size = max(1, BLOCK_ELEMENTS.get(rows[0].device.type, 2**28) // max(1, rows[0].shape[1]))
    return zip(*(values.split(size) for values in rows), strict=True)


def log1m_exp(log_p_B: Tensor) -> Tensor:
    """Return log(1 − exp(x)) for x ≤ 0, NEVER where nothing is left; rounding above 0 counts as 0."""
    x = log_p_B.clamp(max=0.0)
    # −log 2: each form is exact on its own side (Mächler 2012)
    left = torch.where(x > -0.6931, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
    return left.clamp(min=NEVER)


def _with(values_BK: Tensor, last_B: Tensor) -> Tensor:
    """Return values with one more column."""
    return torch.cat([values_BK, last_B[:, None]], dim=1)
