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
        table.add_column(Text(name), justify="right" if dtype.is_numeric() else "left", no_wrap=dtype.is_numeric())
    rows = [
        {name: _cell(name, value) for name, value in row.items()}
        for row in frame.head(SHOWN_ROWS).iter_rows(named=True)
    ]
    for row in rows:
        table.add_row(*map(Text, row.values()))
    if Measurement.get(out, out.options.update(width=10_000), table).maximum <= out.width:
        out.print(table)
    else:  # too wide: a block for each row, so that nothing is cut
        width = max(map(len, frame.columns))
        out.print(
            Text("\n\n".join("\n".join(f"{n:<{width}}  {v}" for n, v in row.items()) for row in rows)), soft_wrap=True
        )
    if len(frame) > SHOWN_ROWS:
        out.print(f"… {len(frame) - SHOWN_ROWS} rows more; --json prints all")
    if frame.is_empty():
        out.print("no rows")


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
