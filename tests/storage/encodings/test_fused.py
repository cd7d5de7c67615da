"""Kernels for a CUDA device are tried before they are trusted. Whether they are right: tests/gpu/test_fused_cuda.py."""

from __future__ import annotations

import pytest
import torch

from storage.encodings import fused

HERE = torch.device("cpu")


@pytest.fixture(autouse=True)
def _not_tried_yet() -> None:
    fused._works.cache_clear()


def test_without_triton_torch_it_is_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "HAS_TRITON", False)
    with pytest.warns(UserWarning, match="many passes over the logits: no package triton"):
        assert not fused._works(HERE)


def test_a_compiler_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(fused, "HAS_TRITON", True)
    monkeypatch.setattr(fused, "look", failing)
    with pytest.warns(UserWarning, match="RuntimeError: no C compiler"):
        assert not fused._works(HERE)


def test_sums_that_differ_from_torch_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "HAS_TRITON", True)
    monkeypatch.setattr(fused, "look", lambda z, k: fused.Look(z.mean(1), z.amin(1), z))
    monkeypatch.setattr(fused, "sweep", lambda z, *_: fused.Swept(*[z.sum(1)] * 4))
    with pytest.warns(UserWarning, match="its sums are others than torch's"):
        assert not fused._works(HERE)
