"""Classes that a teacher says can never be: every loss that takes them, of every encoding, against closed forms.

However a teacher says it, −∞, −10⁴, −10⁹ or the least number there is, the value is the same: float64, by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from storage.digests import sample_keys
from storage.encodings import AnyEncoding, DenseEncoding, SparseEncoding
from storage.encodings.base import USES_NEVER
from storage.targets.soft import DenseTargets, SoftTargets, SparseTargets
from student_train.losses import LOSSES
from student_train.losses.on_targets import approximate, decoupled, dist, divergences, kd, sampled
from tests.student_train.losses.toys import normal

CLASSES, ROWS, T = 12, 6, 2.0
CAN_BE = 5  # in each row but the first, where one more can, and the last, where two can
WORDS = {"-inf": -math.inf, "-1e4": -1e4, "-1e9": -1e9, "least": torch.finfo(torch.float32).min}
ENCODINGS: dict[str, tuple[AnyEncoding, float]] = {  # and how near to float64
    "fp32": (DenseEncoding(temperatures=[T]), 1e-5),
    "fp16": (DenseEncoding(dtype="fp16"), 2e-3),
    "bf16": (DenseEncoding(dtype="bf16"), 2e-2),
    "int8": (DenseEncoding(dtype="int8"), 1e-2),
    "sparse": (SparseEncoding(k=7, temperatures=[T]), 2e-3),
    "sparse 8bit": (SparseEncoding(k=7, values="8bit", temperatures=[T]), 1e-2),
    "sparse and draws": (SparseEncoding(k=6, n=4, temperatures=[T]), 2e-3),
}


def possible() -> Tensor:
    can_BC = torch.zeros(ROWS, CLASSES, dtype=torch.bool)
    for row in range(ROWS):
        can_BC[row, torch.randperm(CLASSES, generator=torch.Generator().manual_seed(row))[:CAN_BE]] = True
    can_BC[0, 0] = True
    can_BC[-1] = torch.arange(CLASSES) < 2
    return can_BC


CAN_BC = possible()
TEACHER_BC, STUDENT_BC = normal(ROWS, CLASSES, seed=1, scale=2.0), normal(ROWS, CLASSES, seed=2, scale=2.0)
LABELS_B = torch.tensor([CAN_BC[row].nonzero()[0, 0] for row in range(ROWS)])


def encoded(encoding: AnyEncoding, word: str) -> dict[str, Tensor]:
    logits_BC = TEACHER_BC.masked_fill(~CAN_BC, WORDS[word])
    keys_B = torch.from_numpy(sample_keys([str(row) for row in range(ROWS)]))
    return encoding.encode(logits_BC, num_classes=CLASSES, labels_B=LABELS_B, keys_B=keys_B)


def targets(encoding: AnyEncoding, word: str) -> SoftTargets:
    return encoding.decode(encoded(encoding, word), CLASSES)


def p_q(temperature: float = T) -> tuple[Tensor, Tensor]:
    p_BC = (TEACHER_BC.double() / temperature).masked_fill(~CAN_BC, -torch.inf).softmax(1)
    return p_BC, (STUDENT_BC.double() / temperature).softmax(1)


def kl(p_BC: Tensor, q_BC: Tensor) -> Tensor:
    """Return Σ p log(p/q), (B,), 0 log 0 being 0."""
    return torch.where(p_BC > 0, p_BC * (p_BC.clamp(min=1e-300) / q_BC).log(), 0.0).sum(1)


def others() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return p and q of the label, (B,), and given that it is not the label, (B, C); 0 where nothing else can be."""
    p_BC, q_BC = p_q()
    label_B1 = LABELS_B[:, None]
    p_B, q_B = p_BC.gather(1, label_B1)[:, 0], q_BC.gather(1, label_B1)[:, 0]
    others = [each.scatter(1, label_B1, 0.0) for each in (p_BC, q_BC)]
    hats = [each / each.sum(1, keepdim=True).clamp(min=1e-300) for each in others]
    return p_B, q_B, *hats


def exact_dkd() -> Tensor:
    p_B, q_B, p_hat_BC, q_hat_BC = others()
    of_label = kl(torch.stack([p_B, 1 - p_B], 1), torch.stack([q_B, 1 - q_B], 1))
    return T**2 * (of_label + 2 * kl(p_hat_BC, q_hat_BC.clamp(min=1e-300))).mean()


def exact_nkd() -> Tensor:
    p_1_BC, q_1_BC = p_q(1.0)
    label_B1 = LABELS_B[:, None]
    own_B = (p_1_BC.gather(1, label_B1) * q_1_BC.gather(1, label_B1).log())[:, 0]
    *_, p_hat_BC, q_hat_BC = others()
    return (-own_B - T**2 * (p_hat_BC * q_hat_BC.clamp(min=1e-300).log()).sum(1)).mean()


