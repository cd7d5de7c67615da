"""The losses, by the name that a job file gives them, each with what it needs from the cache and what it is.

on_targets/    on soft targets, one file a paper; soft.py what they share
on_features/   on features, one file a paper; features.py what they share
on_vectors.py  on answers that are vectors
on_target.py   on the numbers that a dataset has
labels.py      on labels
outputs.py     what losses look at of a student
objective.py   a weighted sum of losses
together.py    two losses that are computed in one go

To add a loss: copy `on_targets/kd.py` or `on_features/hint.py`; its options in `options/terms/`, there in
`ObjectiveTerm` too; and a line in LOSSES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from student_train.feed.batches import Needs
from student_train.losses import labels, on_target, on_vectors
from student_train.losses.on_features import attention, cosine, crd, hint, relations, vid
from student_train.losses.on_features.features import feature_needs
from student_train.losses.on_targets import (
    approximate,
    decoupled,
    dist,
    divergences,
    kd,
    logit_mse,
    sampled,
    standardised,
)
from student_train.losses.on_targets.divergences import module_of
from student_train.losses.outputs import Shapes


def always(term: Any) -> bool:
    """Return that it does, whatever its options."""
    return True


def never(term: Any) -> bool:
    """Return that it does not, whatever its options."""
    return False


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss: what its term in the job needs, and the term itself, from (Outputs, Supervision) to a scalar.

    `couples_rows`: whether it compares rows with each other. Where not, it is a mean over rows, so that parts of a
    batch add up to the whole. `takes_never`: whether it has a value where the teacher says that a class can never be.
    `by_direction`: whether it, or a part of it, looks at the directions of vectors alone, of which one number has none.
    """

    needs: Callable[[Any], Needs]
    term: Callable[[Any, Shapes], nn.Module]
    couples_rows: Callable[[Any], bool] = never
    takes_never: bool = True
    by_direction: Callable[[Any], bool] = never


LOSSES: dict[str, Loss] = {
    "labels": Loss(labels.needs, labels.LabelsLoss),
    # on soft targets
    "kd": Loss(kd.needs, kd.module),
    "random_sampling": Loss(sampled.random_sampling_needs, sampled.random_sampling_module),
    "stratified": Loss(sampled.stratified_needs, sampled.stratified_module),
    "marginal_smoothing": Loss(approximate.needs, approximate.marginal_smoothing_module),
    "topk_biased": Loss(approximate.needs, approximate.topk_biased_module),
    "dkd": Loss(decoupled.dkd_needs, decoupled.dkd_module),
    "nkd": Loss(decoupled.nkd_needs, decoupled.nkd_module),
    "dist": Loss(dist.needs, dist.module, couples_rows=dist.couples_rows),
    "standardised": Loss(standardised.needs, standardised.module, takes_never=False),
    "reverse_kl": Loss(divergences.reverse_kl_needs, module_of(divergences.reverse_kl), takes_never=False),
    "jsd": Loss(divergences.needs, module_of(divergences.jsd, "beta")),
    "skewed_kl": Loss(divergences.needs, module_of(divergences.skewed_kl, "skew")),
    "skewed_reverse_kl": Loss(divergences.needs, module_of(divergences.skewed_reverse_kl, "skew")),
    "total_variation": Loss(divergences.needs, module_of(divergences.total_variation)),
    "logit_mse": Loss(logit_mse.needs, logit_mse.module, takes_never=False),
    # on features
    "hint": Loss(feature_needs, hint.HintLoss),
    "cosine": Loss(feature_needs, cosine.CosineLoss),
    "vid": Loss(feature_needs, vid.VidLoss),
    "attention": Loss(feature_needs, attention.AttentionLoss),
    "rkd": Loss(feature_needs, relations.RkdLoss, couples_rows=always),
    "similarity": Loss(feature_needs, relations.SimilarityLoss, couples_rows=always),
    "pkt": Loss(feature_needs, relations.PktLoss, couples_rows=always),
    "crd": Loss(crd.needs, crd.CrdLoss, couples_rows=always),
    # on answers that are vectors
    "target_mse": Loss(on_target.needs, on_target.TargetMse),
    "vector_cosine": Loss(on_vectors.needs, on_vectors.module_of(on_vectors.cosine), by_direction=always),
    "vector_mse": Loss(on_vectors.needs, on_vectors.module_of(on_vectors.hint)),
    "vector_rkd": Loss(
        on_vectors.needs, on_vectors.rkd_module, couples_rows=always, by_direction=lambda term: term.angle > 0
    ),
    "vector_similarity": Loss(on_vectors.needs, on_vectors.module_of(on_vectors.similarity), couples_rows=always),
    "vector_pkt": Loss(
        on_vectors.needs, on_vectors.module_of(on_vectors.pkt), couples_rows=always, by_direction=always
    ),
    "infonce": Loss(on_vectors.needs, on_vectors.infonce_module, couples_rows=always, by_direction=always),
}
