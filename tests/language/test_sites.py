"""The step of a student of tokens: a part of the sites at a time, and the same gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from storage.encodings import DenseEncoding, Encoded, SparseEncoding
from student_train.feed.batches import Batch
from student_train.losses.objective import Objective
from student_train.losses.outputs import Shapes
from student_train.options.terms import KdTerm, LabelsTerm
from student_train.stepping.forward import Tapped
from student_train.stepping.gradients.rows import Model, Step
from student_train.stepping.gradients.sites import accumulate_over_sites
from student_train.students import Blueprint, build_student

B, L, C = 3, 16, 40
AUTOCAST = torch.autocast("cpu", enabled=False)


def model_of(tied: bool = True) -> Model:
    torch.manual_seed(0)
    options = {"depth": 2, "width": 16, "heads": 2, "tied": tied, "end_of_text": 0}
    spec = Blueprint(architecture="gpt", options=options, num_classes=C, input_shape=(L,), mean=None, std=None)
    student = build_student(spec).double()
    terms = (LabelsTerm(loss="labels", weight=0.3), KdTerm(loss="kd", teacher="t", temperature=2.0))
    objective = Objective(terms, Shapes({}, {}))
    trained = [*student.parameters(), *objective.parameters()]
    return Model(student, Tapped(student, ()), objective, trained, C)


def batch_of(*, sparse: bool = False, masked: float = 0.3) -> tuple[Batch, Tensor]:
    random = torch.Generator().manual_seed(1)
    tokens_BL = torch.randint(0, C, (B, L), generator=random)
    labels_BL = torch.randint(0, C, (B, L), generator=random)
    labels_BL[torch.rand(B, L, generator=random) < masked] = -1
    teacher_BLC = 3 * torch.randn(B, L, C, generator=random)
    encoding = SparseEncoding(k=8, temperatures=[1.0, 2.0]) if sparse else DenseEncoding()
    arrays = encoding.encode(
        teacher_BLC.flatten(0, 1), num_classes=C, labels_B=labels_BL.flatten(), keys_B=torch.arange(B * L)
    )
    labelled = labels_BL.flatten() >= 0  # a batch has targets of these alone
    targets = {"t": Encoded(encoding, C, {name: values[labelled] for name, values in arrays.items()})}
    return Batch(tokens_BL, labels_BL, targets), teacher_BLC


def taken(model: Model, batch: Batch, **options: Any) -> tuple[Step, list[Tensor]]:
    for parameter in model.trained:
        parameter.grad = None
    step = accumulate_over_sites(model, batch, autocast=AUTOCAST, **({"measure_shares": False} | options))
    return step, [parameter.grad.clone() for parameter in model.trained if parameter.grad is not None]


def parts_of(model: Model, batch: Batch, teacher_BLC: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two terms after their weights, from all logits at once."""
    logits_BLC = model.student(batch.inputs)
    assert batch.labels_B is not None
    counts = batch.labels_B >= 0
    labels = functional.cross_entropy(logits_BLC[counts], batch.labels_B[counts])
    p, q = (values[counts].div(2).log_softmax(-1) for values in (teacher_BLC, logits_BLC))
    return 0.3 * labels, 4 * (p.exp() * (p - q)).sum(-1).mean()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_gradient_is_that_of_the_mean_over_all_positions_that_count(size: int, tied: bool) -> None:
    model = model_of(tied)
    batch, teacher_BLC = batch_of()
    step, gradients = taken(model, batch, size=size)

    labels, kd = parts_of(model, batch, teacher_BLC)
    total = labels + kd
    expected = torch.autograd.grad(total, model.trained)
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)  # losses are computed in float32
    assert [float(value) for value in (step.loss, *step.values)] == pytest.approx(
        [values.item() for values in (total.detach(), labels.detach() / 0.3, kd.detach())], rel=1e-5
    )
    assert step.rows == len(batch.sites())


@pytest.mark.parametrize("sparse", [False, True])
def test_the_size_of_a_part_changes_nothing(sparse: bool) -> None:
    model = model_of()
    batch, _ = batch_of(sparse=sparse)
    (one, parts), (other, whole) = (taken(model, batch, size=size) for size in (5, 1000))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(one.loss, other.loss)


def test_a_batch_in_which_nothing_counts_has_no_gradient() -> None:
    step, gradients = taken(model_of(), batch_of(masked=1.1)[0], measure_shares=True)
    assert (gradients, step.rows, step.shares) == ([], 0, None)
    assert math.isfinite(float(step.loss))


def test_shares_are_measured_and_the_gradient_is_the_same() -> None:
    model = model_of()
    batch, teacher_BLC = batch_of()
    step, gradients = taken(model, batch, size=7, measure_shares=True)
    torch.testing.assert_close(gradients, taken(model, batch, size=7)[1], rtol=1e-5, atol=1e-8)
    gradients_K = [
        torch.autograd.grad(part, model.trained, retain_graph=True) for part in parts_of(model, batch, teacher_BLC)
    ]
    norms = [torch.stack([g.norm() for g in gradients]).norm() for gradients in gradients_K]
    assert step.shares is not None
    assert step.shares.tolist() == pytest.approx([float(norm / sum(norms)) for norm in norms], rel=1e-4)


class Widest(TorchDispatchMode):
    """The most rows of C logits that any tensor has held."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.shape[-1:] == (C,):
                self.rows = max(self.rows, tensor.numel() // C)
        return out


@pytest.mark.parametrize(("size", "rows"), [(20, 20), (1000, 33)])
def test_the_logits_of_no_more_than_a_part_ever_exist(size: int, rows: int) -> None:
    model = model_of(tied=False)
    batch, _ = batch_of(sparse=True)
    with Widest() as widest:
        taken(model, batch, size=size)
    assert widest.rows == rows
