"""What a cache says of itself and of its teachers, and how far it can be believed: from its own files alone.

There is no dense reference here: fidelity is what can be seen without one. How good the teacher's answers are, from the
per-sample table; and what an encoding did to them, from the first held targets, decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import polars as pl
import torch
from torch import Tensor

from storage.cache import TEACHER_COLUMNS, Cache, Samples
from storage.cache.status import read_info
from storage.encodings import Capability, DenseEncoding, Encoded
from storage.errors import StaleCache
from storage.targets.soft import SparseTargets
from storage.tasks import task_of
from storage.tasks.base import LABELLED
from storage.views import PLAIN
from student_train.feed.batches import Arrays, Needs, SoftNeed
from student_train.feed.selection import Selection, select_rows
from student_train.feed.shard_source import INPUTS, LABELS, ShardSource
from student_train.feed.windows import load_shard
from student_train.report.measures import accuracy_of, calibration_of
from student_train.students.parts import part_size
from student_train.tasks import TASKS, StudentTask, Way

MOST_DECODED = 1024  # rows or positions


class Decoded(NamedTuple):
    """What an encoding left of a teacher's first targets of some rows.

    Attributes:
        num_targets: that were looked at.
        accuracy: of the top class as it is decoded; None without labels.
        top_kept: share whose top class is that of the per-sample table; None of tokens, whose table holds none.
        outside: mean mass outside of the kept classes, by temperature; empty of dense targets.
    """

    num_targets: int
    accuracy: float | None
    top_kept: float | None
    outside: dict[float, float]


class TeacherFigures(NamedTuple):
    """How good a teacher's answers about some rows are, from the per-sample table; of tokens means over blocks.

    Attributes:
        rows: of the job, such as "digits/train".
        num_rows: how many, or how many blocks of tokens.
        accuracy: of its top class, of tokens as it is decoded; None without labels.
        calibration_error: of its top class; None of tokens too.
        cross_entropy: to the labels, nats.
        entropy, confidence: means, of its distribution at temperature 1 and of its top class's probability.
        decoded: None of draws alone, which are no distribution, and of rows that it never saw plain.
    """

    rows: str
    num_rows: int
    accuracy: float | None
    calibration_error: float | None
    cross_entropy: float | None
    entropy: float | None
    confidence: float | None
    decoded: Decoded | None


@dataclass(frozen=True)
class TeacherFacts:
    """One teacher.

    Attributes:
        name: in the cache.
        datasets: what is promised of it and of its encoding, for each dataset.
        figures: on the rows that students were trained and measured on.
    """

    name: str
    datasets: dict[str, dict[str, Any]]
    figures: tuple[TeacherFigures, ...]

    @property
    def temperatures(self) -> list[float]:
        """Return those at which mass outside of kept classes is known."""
        return sorted({t for each in self.figures if each.decoded is not None for t in each.decoded.outside})


@dataclass(frozen=True)
class CacheFacts:
    """What there is to show of one cache."""

    url: str
    about: dict[str, Any]
    datasets: dict[str, dict[str, Any]]
    teachers: tuple[TeacherFacts, ...]


def open_cache(url: str, expected_id: str | None) -> Cache:
    """Return the cache at `url`. Raises StaleCache: another one lies there now; or what `Cache.open` raises."""
    cache = Cache.open(url)
    if expected_id not in (None, cache.id):
        raise StaleCache(
            f"{url} is not the cache of these runs",
            found=f"cache {cache.id}",
            expected=f"cache {expected_id}",
            do="student report RUNS --cache URL, if it has moved",
        )
    return cache


def cache_facts(cache: Cache, rows: list[str]) -> CacheFacts:
    """Return what a cache promises and what can be seen of its fidelity.

    Args:
        cache: an open one.
        rows: "<dataset>" or "<dataset>/<split>" that students were trained or measured on.
    """
    samples = cache.samples()
    info = read_info(samples.catalogue)
    used = list(dict.fromkeys(each.partition("/")[0] for each in rows))
    described = {name: info["datasets"][name] for name in used if name in info["datasets"]}
    promised: dict[str, dict[str, dict[str, Any]]] = {}
    for dataset, spec in described.items():
        for teacher, promise in spec["teachers"].items():
            if promise["views"]:  # else nothing of it is built
                promised.setdefault(teacher, {})[dataset] = promise
    teachers = [
        TeacherFacts(
            name,
            of,
            tuple(_figures(cache, samples, each, name) for each in rows if _is_soft(of, each.partition("/")[0])),
        )
        for name, of in promised.items()
    ]
    datasets = {name: {k: v for k, v in spec.items() if k != "teachers"} for name, spec in described.items()}
    about = {name: info[name] for name in ("id", "format", "created", "created_by")}
    return CacheFacts(cache.url, about, datasets, tuple(teachers))


def _is_soft(of: Mapping[str, dict[str, Any]], dataset: str) -> bool:
    """Return whether a teacher has scores of a dataset's classes, from what is promised of it."""
    return dataset in of and of[dataset]["encoding"]["kind"] not in ("none", "vectors")


def dense_bytes(num_classes: int) -> int:
    """Return the bytes of one dense fp32 target, beside which an encoding is to be seen."""
    return DenseEncoding(statistics=False).bytes_per_row(num_classes)


