"""Soft targets for the tests of losses: exact to float32, so that what differs from dense is the loss's own doing.

But for `draw`, whose draws are those that a cache really holds.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from storage.digests import sample_keys
from storage.encodings import DenseEncoding, SparseEncoding
from storage.targets.soft import NEVER, SoftTargets, SparseTargets, Statistics
from student_train.feed.batches import ArrayKey, Supervision
from student_train.losses import LOSSES
from student_train.losses.outputs import Outputs, Shapes
from student_train.options.terms import ObjectiveTerm

TEMPERATURES = (1.0, 2.0, 4.0)
TERM: TypeAdapter[Any] = TypeAdapter(ObjectiveTerm)
# Losses that need draws are apart: they have no dense value of a batch, only of a mean over draws.
SOFT = {
    "kd": {"temperature": 2.0},
    "marginal_smoothing": {"temperature": 2.0},
    "topk_biased": {"temperature": 2.0},
    "dkd": {"temperature": 2.0},
    "nkd": {"temperature": 2.0},
    "dist": {"temperature": 2.0, "allow_approximate_columns": True},
    "standardised": {"temperature": 2.0},
    "reverse_kl": {"temperature": 2.0, "allow_bucket": True},
    "jsd": {"temperature": 2.0, "beta": 0.3},
    "skewed_kl": {"temperature": 2.0},
    "skewed_reverse_kl": {"temperature": 2.0},
    "total_variation": {"temperature": 2.0},
}


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def keep(logits_BC: Tensor, k: int, labels_B: Tensor | None = None, *, padding: int = 0) -> SparseTargets:
    """Return the k largest classes exactly, `padding` repeated ids, and statistics at TEMPERATURES."""
    logits_BC = logits_BC.float()
    ids_BK = logits_BC.topk(k, dim=1).indices.sort(dim=1).values
    outside_BC = torch.ones_like(logits_BC, dtype=torch.bool).scatter(1, ids_BK, value=False)

    def rest(scores_BC: Tensor) -> Tensor:
        kept_out_BC = scores_BC.double().log_softmax(1).masked_fill(~outside_BC, -torch.inf)
        return kept_out_BC.logsumexp(1).clamp(min=NEVER).float()

    centred_BC = logits_BC - logits_BC.mean(1, keepdim=True)
    std_B = logits_BC.std(1, correction=0)
    unit_BC = centred_BC / std_B.clamp(min=1e-6)[:, None]
    labels_B = torch.zeros(len(logits_BC), dtype=torch.int64) if labels_B is None else labels_B
    log_p_BTC = torch.stack([(logits_BC / t).log_softmax(1) for t in TEMPERATURES], 1)
    log_p_BK = log_p_BTC[:, 0].gather(1, ids_BK)
    if padding:
        ids_BK = torch.cat([ids_BK, ids_BK[:, -1:].expand(-1, padding)], 1)
        log_p_BK = torch.cat([log_p_BK, torch.full((len(ids_BK), padding), NEVER)], 1)
    statistics = Statistics(
        temperatures=TEMPERATURES,
        lse_BT=torch.stack([(logits_BC / t).logsumexp(1) for t in TEMPERATURES], 1),
        label_log_p_BT=log_p_BTC.gather(2, labels_B[:, None, None].expand(-1, len(TEMPERATURES), 1))[:, :, 0],
        sum_squares_BT=log_p_BTC.exp().square().sum(2),
        entropy_B=-(log_p_BTC[:, 0].exp() * log_p_BTC[:, 0]).sum(1),
        mean_B=logits_BC.mean(1),
        std_B=std_B,
        standardised_temperatures=TEMPERATURES,
        standardised_lse_BU=torch.stack([(unit_BC / t).logsumexp(1) for t in TEMPERATURES], 1),
    )
    return SparseTargets(
        logits_BC.shape[1],
        ids_BK,
        log_p_BK,
        statistics=statistics,
        temperatures=TEMPERATURES,
        log_rest_BT=torch.stack([rest(logits_BC / t) for t in TEMPERATURES], 1),
        standardised_temperatures=TEMPERATURES,
        standardised_log_rest_BU=torch.stack([rest(unit_BC / t) for t in TEMPERATURES], 1),
    )


def draw(logits_BC: Tensor, k: int, n: int, *, seed: int = 0) -> SparseTargets:
    """Return what a cache gives of the k largest classes and n draws from the rest (from all, if k is 0)."""
    encoding, num_classes = SparseEncoding(k=k, n=n, seed=seed), logits_BC.shape[1]
    keys_B = torch.from_numpy(sample_keys(f"row-{row}" for row in range(len(logits_BC))))
    labels_B = torch.zeros(len(logits_BC), dtype=torch.int64)
    arrays = encoding.encode(logits_BC, num_classes=num_classes, labels_B=labels_B, keys_B=keys_B)
    return encoding.decode(arrays, num_classes)


def term(loss: str, **options: Any) -> Any:
    """Return a term as a job file gives it, of the teacher "t" if none is named."""
    named = {} if {"teacher", "teachers"} & options.keys() or loss == "labels" else {"teacher": "t"}
    return TERM.validate_python({"loss": loss} | named | options)


def value_of(
    loss: str, student_BC: Tensor, targets: SoftTargets | dict[str, SoftTargets], labels_B: Tensor, **options: Any
) -> Tensor:
    """Return a term's value, by the way that training takes."""
    made = term(loss, **options)
    given = targets if isinstance(targets, dict) else {"t": targets}
    return LOSSES[loss].term(made, Shapes({}, {}))(Outputs(student_BC), Supervision(labels_B, given))


def feature_loss(loss: str, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...], **options: Any) -> Any:
    """Return a term on the layer "x" and the feature "f"."""
    made = term(loss, feature="f", student_layer="x", **options)
    return LOSSES[loss].term(made, Shapes({"x": student_shape}, {ArrayKey("t", "feature/f"): teacher_shape}))


def compare(loss: Any, layer: Tensor, feature: Tensor, labels_B: Tensor | None = None) -> Tensor:
    """Return the value of what `feature_loss` made."""
    given = Supervision(labels_B, features={ArrayKey("t", "feature/f"): feature})
    return loss(Outputs(torch.zeros(len(layer), 2), {"x": layer}), given)


def remedies(made: Any, encoding: DenseEncoding | SparseEncoding) -> list[str]:
    """Return the changes to the cache job that a term asks for; none if its needs are met."""
    found = [encoding.lacks(need.capability) for need in sorted(LOSSES[made.loss].needs(made).soft)]
    return [remedy for remedy in found if remedy is not None]


def sparse(**options: Any) -> SparseEncoding:
    return SparseEncoding.model_validate({"k": 4} | options)
