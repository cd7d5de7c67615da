"""Losses that look at the label and at the other classes apart. B rows, C classes, K pairs of a row."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from storage.encodings import Capability
from storage.targets.soft import SoftTargets
from storage.targets.support import kept_and_rest, log1m_exp
from student_train.feed.batches import Needs
from student_train.losses.on_targets.soft import SoftLoss, kl_rows, soft_needs
from student_train.losses.outputs import Shapes
from student_train.options.terms import DkdTerm, NkdTerm


def dkd(
    student_BC: Tensor, targets: SoftTargets, *, labels_B: Tensor, temperature: float, alpha: float, beta: float
) -> Tensor:
    """Return alpha·T²·KL([p_t, 1−p_t]‖[q_t, 1−q_t]) + beta·T²·KL(p̂‖q̂), where t is the label and the hats leave it out.

    Args:
        student_BC: logits, any float dtype; computed in float32.
        targets: the teacher's; of sparse ones, p̂ is over the kept classes but t, and a bucket of all others, divided
            by their mass 1 − p_t.
        labels_B: int64, in [0, C).
        temperature: T.
        alpha: weight of the label against all others.
        beta: weight of the others among themselves.

    Returns:
        Scalar, nats, mean over rows.

    Source: Zhao et al. 2022, eq. 7, arXiv 2203.08679, as it stands. Their code subtracts 1,000 from the label's logit
    where this leaves it out.
    """
    label_p_B = targets.label_log_p(labels_B, temperature)
    # the label as the one kept class, all others as the rest
    log_q_B1, log_rest_q_B = kept_and_rest(student_BC, labels_B[:, None], temperature)
    label_BK = torch.stack([label_p_B, log1m_exp(label_p_B)], dim=1)  # (B, 2): it, and all others
    label_rows_B = kl_rows(label_BK, torch.cat([log_q_B1, log_rest_q_B[:, None]], dim=1))
    other_rows_B = kl_rows(*targets.others_pair(student_BC, labels_B, temperature))
    return (alpha * label_rows_B + beta * other_rows_B).mean() * temperature**2


def nkd(student_BC: Tensor, targets: SoftTargets, *, labels_B: Tensor, temperature: float, gamma: float) -> Tensor:
    """Return −p_t log q_t − gamma·T²·Σ_{i≠t} p̂ log q̂, the label t at temperature 1 and the others, without it, at T.

    Args:
        student_BC: logits, any float dtype; computed in float32.
        targets: the teacher's; of sparse ones, p̂ as in `dkd`.
        labels_B: int64, in [0, C).
        temperature: T of the second term.
        gamma: weight of the others.

    Returns:
        Scalar, nats, mean over rows.

    Source: Yang et al. 2023, eq. 8, arXiv 2303.13005. Their first term beside it, −log q_t, is `labels` here.
    """
    label_p_B = targets.label_log_p(labels_B, 1.0).exp()
    log_q_B1, _ = kept_and_rest(student_BC, labels_B[:, None])
    log_p_BK, log_q_BK = targets.others_pair(student_BC, labels_B, temperature)
    others_B = (log_p_BK.exp() * log_q_BK).sum(dim=1)
    return (-label_p_B * log_q_B1[:, 0] - gamma * temperature**2 * others_B).mean()


def dkd_needs(term: DkdTerm) -> Needs:
    """Return what the term needs: probabilities and the label's, at its temperature; labels that are one class."""
    at = term.at
    return soft_needs(term, Capability("bucket", at), Capability("label_probability", at), with_labels=True)


def nkd_needs(term: NkdTerm) -> Needs:
    """Return what the term needs: as `dkd_needs`, and the label's probability at temperature 1."""
    at = {Capability("label_probability", 1.0), Capability("label_probability", term.temperature)}
    return soft_needs(term, Capability("bucket", term.temperature), *at, with_labels=True)


def dkd_module(term: DkdTerm, shapes: Shapes) -> nn.Module:
    """Return the term of an objective."""
    function = partial(dkd, temperature=term.at, alpha=term.alpha, beta=term.beta)
    return SoftLoss(term, function, with_labels=True)


def nkd_module(term: NkdTerm, shapes: Shapes) -> nn.Module:
    """Return the term of an objective."""
    return SoftLoss(term, partial(nkd, temperature=term.temperature, gamma=term.gamma), with_labels=True)
