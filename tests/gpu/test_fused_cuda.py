"""Sums over a vocabulary by two kernels on a CUDA device, against the passes of torch on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from storage.encodings import DenseEncoding, SparseEncoding
from storage.encodings.base import Told
from storage.encodings.fused import fuses

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ENCODINGS = {
    "largest": SparseEncoding(k=64),
    "temperatures": SparseEncoding(k=16, temperatures=[1.0, 2.0, 4.0]),
    "mass": SparseEncoding(k=64, p=0.9),
    "few": SparseEncoding(k=1, statistics=False),
    "8bit": SparseEncoding(k=8, values="8bit"),
    "draws": SparseEncoding(k=8, n=8),
    "standardised": SparseEncoding(k=8, standardised_temperatures=[1.0]),
    "dense": DenseEncoding(dtype="fp32"),
}


def logits_of(classes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(classes)
    scale = torch.tensor([0.0, 0.5, 4.0, 40.0])[:, None]  # all alike; flat; as a model's; far above their mean
    return (scale * torch.randn(4, classes, generator=draw)).to(dtype)


def encoded(
    logits_BC: torch.Tensor, encoding: Any, device: str, classes: int | None = None
) -> tuple[dict[str, torch.Tensor], Told]:
    labels_B = torch.tensor([0, 1, -1, 2])
    arrays, told = encoding.encode_and_tell(
        logits_BC.to(device),
        num_classes=classes or logits_BC.shape[1],
        labels_B=labels_B.to(device),
        keys_B=torch.arange(4, device=device),
    )
    assert all(values.device.type == torch.device(device).type for values in arrays.values())
    return {name: values.cpu() for name, values in arrays.items()}, Told(*(values.cpu() for values in told))


def agree(logits_BC: torch.Tensor, encoding: Any, classes: int | None = None) -> None:
    (here, told_here), (there, told_there) = (
        encoded(logits_BC, encoding, device, classes) for device in ("cpu", "cuda")
    )
    assert here.keys() == there.keys()
    decoded = [encoding.decode(arrays, classes or logits_BC.shape[1]) for arrays in (here, there)]
    for name in here:
        if name not in {"ids", "draws", "counts"}:  # of classes that are alike, either may be kept
            torch.testing.assert_close(there[name].float(), here[name].float(), rtol=2e-3, atol=2e-3, msg=name)
    for one, other in zip(told_here[1:4], told_there[1:4], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
    assert torch.equal(told_here.right, told_there.right)
    assert torch.equal(told_here.top, told_there.top)
    assert decoded[0].__class__ is decoded[1].__class__


def test_the_kernels_are_used_on_a_gpu_and_only_there() -> None:
    assert fuses(logits_of(8).cuda())
    assert not fuses(logits_of(8))


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("classes", [100, 1_000, 32_000, 128_256])
def test_they_sum_as_passes_over_the_vocabulary_do(name: str, classes: int) -> None:
    agree(logits_of(classes), ENCODINGS[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_in_half_precision_are_read_as_they_are(dtype: torch.dtype) -> None:
    """Of so few values many are alike: those that equal the least kept one, and are not kept, count."""
    agree(logits_of(32_000, dtype), ENCODINGS["largest"])


def test_padding_of_a_vocabulary_is_left_out() -> None:
    agree(logits_of(1_000), ENCODINGS["largest"], classes=900)


def test_a_class_that_can_never_be_is_none() -> None:
    logits_BC = logits_of(1_000)
    logits_BC[2, 5], logits_BC[3, :700] = -torch.inf, -1e9
    agree(logits_BC, ENCODINGS["largest"])


@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
def test_what_is_no_answer_is_seen(fault: float) -> None:
    logits_BC = logits_of(1_000)
    logits_BC[1, 997] = fault
    for device in ("cpu", "cuda"):
        assert encoded(logits_BC, ENCODINGS["largest"], device)[1].right.tolist() == [True, False, True, True]
