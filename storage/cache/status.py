"""What people ask of a cache in the morning: how far it is, what it promises, and what its samples are like."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from storage.cache.cache import Cache
from storage.encodings.base import LSE, STATISTICS
from storage.errors import BadRequest, IncompleteCache
from storage.format.ledger import Ledger
from storage.format.rows import check_plan, read_plan
from storage.format.shards import INGEST, ShardKey
from storage.format.specs import Spec
from storage.format.stages import list_stages
from storage.tasks import task_of
from storage.views import PLAIN, view_name

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


def read_status(cache: Cache) -> pl.DataFrame:
    """Return one row per dataset, teacher and view.

    Returns:
        `dataset`, `teacher` ("ingest" for the dataset's own inputs), `view`, `rows` planned, `rows_done`,
        `rows_missing`, `quarantined`, `shards`, `shards_done`, `bytes`, and `rows_per_s` of one worker.
    """
    ledger, stages, rows = Ledger.load(cache.objects), _stages(cache), []
    plans = {dataset: read_plan(cache.objects, dataset) for dataset in {stage[0] for stage in stages}}  # after commits
    for dataset, teacher, view in stages:
        plan, commits = plans[dataset], ledger.of(dataset, teacher, view)
        check_plan(cache.objects, dataset, plan, commits["shard"])
        done, seconds = int(commits["rows"].sum()), float(commits["seconds"].sum())
        rows.append(
            {
                "dataset": dataset,
                "teacher": teacher or INGEST,
                "view": view,
                "rows": plan.num_rows,
                "rows_done": done,
                "rows_missing": plan.num_rows - done,
                "quarantined": int(commits["quarantined"].sum()) if teacher is None else 0,
                "shards": len(plan.shards()),
                "shards_done": len(commits),
                "bytes": int(commits["bytes"].sum()),
                "rows_per_s": round(done / seconds, 1) if seconds else None,
            }
        )
    return pl.DataFrame(rows, schema=STATUS_SCHEMA)


def read_info(cache: Cache) -> dict[str, Any]:
    """Return everything that a cache promises, with fingerprints, and where its first shards came from, as JSON."""
    return cache.spec.model_dump(mode="json") | {
        "datasets": {
            name: _described(cache.dataset(name))
            | {"rows": cache.plan(name).num_rows, "provenance": _provenance(cache, name, None)}
            | ({"views": _described(views)} if (views := cache.views(name)) is not None else {})
            | {
                "teachers": {
                    teacher: _described(cache.teacher(name, teacher))
                    | {"serves": list(cache.teacher(name, teacher).encoding.serves)}
                    | {"bytes_per_target": _bytes_per_target(cache, name, teacher)}
                    | {"views": cache.view_names(name, teacher), "provenance": _provenance(cache, name, teacher)}
                    for teacher in cache.teacher_names(name)
                }
            }
            for name in cache.dataset_names()
        }
    }


def query_samples(cache: Cache, sql: str) -> pl.DataFrame:
    """Return the result of a SELECT over the per-sample tables.

    Args:
        cache: an open cache.
        sql: over `samples`, all datasets together with a column `dataset`, or over one dataset by its name.

    Raises:
        BadRequest: the SQL does not parse, or names what is not there.
    """
    tables = {}
    for name in cache.dataset_names():
        teachers = [teacher for teacher in cache.teacher_names(name) if cache.view_names(name, teacher)]
        if cache.committed(name):
            tables[name] = cache.samples(name, teachers).insert_column(0, pl.lit(name).alias("dataset"))
    if not tables:
        raise IncompleteCache(f"{cache.url} holds no samples yet", do="cache build JOB.toml")
    everything = pl.concat(tables.values(), how="diagonal")
    try:
        if not sql.lstrip("( \n\t").lower().startswith(("select", "with")):
            raise pl.exceptions.SQLSyntaxError(f"no SELECT: {sql}")
        return pl.SQLContext({**tables, "samples": everything}, eager=True).execute(sql)
    except pl.exceptions.PolarsError as error:
        raise BadRequest(
            "cannot answer the query",
            found=str(error).split("\n\n", 1)[0],  # below it, the query as Polars has planned it
            expected=f"tables {', '.join(['samples', *tables])}; columns {', '.join(everything.columns)}",
            do='put names that hold dashes or dots in double quotes: SELECT * FROM "cifar10-train"',
        ) from None


def _stages(cache: Cache) -> list[tuple[str, str | None, str]]:
    """Return every stage, also one that is promised and has no shard yet."""
    stages = list_stages(cache.objects)
    promised = [(name, teacher) for name in cache.dataset_names() for teacher in cache.teacher_names(name)]
    absent = [
        (*pair, PLAIN if cache.views(pair[0]) is None else view_name(0))
        for pair in promised
        if pair not in {stage[:2] for stage in stages}
    ]
    return sorted([*stages, *absent], key=lambda stage: (stage[0], stage[1] or "", stage[2]))


def _described(spec: Spec) -> dict[str, Any]:
    return spec.model_dump(mode="json") | {"fingerprint": spec.fingerprint}


def _bytes_per_target(cache: Cache, dataset: str, teacher: str) -> dict[str, float]:
    """Return the bytes of one soft target, of tokens that of a position: in memory, stored, and what statistics add.

    What is stored is that of the teacher's first shard; it is not told before there is one.
    """
    spec = cache.teacher(dataset, teacher)
    figures: dict[str, float] = {
        "memory": spec.encoding.bytes_per_row(spec.num_classes),
        "memory_statistics": spec.encoding.statistics_bytes_per_row,
    }
    for view in cache.view_names(dataset, teacher):
        commit = cache.commit(ShardKey(dataset, teacher, view, min(cache.committed(dataset, teacher, view))))
        source = cache.dataset(dataset)
        targets = (commit.stop - commit.start) * math.prod(task_of(source).sites(source.input_shape))
        sizes = {stored.path: stored.size_bytes for stored in commit.objects if not stored.path.startswith("feature/")}
        statistics = sum(size for path, size in sizes.items() if path.startswith((f"{LSE}/", f"{STATISTICS}/")))
        figures |= {
            "stored": round(sum(sizes.values()) / targets, 1),
            "stored_statistics": round(statistics / targets, 1),
        }
        break
    return figures


def _provenance(cache: Cache, dataset: str, teacher: str | None) -> dict[str, Any] | None:
    views = [PLAIN] if teacher is None else cache.view_names(dataset, teacher)
    shards = cache.committed(dataset, teacher, views[0]) if views else set()
    return cache.commit(ShardKey(dataset, teacher, views[0], min(shards))).about if shards else None
