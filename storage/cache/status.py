"""What people ask of a cache in the morning: how far it is, what it promises, and what its samples are like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import polars as pl

from storage.cache.catalogue import Catalogue
from storage.encodings.base import LSE, STATISTICS
from storage.format.ledger import Ledger
from storage.format.shards import INGEST, Commit
from storage.format.specs import DatasetSpec, Spec, TeacherSpec
from storage.format.stages import Stage
from storage.tasks import task_of
from storage.tasks.base import LABELLED
from storage.views import PLAIN, view_name

NOTHING = {"rows_done": 0, "quarantined": 0, "shards_done": 0, "bytes": 0}
STATUS_SCHEMA = {
    "dataset": pl.String,
    "teacher": pl.String,
    "view": pl.String,
    "rows": pl.Int64,
    "rows_done": pl.Int64,
    "rows_missing": pl.Int64,
    "quarantined": pl.Int64,
    "shards": pl.Int64,
    "shards_done": pl.Int64,
    "bytes": pl.Int64,
    "rows_per_s": pl.Float64,
}


def read_status(
    catalogue: Catalogue, ledger: Ledger | None = None, asked: Sequence[Stage] | None = None
) -> pl.DataFrame:
    """Return one row per dataset, teacher and view.

    Args:
        catalogue: of the cache.
        ledger: of it.
        asked: the stages that are wanted, also such as are not there; None: those that are.

    Returns:
        `dataset`, `teacher` ("ingest" for the dataset's own inputs), `view`, `rows` planned, `rows_done`,
        `rows_missing`, `quarantined`, `shards`, `shards_done`, `bytes`, and `rows_per_s` of one worker. Of a text
        that is not all ingested, `rows` and `rows_missing` are null: nobody has counted them. So they are of a dataset
        that is not there, and its `shards` too.
    """
    ledger = ledger or catalogue.ledger()
    rows: list[dict[str, Any]] = []
    for dataset, teacher, view in _stages(catalogue) if asked is None else asked:
        if dataset not in catalogue.datasets:
            rows.append({"dataset": dataset, "teacher": teacher or INGEST, "view": view} | NOTHING)
            continue
        planned, commits = num_rows(catalogue, ledger, dataset), ledger.of(dataset, teacher, view)
        done, seconds = int(commits["rows"].sum()), float(commits["seconds"].sum())
        rows.append(
            {
                "dataset": dataset,
                "teacher": teacher or INGEST,
                "view": view,
                "rows": planned,
                "rows_done": done,
                "rows_missing": None if planned is None else planned - done,
                "quarantined": int(commits["quarantined"].sum()),  # of a teacher, rows that it was not shown
                "shards": len(catalogue.shards(dataset)),
                "shards_done": len(commits),
                "bytes": int(commits["bytes"].sum()),
                "rows_per_s": round(done / seconds, 1) if seconds else None,  # unknown before its first shard
            }
        )
    return pl.DataFrame(rows, schema=STATUS_SCHEMA)


def num_rows(catalogue: Catalogue, ledger: Ledger, dataset: str) -> int | None:
    """Return the number of rows of a dataset; None of one in ranges of bytes of which a shard is not ingested yet."""
    if not catalogue.dataset(dataset).byte_ranges:
        return catalogue.num_rows(dataset)
    ingested = ledger.of(dataset, None, PLAIN)
    return int(ingested["rows"].sum()) if len(ingested) == len(catalogue.shards(dataset)) else None


def read_info(catalogue: Catalogue) -> dict[str, Any]:
    """Return everything that a cache promises, with fingerprints, and where its first shards came from, as JSON."""
    return catalogue.about.model_dump(mode="json") | {
        "datasets": {name: _describe_dataset(catalogue, name) for name in catalogue.datasets}
    }


def _stages(catalogue: Catalogue) -> list[Stage]:
    """Return every stage, also one that is promised and has no shard yet."""
    begun = {stage[:2] for stage in catalogue.commits}
    absent = [
        (*pair, view_name(0) if pair[0] in catalogue.views else PLAIN)  # where a build of it begins
        for pair in catalogue.teachers
        if pair not in begun
    ]
    return sorted([*catalogue.commits, *absent], key=lambda stage: (stage[0], stage[1] or "", stage[2]))


def _describe_dataset(catalogue: Catalogue, name: str) -> dict[str, Any]:
    first = catalogue.first_commit(name, None)
    about: dict[str, Any] = _described(catalogue.datasets[name])
    # else the plan alone tells it, and no ledger is to be read
    counted = catalogue.ledger() if catalogue.datasets[name].byte_ranges else None
    rows = catalogue.num_rows(name) if counted is None else num_rows(catalogue, counted, name)
    about |= {"rows": rows, "provenance": None if first is None else _provenance(first)}
    if name in catalogue.views:
        about["views"] = _described(catalogue.views[name])
    return about | {"teachers": {t: _describe_teacher(catalogue, name, t) for t in catalogue.teacher_names(name)}}


def _describe_teacher(catalogue: Catalogue, dataset: str, name: str) -> dict[str, Any]:
    spec, first = catalogue.teachers[dataset, name], catalogue.first_commit(dataset, name)
    return _described(spec) | {
        "serves": list(spec.encoding.serves),
        "bytes_per_target": _bytes_per_target(catalogue.datasets[dataset], spec, first),
        "views": catalogue.view_names(dataset, name),
        "provenance": None if first is None else _provenance(first),
    }


def _described(spec: Spec) -> dict[str, Any]:
    return spec.model_dump(mode="json") | {"fingerprint": spec.fingerprint}


def _provenance(commit: Commit) -> dict[str, Any]:
    """Return what a commit says of the making of its shard, and of what it belongs to."""
    belonging = {} if commit.belonging is None else commit.belonging._asdict()
    return commit.about | {name: value for name, value in belonging.items() if value is not None}


def _bytes_per_target(dataset: DatasetSpec, teacher: TeacherSpec, first: Commit | None) -> dict[str, float]:
    """Return the bytes of one soft target, of tokens that of a position: in memory, stored, and what statistics add.

    What is stored is that of the teacher's first shard; it is not told before there is one.
    """
    figures: dict[str, float] = {
        "memory": teacher.encoding.bytes_per_row(teacher.num_classes),
        "memory_statistics": teacher.encoding.statistics_bytes_per_row,
    }
    if first is None or not teacher.encoding.soft:
        return figures | ({} if first is None else {"stored": 0.0, "stored_statistics": 0.0})
    targets = (first.stop - first.start) * math.prod(task_of(dataset).sites(dataset.input_shape))
    if teacher.labelled_positions:
        targets = first.about.get("answered", {}).get(LABELLED) or 1
    # a feature is no part of a target
    sizes = {member.path: member.size_bytes for member in first.members if not member.path.startswith("feature/")}
    statistics = sum(size for path, size in sizes.items() if path.startswith((f"{LSE}/", f"{STATISTICS}/")))
    return figures | {
        "stored": round(sum(sizes.values()) / targets, 1),
        "stored_statistics": round(statistics / targets, 1),
    }
