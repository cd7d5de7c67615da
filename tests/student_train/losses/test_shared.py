"""Students of one batch share what is decoded of it, so no loss may change that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from storage.targets.soft import DenseTargets
from student_train.feed.batches import ArrayKey, Supervision
from student_train.losses import LOSSES
from student_train.losses.outputs import Outputs, Shapes
from tests.student_train.losses.toys import SOFT, draw, keep, normal, term

FEATURES: dict[str, dict[str, Any]] = {
    loss: {"feature": "f", "student_layer": "x"}
    for loss in ("hint", "cosine", "vid", "attention", "rkd", "similarity", "pkt", "crd")
}
KEY = ArrayKey("t", "feature/f")


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in soft targets."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for each in fields(value):
            yield from tensors(getattr(value, each.name))


@pytest.mark.parametrize(
    ("loss", "form"),
    [
        *((loss, form) for loss in ("labels", *SOFT) for form in ("dense", "sparse")),
        ("logit_mse", "dense"),
        ("random_sampling", "draws"),
        ("stratified", "kept and draws"),
    ],
)
def test_no_loss_changes_soft_targets(loss: str, form: str) -> None:
    logits_BC, labels_B = normal(6, 5), torch.arange(6) % 5
    targets = {
        "dense": DenseTargets(logits_BC),
        "sparse": keep(logits_BC, 3, labels_B),
        "draws": draw(logits_BC, 0, 20),
        "kept and draws": draw(logits_BC, 2, 20),
    }[form]
    given = Supervision(labels_B, {"t": targets})
    seen = [labels_B, *tensors(targets)]
    before = [each.clone() for each in seen]
    student_BC = normal(6, 5, seed=1).requires_grad_()
    LOSSES[loss].term(term(loss, **SOFT.get(loss, {})), Shapes({}, {}))(Outputs(student_BC), given).backward()
    assert all(torch.equal(now, then) for now, then in zip(seen, before, strict=True))


@pytest.mark.parametrize("loss", FEATURES)
def test_no_loss_changes_features(loss: str) -> None:
    shape = (4, 3, 3) if loss == "attention" else (4,)
    feature, layer = normal(6, *shape), normal(6, *shape, seed=1).requires_grad_()
    before = feature.clone()
    made = LOSSES[loss].term(term(loss, **FEATURES[loss]), Shapes({"x": shape}, {KEY: shape}))
    labels_B = torch.arange(6) % 2
    made(Outputs(torch.zeros(6, 2), {"x": layer}), Supervision(labels_B, features={KEY: feature})).backward()
    assert torch.equal(feature, before)
