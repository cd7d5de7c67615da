"""Recode one shard: what a richer cache holds, decoded and encoded again, without the teacher.

Shapes: S rows of a shard, `sites` the axes of a row's sites (storage.tasks), P of all sites, those that are answered.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from storage.cache import Cache
from storage.cache.samples import TEACHER_COLUMNS
from storage.errors import CorruptObject, RowsMissing
from storage.format.committing import read_stored
from storage.format.shards import Commit, ShardKey
from storage.format.specs import TeacherSpec
from storage.views import PLAIN
from storage.views.check import readable_rows
from teacher_cache.work.conversions import convert
from teacher_cache.work.pieces import LOCK, Done, RecodeWork, commit_shard, provenance
from teacher_cache.work.rows import answered_sites, draw_keys, labels_of, lay_down, take_up

if TYPE_CHECKING:
    from torch import Tensor

BATCH_ELEMENTS = 2**24  # of decoded logits
FEATURE = "feature/"


def recode_shard(work: RecodeWork) -> Done:
    """Commit one shard of a cache from the same shard of a richer one.

    Raises:
        CorruptObject: the richer shard is damaged, or is of other inputs.
        RowsMissing: a value is too large for its new form; the shard is refused.
    """
    source, cache = Cache.open(work.richer), Cache.open(work.cache)
    commit = source.commit(work.key, with_table=True)
    return _copy(source, cache, commit) if work.key.teacher is None else _recode(source, cache, commit, work)


def _copy(source: Cache, cache: Cache, commit: Commit) -> Done:
    """Copy the ingest of a shard as it is."""
    # Bytes, not arrays: both caches vouch for the same digests, and nothing is decoded.
    about = commit.about | {"recoded_from": {"cache": source.id}}
    copy = cache.copy_shard(source, commit, about)
    num_bytes = 0 if copy is None else copy.size_bytes
    quarantined = int(about.get("quarantined", 0))
    return Done(commit.key, commit.stop - commit.start, quarantined, num_bytes, 0.0, copy is not None)


def _recode(source: Cache, cache: Cache, commit: Commit, work: RecodeWork) -> Done:
    """Write the targets of a shard in the encoding that this cache has promised."""
    import torch

    from teacher_cache.teachers.loading import pick_device

    key = commit.key
    assert key.teacher is not None
    spec, richer = cache.teacher(key.dataset, key.teacher), source.teacher(key.dataset, key.teacher)
    ingest = cache.commit(ShardKey(key.dataset, None, PLAIN, key.shard), with_table=True)
    _check_inputs(source, cache, commit, ingest)
    readable = readable_rows(ingest.table)
    features = [FEATURE + name for name in spec.features]  # as they are: only targets have another encoding
    targets = [name for name in commit.array_names if not name.startswith(FEATURE)]
    arrays = read_stored(source.objects, commit, [*targets, *features])
    dataset, labels = cache.dataset(key.dataset), labels_of(cache, key, ingest, readable.mask_S)
    keys, answered_S = draw_keys(dataset, readable, key.view, labels), answered_sites(dataset, labels, readable.mask_S)
    answered = torch.from_numpy(answered_S[readable.mask_S])

    with LOCK:
        began = time.monotonic()
        torch.set_num_threads(work.threads)  # for each shard: a Dask nanny has set it to 1
        converted = _converted(
            {name: torch.from_numpy(take_up(arrays[name], answered_S)) for name in targets},
            labels[answered],
            keys[answered],
            richer,
            spec,
            pick_device(work.device),
        )
        seconds = time.monotonic() - began
    uses = spec.encoding.uses(converted)
    if (fault := spec.encoding.fault(converted, spec.num_classes, uses)) is not None:
        raise RowsMissing(
            f"{key} is refused: the teacher's logits do not fit this cache's encoding",
            found=fault,
            expected="finite values",
            do='dtype = "bf16", or leave it as it is in the richer cache',
        )
    recoded = {name: lay_down(values_P, answered_S, spec) for name, values_P in converted.items()}
    recoded |= {name: arrays[name] for name in features}
    # What the teacher's own commit says stays below it: of which weights, on what device, of which view.
    about = commit.about | provenance(seconds) | {"recoded_from": _origin(source, commit, richer)}
    table = commit.table
    if not spec.encoding.soft:  # nor is anything told of what was let go
        table, told = _without_soft(table), about.get("answered", {})
        about["answered"] = {name: told[name] for name in ("labelled",) if name in told}
        if not about["answered"]:  # a shard of before that was kept
            del about["answered"]
    rows = (commit.start, commit.stop)
    return commit_shard(cache, key, rows, arrays=recoded, table=table, about=about, uses=(*spec.uses, *uses))


def _without_soft(table: pa.Table) -> pa.Table:
    """Return a commit's table with null for all that a teacher said of classes."""
    for name in TEACHER_COLUMNS:
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.nulls(len(table), field.type))
    return table


def _check_inputs(source: Cache, cache: Cache, commit: Commit, ingest: Commit) -> None:
    """Raise CorruptObject if targets were not computed from the inputs beside which they are to lie."""
    if ingest.about["inputs_digest"] != commit.about["inputs_digest"]:
        raise CorruptObject(
            f"{source.url}: {commit.key} was computed from other inputs than those in {cache.url}",
            found=f"inputs digest {commit.about['inputs_digest']}",
            expected=f"inputs digest {ingest.about['inputs_digest']}",
            do=f"cache verify {source.url}",
        )


def _converted(
    stored: dict[str, Tensor], labels_P: Tensor, keys_P: Tensor, richer: TeacherSpec, spec: TeacherSpec, device: str
) -> dict[str, np.ndarray]:
    """Return the arrays of another encoding, (P, …) each, some sites at a time so that few decoded logits are held."""
    num_sites = len(labels_P)
    if not num_sites:  # nothing was answered: a blank site tells the shapes
        labels_P, keys_P = labels_P.new_full((1,), -1), keys_P.new_zeros(1)
        stored = {name: values.new_zeros(1, *values.shape[1:]) for name, values in stored.items()}

    def batches() -> Iterator[dict[str, np.ndarray]]:
        size = max(1, BATCH_ELEMENTS // max(1, spec.num_classes))
        for start in range(0, len(labels_P), size):
            batch = slice(start, start + size)
            encoded = convert(
                {name: values[batch].to(device) for name, values in stored.items()},
                richer.encoding,
                spec.encoding,
                labels_N=labels_P[batch].to(device),
                keys_N=keys_P[batch].to(device),
                num_classes=spec.num_classes,
            )
            yield {name: values.cpu().numpy() for name, values in encoded.items()}

    if not spec.encoding.soft:
        return {}
    parts = list(batches())
    return {name: np.concatenate([part[name] for part in parts])[:num_sites] for name in parts[0]}


def _origin(source: Cache, commit: Commit, richer: TeacherSpec) -> dict[str, Any]:
    """Return where a recoded shard is from: the first cache that asked the teacher comes first."""
    before = commit.about.get("recoded_from")
    origin = {"cache": source.id, "encoding": richer.encoding.model_dump(mode="json")}
    return origin if before is None else origin | {"before": before}
