"""Rows whose content another row has too.

Under another label, one of the two is wrong; in another split, what is held back was trained on.
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

SHOWN_CHARACTERS = 60  # of a sample id, in a line


class Repeats(NamedTuple):
    """What rows of one dataset have the same content, by the digests of their payloads.

    Attributes:
        rows: that repeat the content of one before them.
        contradictions: contents that have several labels.
        leaks: contents that are in both splits.
        repeated, contradicting, leaking: the ids of two rows of the first of each; empty where there is none.
    """

    rows: int
    contradictions: int
    leaks: int
    repeated: tuple[str, ...] = ()
    contradicting: tuple[str, ...] = ()
    leaking: tuple[str, ...] = ()

    def lines(self, dataset: str) -> list[str]:
        """Return what to tell of them; nothing where no content occurs twice."""
        told = (
            (self.rows, self.repeated, "row repeats", "rows repeat", "another's content"),
            (self.contradictions, self.contradicting, "content has", "contents have", "more than one label"),
            (self.leaks, self.leaking, "content is", "contents are", "trained on and held back, both"),
        )
        return [
            # a row that is there twice may be meant so
            f"{'warning: ' * (place > 0)}{dataset}: {count:,} {one if count == 1 else many} {what}, as {_both(ids)}"
            for place, (count, ids, one, many, what) in enumerate(told)
            if count
        ]


def find_repeats(samples: pl.DataFrame) -> Repeats:
    """Return what the readable rows of one dataset repeat.

    Args:
        samples: `sample_id`, `split`, and of rows whose digests are apart `payload_digest` and `label_digest`; rows of
            format 2, where they are one, are passed over.
    """
    if not {"payload_digest", "label_digest"} <= {*samples.columns}:
        return Repeats(0, 0, 0)
    known = samples.select("sample_id", "split", "label_digest", content=pl.col("payload_digest")).filter(
        pl.col("content").is_not_null() & (pl.col("content") != "")
    )
    again = known.filter(pl.col("content").is_duplicated())
    of_content = again.group_by("content", maintain_order=True).agg(
        labels=pl.col("label_digest").n_unique(), splits=pl.col("split").n_unique()
    )
    contradictions, leaks = (of_content.filter(pl.col(name) > 1) for name in ("labels", "splits"))
    return Repeats(
        len(again) - len(of_content),
        len(contradictions),
        len(leaks),
        _two(again, of_content, "sample_id"),
        _two(again, contradictions, "label_digest"),
        _two(again, leaks, "split"),
    )


def _two(again: pl.DataFrame, contents: pl.DataFrame, by: str) -> tuple[str, ...]:
    """Return the ids of two rows of the first of some contents, which differ by a column."""
    if contents.is_empty():
        return ()
    rows = again.filter(pl.col("content") == contents["content"][0]).unique(by, keep="first", maintain_order=True)
    return tuple(rows["sample_id"].head(2))


def _both(ids: tuple[str, ...]) -> str:
    return " and ".join(each if len(each) <= SHOWN_CHARACTERS else f"…{each[-SHOWN_CHARACTERS:]}" for each in ids)
