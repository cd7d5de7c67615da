"""How two caches differ: what they promise, field by field; which samples they have, by id; what their teachers say.

Samples are matched by id, never by row; classes by name, never by position. Shards may be cut elsewhere, and encodings
may differ. Memory is bounded: samples are looked at some at a time, parted by a hash of their id.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from storage.cache.cache import Cache
from storage.cache.catalogue import Catalogue
from storage.cache.copies.answers import Answers, Gap, open_answers, open_features
from storage.cache.watcher import Watcher
from storage.digests import differences
from storage.errors import NotInCache
from storage.format.stages import Stage
from storage.views import PLAIN

AT_ONCE = 2_000_000  # samples of each cache
SHOWN_IDS = 5
SAMPLE = ("sample_id", "label", "split", "payload_digest", "label_digest", "error")
ABSENT, PRESENT = "absent", "present"


@dataclass
class RowsDiff:
    """The readable samples of a dataset, by id.

    Attributes:
        both: how many both have.
        only_a, only_b: how many one has alone.
        label, split, payload: of those that both have, how many have another one.
        examples: of each of these, some ids.
    """

    both: int = 0
    only_a: int = 0
    only_b: int = 0
    label: int = 0
    split: int = 0
    payload: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def differ(self) -> bool:
        """Whether any sample does."""
        return any((self.only_a, self.only_b, self.label, self.split, self.payload))


@dataclass
class CacheDiff:
    """How two caches differ.

    Attributes:
        fields: path in the cache, field, and what each has; `absent` where one has no such promise.
        rows: by dataset that both have.
        answers: of each teacher and view that both have, soft targets and each feature.
        notes: what could not be compared, and why.
    """

    fields: list[tuple[str, str, Any, Any]] = field(default_factory=list)
    rows: dict[str, RowsDiff] = field(default_factory=dict)
    answers: list[Gap] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether both promise and hold the same, whatever the encodings do to the last bits."""
        rows = any(rows.differ for rows in self.rows.values())
        return not self.fields and not rows and not any(gap.differs for gap in self.answers) and not self.notes


def diff(a: Cache, b: Cache, watcher: Watcher) -> CacheDiff:
    """Return how two caches differ.

    Args:
        a, b: both open.
        watcher: is told of the rows of targets that were compared.

    Raises:
        CorruptObject: an object of either is damaged.
    """
    here, there = a.catalogue(), b.catalogue()
    found = CacheDiff()
    found.fields = list(_fields(here, there))
    for dataset in sorted(here.datasets.keys() & there.datasets.keys()):
        rows = found.rows[dataset] = RowsDiff()
        stages = _stages(here, there, dataset, found.notes)
        answers: list[Answers] = []
        for stage in stages:
            soft = open_answers(here, there, stage, found.notes)
            answers += [*([] if soft is None else [soft]), *open_features(here, there, stage)]
        watcher.begin(f"diff {dataset}", here.num_rows(dataset) if here.datasets[dataset].planned_in is None else None)
        for pairs in _matched(here, there, dataset, rows):
            for each in answers:
                each.compare(pairs["row"].to_numpy(), pairs["row_b"].to_numpy())
            watcher.advance(len(pairs))
        found.answers += [each.gap() for each in answers]
    return found


def _fields(a: Catalogue, b: Catalogue) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield every field of a promise that differs; what one has alone, as a whole."""
    promises = [_promises(each) for each in (a, b)]
    for path in sorted(promises[0].keys() | promises[1].keys()):
        one, other = (each.get(path) for each in promises)
        if one is None or other is None:
            yield path, "", ABSENT if one is None else PRESENT, ABSENT if other is None else PRESENT
            continue
        yield from ((path, name, *values) for name, *values in differences(one, other))


def _promises(catalogue: Catalogue) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, spec in catalogue.datasets.items():
        found[f"{name}/dataset.json"] = spec.model_dump(mode="json")
    for name, views in catalogue.views.items():
        found[f"{name}/views.json"] = views.model_dump(mode="json")
    for (dataset, name), teacher in catalogue.teachers.items():
        found[f"{dataset}/{name}/teacher.json"] = teacher.model_dump(mode="json")
        if (weights := catalogue.promises.weights_or_none(dataset, name)) is not None:
            found[f"{dataset}/{name}/weights.json"] = {"weights": weights}
    return found


def _stages(a: Catalogue, b: Catalogue, dataset: str, notes: list[str]) -> list[Stage]:
    """Return the teachers and views of a dataset of which both have something; note those of which one has."""
    both = [{stage for stage, shards in each.commits.items() if stage[0] == dataset and shards} for each in (a, b)]
    for mine, others, catalogue in ((both[0], both[1], a), (both[1], both[0], b)):
        notes += [f"{d}/{t}/{view} is in {catalogue.url} alone" for d, t, view in sorted(mine - others, key=str)]
    return sorted((stage for stage in both[0] & both[1] if stage[1] is not None), key=str)


def _matched(a: Catalogue, b: Catalogue, dataset: str, rows: RowsDiff) -> Iterator[pl.DataFrame]:
    """Count how the samples of a dataset differ; yield `row` and `row_b` of those that both have, by row."""
    num_rows = max(_num_committed(each, dataset) for each in (a, b))
    parts = -(-num_rows // AT_ONCE) or 1
    # classes by name, whatever their order; an answer of numbers has a digest alone
    label = "label" if a.datasets[dataset].classes else "label_digest"
    for part in range(parts):
        left, right = (_samples(each, dataset, part, parts) for each in (a, b))
        both = left.join(right, on="sample_id", how="inner", suffix="_b")
        rows.both += len(both)
        for name, one, other in (("only_a", left, right), ("only_b", right, left)):
            _count(rows, name, one.join(other, on="sample_id", how="anti"))
        for name, column in (("label", label), ("split", "split"), ("payload", "payload_digest")):
            if column in left.columns and column in right.columns:
                _count(rows, name, both.filter(pl.col(column).ne_missing(pl.col(f"{column}_b"))))
        yield both.select("row", "row_b").sort("row")


def _count(rows: RowsDiff, name: str, found: pl.DataFrame) -> None:
    setattr(rows, name, getattr(rows, name) + len(found))
    some = rows.examples.setdefault(name, [])
    some += found["sample_id"].head(SHOWN_IDS - len(some)).to_list()


def _num_committed(catalogue: Catalogue, dataset: str) -> int:
    return int(catalogue.ledger([(dataset, None, PLAIN)]).of(dataset, None, PLAIN)["rows"].sum())


def _samples(catalogue: Catalogue, dataset: str, part: int, parts: int) -> pl.DataFrame:
    """Return the readable samples of a part of all ids, with the name of their label's class, if classes have names."""
    classes = catalogue.datasets[dataset].classes
    tables = []
    for commits in catalogue.iter_commits((dataset, None, PLAIN), SAMPLE):
        for commit in commits:
            table = pl.DataFrame(pl.from_arrow(commit.table)).filter(pl.col("error").is_null()).drop("error")
            tables.append(table.filter(pl.col("sample_id").hash(seed=0) % parts == part))
    if not tables:
        raise NotInCache(f"{catalogue.url}: nothing of {dataset} is built", do="cache build JOB.toml")
    found = pl.concat(tables)
    if classes:
        names = pl.Series(classes)
        found = found.with_columns(label=names.gather(found["label"].fill_null(0))).with_columns(
            label=pl.when(found["label"].is_null()).then(None).otherwise(pl.col("label"))
        )
    return found
