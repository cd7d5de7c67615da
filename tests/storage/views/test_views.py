"""The very tensor that teacher and student both see."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from storage.inputs.arguments import to_float
from storage.views import FINGERPRINTED_ROWS, view_fingerprint


def test_pixels_become_floats_from_zero_to_one() -> None:
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0.0, 0.2, 1.0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_a_view_is_float32(dtype: torch.dtype) -> None:
    assert to_float(torch.ones(2, dtype=dtype)).dtype == torch.float32


def test_floats_keep_their_values() -> None:
    assert to_float(torch.tensor([-3.5, 1000.0])).tolist() == [-3.5, 1000.0]


def test_only_the_first_rows_are_fingerprinted() -> None:
    inputs_S = np.arange(100, dtype=np.uint8).reshape(20, 5)
    assert view_fingerprint(inputs_S) == view_fingerprint(inputs_S[:FINGERPRINTED_ROWS])


def test_the_layout_in_memory_does_not_matter() -> None:
    inputs_S = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert view_fingerprint(np.asfortranarray(inputs_S)) == view_fingerprint(inputs_S)


@pytest.mark.parametrize(
    "change", [lambda x: x.reshape(2, 4, 3), lambda x: x.astype(np.float64), lambda x: x + 1, lambda x: x[:1]]
)
def test_shape_dtype_and_values_matter(change) -> None:
    inputs_S = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert view_fingerprint(change(inputs_S)) != view_fingerprint(inputs_S)
