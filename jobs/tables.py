"""Print tables and trees to stdout, narrow enough for a terminal of 80 columns."""

from __future__ import annotations

from typing import Any

import polars as pl
from rich import box
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from jobs.terminal import out, si

SHOWN_ROWS = 200
FOLDED_WIDTH = 18  # of a column of text, such as long names, where a table would be too wide otherwise


def print_table(frame: pl.DataFrame, title: str | None = None) -> None:
    """Print a frame; numbers to the right, bytes with a prefix, at most SHOWN_ROWS rows; names as they are, for SQL."""
    table = Table(
        title=None if title is None else Text(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name, dtype in frame.schema.items():
        number = dtype.is_numeric()
        table.add_column(Text(name), justify="right" if number else "left", no_wrap=number, overflow="fold")
    rows = [
        {name: _cell(name, value) for name, value in row.items()}
        for row in frame.head(SHOWN_ROWS).iter_rows(named=True)
    ]
    for row in rows:
        table.add_row(*map(Text, row.values()))
    # What is too wide by its text is folded; by more, it is a block for each row. Nothing is cut.
    folded = sum(
        max(0, longest - FOLDED_WIDTH) for name in frame.columns if (longest := _text_width(frame, name, rows))
    )
    if Measurement.get(out, out.options.update(width=10_000), table).maximum - folded <= out.width:
        out.print(table)
    else:
        width = max(map(len, frame.columns))
        out.print(
            Text("\n\n".join("\n".join(f"{n:<{width}}  {v}" for n, v in row.items()) for row in rows)), soft_wrap=True
        )
    if len(frame) > SHOWN_ROWS:
        out.print(f"… {len(frame) - SHOWN_ROWS} rows more; --json prints all")
    if frame.is_empty():
        out.print("no rows")


def _text_width(frame: pl.DataFrame, name: str, rows: list[dict[str, str]]) -> int:
    """Return the width of a column of text, 0 of one of numbers."""
    return 0 if frame.schema[name].is_numeric() else max((len(row[name]) for row in rows), default=0)


def print_memory(title: str, total_bytes: int, parts: dict[str, int]) -> None:
    """Print a bound on memory and what it is made of, the largest part first."""
    shown = sorted(((name, size) for name, size in parts.items() if size), key=lambda part: -part[1])
    out.print(Text(f"{title}, at most {si(total_bytes, 'B')}"))
    print_table(pl.DataFrame(shown, schema=["part", "bytes"], orient="row"))


def print_tree(title: str, value: dict[str, Any]) -> None:
    """Print nested JSON as a tree."""
    tree = Tree(Text(title))
    _grow(tree, value)
    out.print(tree)


def _grow(tree: Tree, value: dict[str, Any]) -> None:
    for key, below in value.items():
        if isinstance(below, dict) and below:
            _grow(tree.add(Text(key)), below)
        else:
            text = ", ".join(map(str, below)) if isinstance(below, list) else below
            tree.add(Text(f"{key}  {'–' if text in (None, {}, '') else text}"))


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name == "bytes":
        return si(value, "B")
    if name == "rows/s":
        return si(value)
    if name in ("accuracy", "agreement"):
        return f"{value:.2%}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
