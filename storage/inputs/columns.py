"""What the places of a table's rows mean, as its dataset promises: two of the same width may mean different things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storage.digests import differences
from storage.errors import BadRequest

Source = Mapping[str, Any]
"""`source` of a `dataset.json`."""

SHOWN = 8  # differences, in a message


def columns_of(source: Source | None) -> list[tuple[str, dict[str, Any]]] | None:
    """Return each column with what its places mean, in their order; None: it is of no table."""
    said = None if source is None else source.get("columns")
    if source is None or not isinstance(said, Mapping):
        return None
    # how numbers are normalised is a student's own; but where one is missing, the mean is in its place
    unread = {name: {"rounded", "std"} | (set() if said[name].get("missing") else {"mean"}) for name in said}
    return [
        (name, {key: value for key, value in said[name].items() if key not in unread[name]}) for name in source["order"]
    ]


def check_same_columns(source: Source | None, own: Source | None, what: str) -> None:
    """Raise BadRequest if rows are of a table as others are, and their places mean something else."""
    found, expected = columns_of(source), columns_of(own)
    if found is None or expected is None or found == expected:
        return
    fields = differences(dict(found), dict(expected))[:SHOWN] or [
        ("order", [name for name, _ in found], [name for name, _ in expected])
    ]
    raise BadRequest(
        f"{what}: the places of its rows are of other columns, or of other values in them",
        found="\n".join(f"{name} = {was!r}" for name, was, _ in fields),
        expected="\n".join(f"{name} = {wanted!r}" for name, _, wanted in fields),
        do='columns_of = "…" in [[dataset]] of one of them, the other\'s name; cache build --as NAME\n'
        "or student eval RUN FILE, which reads a file as the student's own was",
    )


def answers_of(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and deviation of numbers that are answers, by which a student scales its own; None: of classes."""
    said = source.get("answers")
    return None if said is None else (tuple(said["mean"]), tuple(said["std"]))


def normalisation_of(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and deviation of each place, by which a student is normalised unless its job says otherwise."""
    said = source.get("normalise")
    return None if said is None else (tuple(said["mean"]), tuple(said["std"]))
