"""What one look at logits tells for tables and checks is what whole softmaxes say, whatever is stored beside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from storage.encodings import DenseEncoding, Encoding, SparseEncoding
from storage.encodings.base import Told

ENCODINGS = [
    DenseEncoding(),
    DenseEncoding(dtype="int8", statistics=False),
    SparseEncoding(k=4),
    SparseEncoding(k=4, p=0.5, statistics=False),
    SparseEncoding(n=3),
    SparseEncoding(k=2, n=2, temperatures=[0.5, 4.0]),
]


def told(encoding: Encoding, logits_BV: Tensor, classes: int, labels_B: Tensor) -> Told:
    keys_B = torch.arange(len(logits_BV))
    return encoding.encode_and_tell(logits_BV, num_classes=classes, labels_B=labels_B, keys_B=keys_B)[1]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.parametrize(("classes", "padded"), [(10, 10), (300, 304), (5000, 5000)])
def test_tables_say_what_a_softmax_says(encoding: Encoding, classes: int, padded: int) -> None:
    logits_BV = 4 * torch.randn(21, padded, generator=torch.Generator().manual_seed(0))
    logits_BV[3, ::2] = -torch.inf
    labels_B = torch.arange(21) * 7 % classes
    found, log_p_BC = told(encoding, logits_BV, classes, labels_B), logits_BV[:, :classes].double().log_softmax(1)
    p_BC = log_p_BC.exp()
    assert found.top.tolist() == log_p_BC.argmax(1).tolist()
    torch.testing.assert_close(found.top_probability, p_BC.amax(1).float())
    entropy_B = -(p_BC * log_p_BC.masked_fill(p_BC == 0, 0)).sum(1)
    torch.testing.assert_close(found.entropy, entropy_B.float(), rtol=1e-5, atol=1e-5)
    of_label_B = log_p_BC.gather(1, labels_B[:, None])[:, 0].clamp(min=-10_000).float()
    torch.testing.assert_close(found.label_log_probability, of_label_B, rtol=1e-5, atol=1e-5)
    assert found.never.tolist() == [row == 3 for row in range(21)]
    assert found.right.all()


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.parametrize("classes", [10, 300, 5000])
def test_of_several_likeliest_classes_the_first_is_the_top(encoding: Encoding, classes: int) -> None:
    draw = torch.Generator().manual_seed(1)
    logits_BC = torch.randint(-3, 3, (64, classes), generator=draw).float()
    logits_BC[0] = 1.0
    logits_BC[1, classes - 1] = logits_BC[1, classes // 2] = 9.0
    expected = (logits_BC == logits_BC.amax(1, keepdim=True)).int().argmax(1)
    assert told(encoding, logits_BC, classes, torch.zeros(64).long()).top.tolist() == expected.tolist()


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_what_are_no_logits_is_told(encoding: Encoding) -> None:
    logits_BV = torch.randn(6, 12)
    logits_BV[1, 4] = torch.nan
    logits_BV[2, 4] = torch.inf
    logits_BV[3, :10] = -torch.inf
    logits_BV[4, 11] = torch.inf  # padding would be the top class
    logits_BV[5, 10:] = -torch.inf  # as padding should
    assert told(encoding, logits_BV, 10, torch.zeros(6).long()).right.tolist() == [True, *[False] * 4, True]


def test_no_probability_is_above_1() -> None:
    sure_BC = 60.0 * torch.nn.functional.one_hot(torch.arange(9), 9).float() + torch.rand(9, 9)
    found = told(SparseEncoding(k=2), sure_BC, 9, torch.arange(9))
    assert (found.label_log_probability <= 0).all()
    assert (found.top_probability <= 1).all()
