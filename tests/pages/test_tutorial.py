"""The tutorial runs as it stands; by itself, for files are shared out among processes, and it takes a minute."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pages.reading import run_page


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(tmp_path: Path) -> None:
    printed = run_page("tutorial.md", tmp_path)
    assert "photos/big: accuracy 9" in printed
    assert "97 samples of new, 97 measured" in printed
    assert re.search(r"^digit-3 \d+\.\d%\ndigit-7 \d+\.\d%$", printed, re.MULTILINE)
    assert printed.strip().splitlines()[-1] == "onnxruntime says digit-0"
    answers = (tmp_path / "answers.csv").read_text().splitlines()
    assert (len(answers), answers[0]) == (98, "sample_id,class,probability,error")
    assert (tmp_path / "runs/photos/report.html").exists()
