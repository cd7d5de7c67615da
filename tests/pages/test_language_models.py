"""The page of language models runs as it stands; by itself, for it takes a minute."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages.reading import run_page


@pytest.mark.slow
def test_the_page_of_language_models_runs_as_it_stands(tmp_path: Path) -> None:
    printed = run_page("language-models.md", tmp_path)
    assert "chats/big: perplexity" in printed
    assert (tmp_path / "runs/chats/report.html").exists()
    assert " plus " in printed.splitlines()[-1]
