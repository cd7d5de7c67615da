"""The page of one's own model runs as it stands; by itself, for it takes most of a minute."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages.reading import run_page


@pytest.mark.slow
def test_the_page_of_ones_own_model_runs_as_it_stands(tmp_path: Path) -> None:
    printed = run_page("from-your-model.md", tmp_path)
    assert all(f"digits/{teacher}: accuracy 9" in printed for teacher in ("onnx", "sklearn", "torch"))
    assert (tmp_path / "small/student.safetensors").exists()
