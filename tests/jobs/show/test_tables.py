"""Tables in a terminal of 80 columns: nothing is cut, and names stay readable."""

from __future__ import annotations

import polars as pl
import pytest

from jobs.show.tables import _folded, print_reason, print_table
from jobs.show.terminal import SafeConsole


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("short", ["short"]),
        ("", [""]),
        ("small-learning_rate_0.001-weight_decay_0.0005", ["small-", "learning_rate_0.001-", "weight_decay_0.0005"]),
        ("a-b-learning_rate_1e-05", ["a-b-", "learning_rate_1e-05"]),
        ("one by one, of all", ["one by one, of all"]),
        ("said so by the job itself", ["said so by the job", "itself"]),
        ("x" * 45, ["x" * 20, "x" * 20, "x" * 5]),
    ],
)
def test_a_text_is_broken_where_a_reader_would(text: str, lines: list[str]) -> None:
    assert _folded(text, 20).split("\n") == lines


def test_a_sweeps_names_fit_beside_their_figures(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"small-learning_rate_{rate}-weight_decay_{decay}" for rate in (0.001, 0.01) for decay in (0.0005, 0.05)]
    figures = {"parameters": 19210, "accuracy": 0.9041, "agreement": None, "epochs": 2, "seconds": 0.1}
    print_table(pl.DataFrame([{"student": name, **figures, "status": "finished"} for name in names]))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    pieces = [line.split()[0] for line in lines[2:]]
    assert "".join(pieces) == "".join(names)
    assert len(set(pieces)) == 5  # no number is broken
    assert sum("90.41%" in line for line in lines) == 4


def test_a_reason_stands_below_a_name_beside_which_it_has_no_room(capsys: pytest.CaptureFixture[str]) -> None:
    console = SafeConsole(width=60)
    print_reason(console, "row 3  red/cut.jpg", "OSError: Truncated File Read")
    print_reason(console, "row 4  " + "long-" * 16 + ".png", "UnidentifiedImageError: cannot identify image file, " * 2)
    short, name, *below = capsys.readouterr().out.splitlines()
    assert short == "  row 3  red/cut.jpg  OSError: Truncated File Read"
    assert name == "  row 4  " + "long-" * 16 + ".png"  # can be copied
    assert len(below) == 2
    assert all(line.startswith("      ") and len(line) <= 60 for line in below)
