"""What has changed between the day a shard was made and an audit: on which machine, by which libraries and drivers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from teacher_cache.auditing.asking import Asked


class Machine(NamedTuple):
    """Rows that were compared whose shards were made on one machine, and how many of them are off."""

    host: str
    rows: int
    off: int


class Changed(NamedTuple):
    """A library, driver or processor that answers now as another than it was when shards were made."""

    name: str
    then: tuple[str, ...]
    now: str


def machines(answers: Sequence[Asked], off: Collection[tuple[str, int]]) -> tuple[Machine, ...]:
    """Return on which machines the shards of an audit were made; those with most rows that are off come first.

    Args:
        answers: of one teacher and dataset.
        off: view and row of those that are off.
    """
    rows, bad = Counter[str](), Counter[str]()
    for answer in answers:
        host = str(answer.commit.about.get("host", "unknown"))
        rows[host] += answer.rows
        bad[host] += len({(each.key.view, each.row) for each in answer.compared} & set(off))
    found = [Machine(host, count, bad[host]) for host, count in rows.items()]
    return tuple(sorted(found, key=lambda machine: (-machine.off, machine.host)))


def changes(answers: Sequence[Asked], now: Mapping[str, str]) -> tuple[Changed, ...]:
    """Return what is of another version here than it was where shards were made, as far as their commits say.

    Args:
        answers: of one teacher and dataset.
        now: as `teacher_cache.work.surroundings` says it.
    """
    found = []
    for name, here in now.items():
        then = {said for answer in answers if (said := _said(answer.commit.about, name)) is not None}
        if then - {here}:
            found.append(Changed(name, tuple(sorted(then)), here))
    return tuple(found)


def _said(about: Mapping[str, Any], name: str) -> str | None:
    said = about.get("surroundings")
    # earlier commits say their torch alone
    value = said.get(name) if isinstance(said, dict) else about.get(name)
    return value if isinstance(value, str) else None
