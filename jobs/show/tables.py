"""Print tables and trees to stdout, narrow enough for a terminal of 80 columns."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import polars as pl
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from jobs.show.terminal import out
from storage.errors import printable, si

SHOWN_ROWS = 200
# Of a column of text, such as long names: the first with which a table is narrow enough.
FOLDED_WIDTHS = (10_000, 26, 20, 18)


def print_table(frame: pl.DataFrame, title: str | None = None) -> None:
    """Print a frame; numbers to the right, bytes with a prefix, at most SHOWN_ROWS rows; names as they are, for SQL."""
    rows = [
        {name: _cell(name, value) for name, value in row.items()}
        for row in frame.head(SHOWN_ROWS).iter_rows(named=True)
    ]
    # What is too wide by its text is folded; by more, it is a block for each row. Nothing is cut.
    tables = (_table(frame, title, rows, folded_width) for folded_width in FOLDED_WIDTHS)
    fitting = next((table for table in tables if _width(table) <= out.width), None)
    if fitting is not None:
        out.print(fitting)
    else:
        width = max(map(len, frame.columns))
        out.print(
            Text("\n\n".join("\n".join(f"{n:<{width}}  {v}" for n, v in row.items()) for row in rows)), soft_wrap=True
        )
    if len(frame) > SHOWN_ROWS:
        out.print(f"… {len(frame) - SHOWN_ROWS} rows more; --json prints all")
    if frame.is_empty():
        out.print("no rows")


def print_wrapped(line: str) -> None:
    """Print a sentence in as many lines as it needs, those behind the first further in; a long word stays whole."""
    inner = " " * (len(line) - len(line.lstrip())) + "    "
    lines = textwrap.wrap(line, out.width, subsequent_indent=inner, break_long_words=False, break_on_hyphens=False)
    out.print("\n".join(lines), markup=False, soft_wrap=True)


def print_reason(console: Console, sample: str, reason: str) -> None:
    """Print a sample's name, and why it cannot be had: beside it where there is room, else below. A name is whole."""
    sample, reason = printable(sample, one_line=True), printable(reason, one_line=True)
    told = f"  {sample}  {reason}"
    if len(told) > console.width:
        inner = " " * 6
        below = textwrap.wrap(reason, console.width, initial_indent=inner, subsequent_indent=inner)
        told = "\n".join([f"  {sample}", *below])
    console.print(told, markup=False, soft_wrap=True)


def _table(frame: pl.DataFrame, title: str | None, rows: list[dict[str, str]], folded_width: int) -> Table:
    table = Table(
        title=None if title is None else Text(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name, dtype in frame.schema.items():
        table.add_column(Text(name), justify="right" if dtype.is_numeric() else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(_folded(cell, folded_width)) for cell in row.values()))
    return table


def _folded(text: str, width: int) -> str:
    """Return a text in lines no longer than this, broken after spaces and hyphens where it can be."""
    lines = [""]
    for word in re.findall(r"[^ -]*[ -]?", text):
        if lines[-1] and len(lines[-1]) + len(word.rstrip()) > width:
            lines.append("")
        lines[-1] += word
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return "\n".join(line.rstrip() for line in lines)


def _width(table: Table) -> int:
    return Measurement.get(out, out.options.update(width=10_000), table).maximum


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
            tree.add(Text(printable(f"{key}  {'–' if text in (None, {}, '') else text}", one_line=True)))


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name == "bytes":
        return si(value, "B")
    if name == "rows/s":
        return si(value)
    if name in ("accuracy", "agreement", "macro_f1", "retrieval"):
        return f"{value:.2%}"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value), one_line=True)


def print_script(script: str) -> None:
    """Print the script of a batch scheduler's job, as it is."""
    out.print("each worker is a job of this script:", markup=False)
    out.print(script.rstrip(), markup=False, soft_wrap=True)