def _figures(cache: Cache, samples: Samples, rows: str, teacher: str) -> TeacherFigures:
    """Return how good, how sure and how well calibrated a teacher is on some rows of a cache."""
    dataset, _, split = rows.partition("/")
    columns = {f"teacher_{name}": f"{teacher}_{name}" for name in TEACHER_COLUMNS}
    of_split = pl.col("split") == split if split else pl.lit(value=True)
    found = samples.of(dataset, [teacher]).filter(of_split)
    counted = f"{teacher}_{LABELLED}"  # not there where a row is its only site
    sites_N = found[counted] if counted in found.columns else pl.repeat(1, len(found), eager=True)
    table, decoded = found.select("label", **columns), _decoded(cache, samples, rows, teacher)
    table = _task_of(samples, dataset).told_of_rows(table)
    accuracy = accuracy_of(table, "teacher_")
    if accuracy is None and decoded is not None:
        accuracy = decoded.accuracy
    calibration, label_log_p = calibration_of(table, "teacher_"), _mean(table["teacher_label_log_probability"], sites_N)
    return TeacherFigures(
        rows,
        len(table),
        accuracy,
        None if calibration is None else calibration.error,
        None if label_log_p is None else -label_log_p,
        _mean(table["teacher_entropy"], sites_N),
        _mean(table["teacher_top_probability"], sites_N),
        decoded,
    )


def _mean(values_N: pl.Series, sites_N: pl.Series) -> float | None:
    """Return the mean over all sites of what are means over each row's; None where there are none.

    Args:
        values_N: of each row; null: none.
        sites_N: of how many sites; null, as an older version leaves it: of as many as other rows.
    """
    known = pl.DataFrame({"value": values_N.cast(pl.Float64), "sites": sites_N.cast(pl.Float64)})
    known = known.with_columns(pl.col("sites").fill_null(pl.col("sites").mean()).fill_null(1.0)).drop_nulls()
    total = float(known["sites"].sum())
    return float((known["value"] * known["sites"]).sum()) / total if total else None


def _decoded(cache: Cache, samples: Samples, rows: str, teacher: str) -> Decoded | None:
    """Return what is left of the targets of the first shard of some rows."""
    dataset, catalogue = rows.partition("/")[0], samples.catalogue
    encoding = catalogue.teacher(dataset, teacher).encoding
    bucket = Capability("bucket", 1.0)
    if PLAIN not in catalogue.view_names(dataset, teacher):
        return None
    if encoding.lacks(bucket) is not None:  # draws alone are no distribution
        return None
    needs = Needs(soft=frozenset({SoftNeed(teacher, bucket)}))
    selection = select_rows(samples, rows, needs, allow_partial=True, agree_with=teacher)
    source = ShardSource(cache, selection)
    arrays = load_shard(source, 0, source.names(needs) - {INPUTS})
    encoded = source.encoded(arrays)[teacher]
    return FIRST[_task_of(samples, dataset).way](selection, arrays, encoded)


def _task_of(samples: Samples, dataset: str) -> StudentTask:
    return TASKS[task_of(samples.catalogue.dataset(dataset)).name]


def _first_rows(selection: Selection, arrays: Arrays, encoded: Encoded) -> Decoded:
    first = {name: values[:MOST_DECODED] for name, values in encoded.arrays.items()}
    size = min(MOST_DECODED, int(selection.shard_sizes_S[0]))
    labels_N = torch.from_numpy(selection.labels_N[:size])
    tops_N = None if selection.tops_N is None else torch.from_numpy(selection.tops_N[:size])
    return _compared([replace(encoded, arrays=first)], labels_N, tops_N)


def _first_sites(selection: Selection, arrays: Arrays, encoded: Encoded) -> Decoded:
    labels_N = arrays[LABELS].flatten().long()
    labels_N = labels_N[labels_N >= 0][:MOST_DECODED]  # targets are of these
    size = part_size(encoded.num_classes, labels_N.device)
    starts = range(0, len(labels_N), size)
    parts = [encoded.part(slice(start, min(start + size, len(labels_N)))) for start in starts]
    return _compared(parts, labels_N, None)


# What is left of the first targets of a shard.
FIRST: dict[Way, Callable[[Selection, Arrays, Encoded], Decoded]] = {"rows": _first_rows, "sites": _first_sites}


def _compared(parts: list[Encoded], labels_N: Tensor, tops_N: Tensor | None) -> Decoded:
    decoded_N: list[Tensor] = []
    outside: dict[float, list[Tensor]] = {}
    for part in parts:
        targets = part.decode()
        decoded_N.append(targets.top()[1])  # type: ignore[attr-defined]
        if isinstance(targets, SparseTargets):
            for temperature in targets.temperatures:
                outside.setdefault(temperature, []).append(targets.log_rest(temperature).exp())
    found_N = torch.cat(decoded_N) if decoded_N else labels_N[:0]
    return Decoded(
        num_targets=len(found_N),
        accuracy=_share(found_N == labels_N, labels_N >= 0),
        top_kept=None if tops_N is None else _share(found_N == tops_N, tops_N >= 0),
        outside={temperature: float(torch.cat(masses).mean()) for temperature, masses in outside.items()},
    )


def _share(hits_N: Tensor, counted_N: Tensor) -> float | None:
    return float(hits_N[counted_N].float().mean()) if counted_N.any() else None
