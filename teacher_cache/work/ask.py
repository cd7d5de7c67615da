"""Ask a teacher about one shard, and commit its soft targets, features and per-sample statistics.

Shapes: S rows of a shard, B readable rows of it or of a batch, `sites` the axes of a row's sites (storage.tasks), C
classes, V ≥ C logits of a padded vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from storage.cache import Cache
from storage.errors import BadTeacher
from storage.format.shards import ShardKey
from storage.format.specs import DatasetSpec, TeacherSpec
from storage.inputs import Stored, inputs_of
from storage.tasks import NO_LABEL, Task, task_of
from storage.views import FINGERPRINTED_ROWS, PLAIN, view_fingerprint
from storage.views.check import Readable, libraries, readable_rows
from teacher_cache.work.checks import check_classes, finite_rows, refuse_probabilities, refuse_shard
from teacher_cache.work.pieces import LOCK, AskWork, Done, commit_shard, provenance
from teacher_cache.work.promising import promise_teacher, promise_weights
from teacher_cache.work.rows import draw_keys, encode_rows, labels_of, spread_rows

if TYPE_CHECKING:
    from torch import Tensor

    from teacher_cache.teachers.model import Teacher


def ask_shard(work: AskWork) -> Done:
    """Ask a teacher about every readable sample of one shard, and commit its soft targets and features.

    Raises:
        BadTeacher: its output is not what the cache was promised.
        StaleCache: its files are not those that the cache was promised.
        RowsMissing: it said NaN or infinity for some rows; the shard is refused.
    """
    import torch

    from teacher_cache.teachers.loading import cached_teacher, pick_device

    cache, key = Cache.open(work.cache), work.key
    assert key.teacher is not None
    dataset, spec = cache.dataset(key.dataset), TeacherSpec.model_validate_json(work.promise)
    ingest = cache.commit(ShardKey(key.dataset, None, PLAIN, key.shard), with_table=True)
    readable = readable_rows(ingest.table)
    readable_S = readable.mask_S
    # Read before the lock is taken: meanwhile the other piece of work of this process computes.
    inputs_S = cache.read_rows(key.dataset, key.shard)
    labels_S = labels_of(cache, key, ingest)

    with LOCK:
        began = time.monotonic()
        torch.set_num_threads(work.threads)  # for each shard: a Dask nanny has set it to 1
        device = pick_device(work.device)
        teacher = cached_teacher(work.teacher, spec.fingerprint, spec.num_classes, device)
        shown_B, seen = _show(cache, key, inputs_S, readable, device)
        keys = draw_keys(dataset, readable, key.view)
        answers = _ask(teacher, Question(shown_B, torch.from_numpy(labels_S[readable_S]), keys), spec, dataset)
        seconds = time.monotonic() - began
    # Before anything is written: a shard is whole or it is not there.
    refuse_shard(answers.finite, answers.in_range, work, np.flatnonzero(readable_S))
    promise_teacher(cache, key, spec, work.job)  # not under the lock: on an object store it is a round trip
    promise_weights(cache, key, teacher.weights)

    arrays = {name: spread_rows(encoded.cpu().numpy(), readable_S) for name, encoded in answers.encoded.items()}
    columns = {name: _column(values.cpu().numpy(), readable_S) for name, values in answers.columns.items()}
    table = pa.table({"row": ingest.table["row"], **columns})
    about = provenance(seconds) | {
        "quarantined": int((~readable_S).sum()),
        "inputs_digest": ingest.about["inputs_digest"],  # what ties targets to the very inputs beside them
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {work.threads} threads",
        "torch": torch.__version__,
        "weights": teacher.weights,
        "answered": {name: values.sum().item() for name, values in answers.answered.items()},
        **seen,
    }
    return commit_shard(cache, key, work.rows, arrays=arrays, table=table, about=about)


def _show(
    cache: Cache, key: ShardKey, inputs_S: Stored, readable: Readable, device: str
) -> tuple[Tensor, dict[str, Any]]:
    """Return what the teacher is shown of the readable rows, (B, …), and what a commit says of it."""
    stored_B = inputs_of(cache.dataset(key.dataset)).shown(inputs_S, readable.mask_S)
    if key.view == PLAIN:
        return stored_B, {"view_fingerprint": view_fingerprint(inputs_S)}
    views = cache.views(key.dataset)
    assert views is not None  # the build wrote it before any shard
    shown_B = views.view(key.view).show_shard(stored_B.to(device), readable.keys_B, readable.splits_B)
    return shown_B, {
        "inputs_fingerprint": view_fingerprint(inputs_S),
        # Of the first rows only: enough to notice another transform or library, and cheap to make again in training.
        "view_fingerprint": view_fingerprint(shown_B[:FINGERPRINTED_ROWS].cpu().numpy()),
        "views": views.fingerprint,
        "libraries": libraries(),
    }


class Question(NamedTuple):
    """What a teacher is asked: rows (B, …), labels (B, *sites) int64, −1: none, and keys of draws, likewise."""

    shown: Tensor
    labels: Tensor
    keys: Tensor


class ShardAnswers(NamedTuple):
    """What a teacher said of a shard, all on its device; B readable rows.

    Attributes:
        columns: of the commit's table, (B,) each.
        encoded: name of an array in the cache → stored form, (B, *sites, …).
        finite: name → (B,) bool, of the teacher's own values.
        in_range: name → (B,) bool, of the stored form.
        answered: fields of `storage.tasks.base.Answered`, (B,) each: sums over a row's labelled sites.
    """

    columns: dict[str, Tensor]
    encoded: dict[str, Tensor]
    finite: dict[str, Tensor]
    in_range: dict[str, Tensor]
    answered: dict[str, Tensor]


def _ask(teacher: Teacher, question: Question, spec: TeacherSpec, dataset: DatasetSpec) -> ShardAnswers:
    """Return the teacher's answers, encoded batch by batch so that no whole logits or features are ever held."""
    import torch

    if not len(question.shown):  # nothing was readable; a blank tells the shapes, and models choke on no rows at all
        one = Question(*(values.new_zeros(1, *values.shape[1:]) for values in question))
        return ShardAnswers(
            *({name: t[:0] for name, t in tensors.items()} for tensors in _ask(teacher, one, spec, dataset))
        )
    parts: list[ShardAnswers] = []
    batches = inputs_of(dataset).batches(question.shown, teacher.batch_size)
    for rows_B in batches:
        batch = Question(*(values[rows_B.to(values.device)] for values in question))
        logits, features = teacher(batch.shown, dataset)
        check_classes(logits, batch.labels, spec, dataset)
        if not parts:  # a model that ends in a softmax does so in every batch
            refuse_probabilities(logits.flatten(0, -2), spec)
        parts.append(_answers(task_of(dataset), logits, features, batch, spec))

    asked_B = torch.cat(batches)
    places_B = None if (asked_B.diff() == 1).all() else asked_B.argsort()  # back to the order of the shard

    def joined(dicts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        dicts = list(dicts)
        for name in dicts[0]:
            if len(shapes := {tuple(tensors[name].shape[1:]) for tensors in dicts}) > 1:
                raise BadTeacher(f"teacher {spec.name} changes the shape of {name} between batches", found=f"{shapes}")
        whole = {name: torch.cat([tensors[name] for tensors in dicts]) for name in dicts[0]}
        return whole if places_B is None else {name: v[places_B.to(v.device)] for name, v in whole.items()}

    return ShardAnswers(*(joined(part[number] for part in parts) for number in range(len(ShardAnswers._fields))))


def _answers(
    task: Task, logits: Tensor, features: dict[str, Tensor], batch: Question, spec: TeacherSpec
) -> ShardAnswers:
    """Return the answers for one batch; `logits` (B, *sites, V)."""
    labels = batch.labels.to(logits.device)
    encoded = encode_rows(spec.encoding, logits, labels, batch.keys, spec.num_classes)
    in_range = {name: finite_rows(v, bf16=name in spec.encoding.bf16_arrays) for name, v in encoded.items()}
    # What pads a vocabulary may be −inf; were it NaN or +inf, it would be the top class.
    finite = {"logits": finite_rows(logits[..., : spec.num_classes]) & finite_rows(logits.amax(-1, keepdim=True))}
    for name, values in features.items():
        stored = encoded[f"feature/{name}"] = spec.features[name].encode(values)
        finite[f"feature/{name}"] = finite_rows(values)
        in_range[f"feature/{name}"] = finite_rows(stored, bf16=spec.features[name].dtype == "bf16")
    sites = _sites(logits[..., : spec.num_classes], labels)  # what pads a vocabulary is no class
    return ShardAnswers(task.row_columns(sites, labels), encoded, finite, in_range, _answered(sites, labels))


def _answered(sites: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Return sums over the labelled sites of each row, (B,): how many, how many right, nats of cross-entropy."""
    known = labels >= 0
    nats = -sites["label_log_probability"].double().masked_fill(~known, 0.0)
    counts = {"labelled": known, "correct": known & (sites["top"] == labels), "nats": nats}
    return {name: values.reshape(len(labels), -1).sum(1) for name, values in counts.items()}


def _sites(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return top class, its probability, entropy (nats) and log-probability of the label, (B, *sites) each.

    Args:
        logits: (B, *sites, C); −inf where a class can never be.
        labels: (B, *sites).
    """
    import torch

    from storage.targets.soft import NEVER

    log_total = logits.logsumexp(-1)
    top = logits.max(dim=-1)
    log_p = logits - log_total[..., None]
    return {
        "top": top.indices,
        "top_probability": (top.values - log_total).exp(),
        "entropy": -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1),  # 0 · log 0 is 0
        "label_log_probability": log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0].clamp(min=NEVER),
    }


def _column(values_B: np.ndarray, readable_S: np.ndarray) -> pa.Array:
    """Return a column (S,) that is null where a row is unreadable or has no value: NaN, or class −1."""
    null_B = np.isnan(values_B) if values_B.dtype.kind == "f" else values_B == NO_LABEL
    null_S = ~readable_S
    null_S[readable_S] = null_B
    return pa.array(spread_rows(np.where(null_B, 0, values_B).astype(values_B.dtype), readable_S), mask=null_S)