def exact_dist() -> Tensor:
    p_BC, q_BC = (each - each.mean(1, keepdim=True) for each in p_q())
    return (1 - torch.cosine_similarity(p_BC, q_BC)).mean()


def mean(p_BC: Tensor, q_BC: Tensor, share: float) -> Tensor:
    return share * p_BC + (1 - share) * q_BC


Loss = Callable[[SoftTargets], Tensor]
EXACT: dict[str, tuple[Loss, Callable[[], Tensor]]] = {
    "kd": (lambda t: kd.kd(STUDENT_BC, t, temperature=T), lambda: T**2 * kl(*p_q()).mean()),
    "marginal_smoothing": (
        lambda t: approximate.marginal_smoothing(STUDENT_BC, t, temperature=T),
        lambda: T**2 * kl(*p_q()).mean(),
    ),
    "topk_biased": (
        lambda t: approximate.topk_biased(STUDENT_BC, t, temperature=T),
        lambda: T**2 * kl(*p_q()).mean(),
    ),
    "dkd": (
        lambda t: decoupled.dkd(STUDENT_BC, t, labels_B=LABELS_B, temperature=T, alpha=1.0, beta=2.0),
        exact_dkd,
    ),
    "nkd": (lambda t: decoupled.nkd(STUDENT_BC, t, labels_B=LABELS_B, temperature=T, gamma=1.0), exact_nkd),
    "dist": (lambda t: dist.dist(STUDENT_BC, t, temperature=T, beta=1.0, gamma=0.0), exact_dist),
    "jsd": (
        lambda t: divergences.jsd(STUDENT_BC, t, temperature=T, beta=0.3),
        lambda: 0.3 * kl(p_q()[0], mean(*p_q(), 0.3)).mean() + 0.7 * kl(p_q()[1], mean(*p_q(), 0.3)).mean(),
    ),
    "skewed_kl": (
        lambda t: divergences.skewed_kl(STUDENT_BC, t, temperature=T, skew=0.1),
        lambda: kl(p_q()[0], mean(*p_q(), 0.1)).mean(),
    ),
    "skewed_reverse_kl": (
        lambda t: divergences.skewed_reverse_kl(STUDENT_BC, t, temperature=T, skew=0.1),
        lambda: kl(p_q()[1], mean(*p_q(), 0.9)).mean(),
    ),
    "total_variation": (
        lambda t: divergences.total_variation(STUDENT_BC, t, temperature=T),
        lambda: 0.5 * (p_q()[0] - p_q()[1]).abs().sum(1).mean(),
    ),
}


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("loss", EXACT)
def test_a_loss_is_its_closed_form_where_classes_can_never_be(loss: str, name: str, word: str) -> None:
    encoding, tolerance = ENCODINGS[name]
    function, exact = EXACT[loss]
    found = function(targets(encoding, word))
    assert found.item() == pytest.approx(exact().item(), rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", ["int8", "sparse 8bit"])
def test_eight_bits_are_within_a_ten_thousandth_of_a_nat_of_the_teacher(name: str, word: str) -> None:
    p_BC = p_q(1.0)[0]
    decoded_BC = targets(ENCODINGS[name][0], word).log_p(1.0).double().exp()
    assert kl(p_BC, decoded_BC.clamp(min=1e-300)).max() < 1e-4


@pytest.mark.parametrize("word", WORDS)
def test_what_can_never_be_is_never_drawn(word: str) -> None:
    drawn = targets(SparseEncoding(n=CLASSES), word)
    assert isinstance(drawn, SparseTargets)
    assert drawn.draws_BN is not None
    assert drawn.counts_BN is not None
    assert CAN_BC.gather(1, drawn.draws_BN)[drawn.counts_BN > 0].all()


@pytest.mark.parametrize("word", WORDS)
def test_where_all_that_can_be_is_kept_there_is_nothing_to_draw(word: str) -> None:
    p_BC, q_BC = p_q(1.0)
    exact = -(p_BC * q_BC.log()).sum(1).mean()
    found = sampled.stratified(STUDENT_BC, targets(ENCODINGS["sparse and draws"][0], word))
    assert found.item() == pytest.approx(exact.item(), rel=2e-3)


@pytest.mark.parametrize("name", ["fp32", "int8", "sparse", "sparse 8bit"])
def test_a_row_in_which_the_label_alone_can_be_says_nothing_of_the_others(name: str) -> None:
    encoding, logits_BC = ENCODINGS[name][0], torch.full((1, CLASSES), -torch.inf).index_fill(1, torch.tensor([3]), 1.0)
    label_B = torch.tensor([3])
    arrays = encoding.encode(logits_BC, num_classes=CLASSES, labels_B=label_B, keys_B=label_B)
    soft, student_BC = encoding.decode(arrays, CLASSES), STUDENT_BC[:1].clone().requires_grad_()
    found = decoupled.dkd(student_BC, soft, labels_B=label_B, temperature=T, alpha=1.0, beta=2.0)
    found.backward()
    assert found.item() == pytest.approx(-(T**2) * (STUDENT_BC[0] / T).log_softmax(0)[3].item(), rel=1e-5)
    assert student_BC.grad is not None
    assert student_BC.grad.isfinite().all()


def test_a_student_far_from_its_teacher_still_has_a_gradient_in_the_decoupled_losses() -> None:
    # a class that the teacher likes, given that it is not the label, and to which the student gives e⁻³⁰⁰⁰⁰
    student_BC = torch.tensor([[0.0, -3e4, 0.0]], requires_grad=True)
    soft, label_B = DenseTargets(torch.tensor([[1.0, 2.0, 1.0]])), torch.tensor([0])
    decoupled.dkd(student_BC, soft, labels_B=label_B, temperature=1.0, alpha=0.0, beta=1.0).backward()
    assert student_BC.grad is not None
    assert student_BC.grad[0, 1].item() == pytest.approx(-torch.tensor([2.0, 1.0]).softmax(0)[0].item())


def test_the_reverse_divergence_of_dense_targets_is_exact_below_a_hundred_nats() -> None:
    logits_BC = torch.tensor([[0.0, -150.0]])
    q_C, p_C = STUDENT_BC[0, :2].double().log_softmax(0), logits_BC[0].double().log_softmax(0)
    found = divergences.reverse_kl(STUDENT_BC[:1, :2], DenseTargets(logits_BC), temperature=1.0)
    assert found.item() == pytest.approx((q_C.exp() * (q_C - p_C)).sum().item(), rel=1e-6)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", ENCODINGS)
def test_statistics_are_of_the_classes_that_can_be(name: str, word: str) -> None:
    found = ENCODINGS[name][0].model_copy(update={"temperatures": [1.0, T], "standardised_temperatures": [1.0]})
    arrays = encoded(found, word)
    entropy_B, _, deviation_B, *norms = arrays["statistics"].float().unbind(1)
    p_BC = p_q(1.0)[0]
    assert torch.allclose(entropy_B.double(), -torch.special.xlogy(p_BC, p_BC).sum(1), rtol=1e-3, atol=1e-3)
    by_hand = torch.stack([TEACHER_BC[row][CAN_BC[row]].double().std(correction=0) for row in range(ROWS)])
    assert torch.allclose(deviation_B.double(), by_hand, rtol=1e-3)
    assert torch.allclose(norms[0].double(), p_BC.norm(dim=1), rtol=1e-3)
    rows = [TEACHER_BC[row][CAN_BC[row]] for row in range(ROWS)]
    unit = [(z - z.mean()) / z.std(correction=0) for z in rows]
    assert torch.allclose(arrays["lse"][:, 2], torch.stack([z.logsumexp(0) for z in unit]), rtol=1e-4)


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16", "int8"])
def test_arrays_with_such_classes_say_that_a_reader_must_know_them(name: str) -> None:
    encoding = ENCODINGS[name][0]
    arrays = {key: values.numpy() for key, values in encoded(encoding, "-inf").items()}
    assert encoding.uses(arrays) == (USES_NEVER,)
    assert encoding.fault(arrays, CLASSES, (USES_NEVER,)) is None
    if name != "int8":
        assert encoding.fault(arrays, CLASSES) is not None
    plain = encoding.encode(TEACHER_BC, num_classes=CLASSES, labels_B=LABELS_B, keys_B=LABELS_B)
    assert encoding.uses({key: values.numpy() for key, values in plain.items()}) == ()


@pytest.mark.parametrize("name", ["sparse", "sparse 8bit", "sparse and draws"])
def test_sparse_targets_need_no_word_for_them(name: str) -> None:
    encoding = ENCODINGS[name][0]
    arrays = {key: values.numpy() for key, values in encoded(encoding, "-inf").items()}
    assert (encoding.uses(arrays), encoding.fault(arrays, CLASSES)) == ((), None)


def test_losses_that_have_no_value_there_are_known() -> None:
    assert [name for name, loss in LOSSES.items() if not loss.takes_never] == [
        "standardised",
        "reverse_kl",
        "logit_mse",
    ]
