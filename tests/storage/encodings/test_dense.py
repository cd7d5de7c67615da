"""Logits and features, stored and decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pydantic import ValidationError

from storage.encodings import Capability, DenseEncoding, FeatureEncoding
from storage.errors import BadTeacher
from storage.format.arrays import pack, unpack

TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PRECISIONS = sorted(TORCH)
LOGITS = npst.arrays(
    np.float32, npst.array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.floats(-1e4, 1e4, width=32)
)


def encode(encoding: DenseEncoding, logits_BC: torch.Tensor) -> dict[str, torch.Tensor]:
    labels_B = torch.full((len(logits_BC),), -1)
    return encoding.encode(logits_BC, num_classes=logits_BC.shape[1], labels_B=labels_B, keys_B=labels_B)


def through_the_disk(encoding: DenseEncoding, logits_BC: torch.Tensor) -> torch.Tensor:
    arrays = {name: stored.numpy() for name, stored in encode(encoding, logits_BC).items()}
    names = encoding.array_names(())
    read = {name: torch.from_numpy(array) for name, array in unpack(pack(arrays), names).items()}
    return encoding.decode(read, logits_BC.shape[1]).logits_BC


@pytest.mark.parametrize("dtype", PRECISIONS)
@given(LOGITS)
def test_what_is_decoded_is_the_nearest_stored_value(dtype: str, logits: np.ndarray) -> None:
    logits_BC = torch.from_numpy(logits)
    assert torch.equal(through_the_disk(DenseEncoding(dtype=dtype), logits_BC), logits_BC.to(TORCH[dtype]).float())


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_values_that_a_precision_holds_come_back_to_the_bit(dtype: str) -> None:
    values = torch.tensor([[0.0, -0.0, 1.0, -2.5], [0.09375, 240.0, -1024.0, 2.0**-14]])
    back = through_the_disk(DenseEncoding(dtype=dtype), values)
    assert back.view(torch.int32).tolist() == values.view(torch.int32).tolist()


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_what_is_decoded_is_float32(dtype: str) -> None:
    assert through_the_disk(DenseEncoding(dtype=dtype), torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float32


def test_bf16_is_stored_as_its_bits() -> None:
    stored = encode(DenseEncoding(dtype="bf16"), torch.tensor([[1.0, -2.0]]))["logits"]
    assert (stored.dtype, stored.tolist()) == (torch.uint16, [[0x3F80, 0xC000]])


def test_every_bit_pattern_of_bf16_survives() -> None:
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)[None]
    encoding = DenseEncoding(dtype="bf16", statistics=False)
    decoded = encoding.decode({"logits": bits}, 2**16).logits_BC
    kept = encode(encoding, decoded)["logits"]
    assert torch.equal(kept[~decoded.isnan()].int(), bits[~decoded.isnan()].int())


def test_a_logit_beyond_fp16_becomes_infinite_where_all_can_see() -> None:
    stored = encode(DenseEncoding(dtype="fp16"), torch.tensor([[7e4, -7e4, 1.0]]))["logits"]
    assert stored.isfinite().tolist() == [[False, False, True]]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_nan_stays_nan(dtype: str) -> None:
    assert through_the_disk(DenseEncoding(dtype=dtype), torch.tensor([[float("nan")]])).isnan().all()


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("dtype", [*PRECISIONS, "int8"])
def test_the_promised_bytes_are_those_of_the_arrays(dtype: str, statistics: bool) -> None:
    encoding = DenseEncoding(dtype=dtype, statistics=statistics, temperatures=[2, 4], standardised_temperatures=[3])
    stored = encode(encoding, torch.arange(70.0).view(7, 10))
    assert sum(array.numpy().nbytes for array in stored.values()) == 7 * encoding.bytes_per_row(10)


@given(LOGITS)
def test_int8_is_within_half_a_step_of_each_row(logits: np.ndarray) -> None:
    logits_BC = torch.from_numpy(logits) / 25  # so near each other that all can be
    step_B1 = (logits_BC.amax(1, keepdim=True) - logits_BC.amin(1, keepdim=True)) / 255
    error_BC = (through_the_disk(DenseEncoding(dtype="int8"), logits_BC) - logits_BC).abs()
    tiny = torch.finfo(torch.float32).tiny  # below it, floats have few bits
    assert (error_BC <= 0.501 * step_B1 + 1e-6 * logits_BC.abs().max() + tiny).all()


def test_int8_keeps_the_ends_of_a_row() -> None:
    assert through_the_disk(DenseEncoding(dtype="int8"), torch.tensor([[-3.0, 0.5, 7.0]]))[0, [0, 2]].tolist() == [
        -3.0,
        7.0,
    ]


def test_a_padded_vocabulary_is_cut() -> None:
    none_B = torch.tensor([-1])
    stored = DenseEncoding().encode(torch.tensor([[1.0, 2.0, 9.0]]), num_classes=2, labels_B=none_B, keys_B=none_B)
    assert stored["logits"].tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("name", ["logits", "bucket", "label_probability", "sum_squares", "moments", "entropy"])
def test_dense_logits_serve_all_that_is_computed_from_logits_at_any_temperature(name: Any) -> None:
    assert DenseEncoding(statistics=False).lacks(Capability(name, 7.5)) is None


@pytest.mark.parametrize(("name", "remedy"), [("draws", "n = 50"), ("stratified", "k = 16, n = 50")])
def test_dense_logits_hold_no_draws(name: Any, remedy: str) -> None:
    assert DenseEncoding().lacks(Capability(name)) == f'encoding = {{ kind = "sparse", {remedy} }}'


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValidationError):
        DenseEncoding(dtype="int4")  # type: ignore[arg-type]


# --- features


def test_a_feature_map_is_averaged_over_all_positions() -> None:
    feature_BD = torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2)
    assert FeatureEncoding(layer="x", dtype="fp32").encode(feature_BD).tolist() == [[1.5, 5.5, 9.5], [13.5, 17.5, 21.5]]


def test_a_feature_vector_is_stored_as_it_is() -> None:
    assert FeatureEncoding(layer="x", dtype="fp32").encode(torch.tensor([[1.0, 2.0]])).tolist() == [[1.0, 2.0]]


def test_a_feature_can_be_kept_whole() -> None:
    assert FeatureEncoding(layer="x", pool="none").encode(torch.zeros(2, 3, 4, 5)).shape == (2, 3, 4, 5)


def test_an_attention_map_is_the_energy_over_channels_with_length_1() -> None:
    feature_BD = torch.tensor([[[[1.0, 1000.0]], [[2.0, 0.0]]]])  # (B, D, H, W) = (1, 2, 1, 2); energies 5 and 10⁶
    kept = FeatureEncoding(layer="x", pool="attention", dtype="fp16").encode(feature_BD)
    assert kept.float()[0, 0].tolist() == pytest.approx([5e-6, 1], abs=1e-6)


def test_what_is_no_map_has_no_attention_map() -> None:
    with pytest.raises(BadTeacher, match="layer 'x' has no attention map"):
        FeatureEncoding(layer="x", pool="attention").encode(torch.zeros(2, 3))


def test_the_mean_is_taken_before_rounding() -> None:
    feature_BD = torch.full((1, 1, 3), 60_000.0, dtype=torch.float16)  # whose sum is beyond fp16
    encoding = FeatureEncoding(layer="x", dtype="fp16")
    assert encoding.decode(encoding.encode(feature_BD)).tolist() == [[60_000.0]]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_feature_is_decoded_to_float32(dtype: str) -> None:
    encoding = FeatureEncoding(layer="x", dtype=dtype)
    back = encoding.decode(encoding.encode(torch.tensor([[0.5, -4.0]])))
    assert (back.dtype, back.tolist()) == (torch.float32, [[0.5, -4.0]])


def test_a_feature_needs_a_layer() -> None:
    with pytest.raises(ValidationError):
        FeatureEncoding(layer="")
