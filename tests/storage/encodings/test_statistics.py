"""What is kept of each row besides its classes, against float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from storage.encodings import DenseEncoding, Encoding, SparseEncoding, statistics
from storage.encodings.statistics import decode
from storage.targets.soft import Statistics

TEMPERATURES = (0.5, 1.0, 2.0, 8.0)
STANDARDISED = (1.0, 3.0)
DECLARED = {"temperatures": list(TEMPERATURES), "standardised_temperatures": list(STANDARDISED)}
ENCODINGS = [
    DenseEncoding(dtype="fp16", **DECLARED),
    DenseEncoding(dtype="int8", **DECLARED),
    SparseEncoding(k=9, **DECLARED),
    SparseEncoding(k=9, p=0.5, **DECLARED),
    SparseEncoding(n=5, **DECLARED),
]
FP16 = 2.0**-10  # a rounding of float16, and a root that is squared again


def logits_and_labels(classes: int = 300) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits_BC = 4 * torch.randn(6, classes, generator=generator) + torch.tensor([0.0, 50, -50, 3, 3, 900])[:, None]
    logits_BC[4, 7] = 60  # all but certain
    return logits_BC, torch.tensor([0, 3, -1, classes - 1, 7, 5])


def described(encoding: Encoding, logits_BV: Tensor, labels_B: Tensor, classes: int) -> Statistics:
    keys_B = torch.arange(len(logits_BV))
    stored = encoding.encode(logits_BV, num_classes=classes, labels_B=labels_B, keys_B=keys_B)
    statistics = decode(stored, encoding)
    assert statistics is not None
    return statistics


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.parametrize("classes", [300, 5000])  # beyond LONG_ROW, sums are taken in another way
def test_statistics_are_those_of_the_teachers_own_logits(encoding: Encoding, classes: int) -> None:
    logits_BC, labels_B = logits_and_labels(classes)
    found, exact_BC = described(encoding, logits_BC, labels_B, classes), logits_BC.double()
    log_p_BTC = torch.stack([(exact_BC / t).log_softmax(1) for t in TEMPERATURES], 1)
    z_BC = (exact_BC - exact_BC.mean(1, keepdim=True)) / exact_BC.std(1, unbiased=False, keepdim=True)
    label_BT = log_p_BTC.gather(2, labels_B.clamp(min=0)[:, None, None].expand(-1, len(TEMPERATURES), 1))[..., 0]
    label_BT[labels_B < 0] = 0
    expected = Statistics(
        TEMPERATURES,
        torch.stack([(exact_BC / t).logsumexp(1) for t in TEMPERATURES], 1),
        label_BT,
        log_p_BTC.exp().square().sum(2),
        -(log_p_BTC[:, 1].exp() * log_p_BTC[:, 1]).sum(1),
        exact_BC.mean(1),
        exact_BC.std(1, unbiased=False),
        STANDARDISED,
        torch.stack([(z_BC / t).logsumexp(1) for t in STANDARDISED], 1),
    )
    for field in ("lse_BT", "standardised_lse_BU"):
        torch.testing.assert_close(getattr(found, field).double(), getattr(expected, field), rtol=1e-6, atol=2e-5)
    for field in ("label_log_p_BT", "sum_squares_BT", "entropy_B", "std_B"):
        torch.testing.assert_close(getattr(found, field).double(), getattr(expected, field), rtol=FP16, atol=1e-5)
    below = (expected.mean_B - expected.lse_BT[:, 1]).abs().max()  # it is kept as a log-probability
    torch.testing.assert_close(found.mean_B.double(), expected.mean_B, rtol=0, atol=FP16 * float(below))


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.parametrize("classes", [300, 5000])
def test_a_row_has_the_same_bits_whichever_rows_are_summed_with_it(
    encoding: Encoding, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits_BC, labels_B = logits_and_labels(classes)
    logits_BC[1, ::3] = -torch.inf  # classes that can never be, in one row alone; row 4 is summed above its mean

    def stored() -> dict[str, Tensor]:
        return encoding.encode(logits_BC, num_classes=classes, labels_B=labels_B, keys_B=torch.arange(6))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        together = stored()
        monkeypatch.setattr("storage.encodings.statistics.SWEEP_ELEMENTS", {"cpu": 1})
        alone = stored()
    finally:
        torch.set_num_threads(threads)
    assert {name for name, values in together.items() if not torch.equal(values, alone[name])} == set()


@pytest.mark.parametrize("threads", [1, 2])
def test_each_thread_sums_one_row_of_a_large_vocabulary_at_a_time(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits, and two arrays of the same size that are made of them: 1.5 MB stay in a core's own cache."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    summed: list[int] = []
    sums = statistics._sums

    def noted(block: tuple[Tensor, ...], *args: Any, **kwargs: Any) -> Any:
        summed.append(len(block[0]))
        return sums(block, *args, **kwargs)

    monkeypatch.setattr(statistics, "_sums", noted)
    rows_B = torch.zeros(5, dtype=torch.int64)
    SparseEncoding(k=4).encode(torch.randn(5, 128_256), num_classes=128_256, labels_B=rows_B, keys_B=rows_B)
    assert summed == {1: [1] * 5, 2: [2, 2, 1]}[threads]


def test_a_uniform_row_has_statistics_in_closed_form() -> None:
    found = described(DenseEncoding(temperatures=[1, 4]), torch.full((1, 8), 2.0), torch.tensor([3]), 8)
    close = {"rel_tol": 1e-3, "abs_tol": 1e-6}
    assert math.isclose(found.entropy_B.item(), math.log(8), **close)
    assert [round(value, 3) for value in found.sum_squares_BT[0].tolist()] == [0.125, 0.125]
    assert math.isclose(found.lse_BT[0, 1].item(), 0.5 + math.log(8), **close)
    assert (found.std_B.item(), round(found.mean_B.item(), 2)) == (0.0, 2.0)
    assert math.isclose(found.label_log_p_BT[0, 0].item(), -math.log(8), **close)


def test_a_small_sum_of_squares_keeps_its_precision() -> None:
    """Of 262,144 classes alike it is 4·10⁻⁶, where float16 itself has a step of 6·10⁻⁸."""
    found = described(SparseEncoding(n=1), torch.zeros(1, 2**18), torch.tensor([0]), 2**18)
    assert math.isclose(found.sum_squares_BT.item(), 2.0**-18, rel_tol=FP16)


@pytest.mark.parametrize("encoding", [DenseEncoding(statistics=False), SparseEncoding(k=2, statistics=False)], ids=str)
def test_statistics_can_be_switched_off(encoding: Encoding) -> None:
    logits_BC, labels_B = logits_and_labels()
    stored = encoding.encode(logits_BC, num_classes=300, labels_B=labels_B, keys_B=labels_B)
    assert (decode(stored, encoding), stored.keys() & {"lse", "statistics"}) == (None, set())


def test_temperature_1_is_always_declared_and_order_promises_nothing() -> None:
    assert DenseEncoding(temperatures=[4, 2, 4]).temperatures == [1.0, 2.0, 4.0]
