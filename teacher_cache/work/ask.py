"""Ask a teacher about one shard, and commit its soft targets, features and per-sample statistics.

Shapes: S rows of a shard, B readable rows of it or of a batch, L positions of a row of tokens, C classes, V ≥ C
logits of a padded vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from storage.cache import Cache
from storage.digests import sample_keys
from storage.encodings import AnyEncoding
from storage.errors import BadRequest, BadTeacher, RowsMissing
from storage.format.shards import Commit, ShardKey
from storage.format.specs import TeacherSpec
from storage.tasks import NO_LABEL
from storage.views import FINGERPRINTED_ROWS, PLAIN, plain, view_fingerprint
from storage.views.check import Readable, libraries, readable_rows
from teacher_cache.work.pieces import LOCK, Done, Task, commit_shard, provenance

if TYPE_CHECKING:
    from torch import Tensor

    from teacher_cache.teachers.model import Teacher

SHOWN_ROWS = 10  # of refused rows, in a message


def teach_shard(task: Task) -> Done:
    """Ask a teacher about every readable sample of one shard, and commit its soft targets and features.

    Raises:
        BadTeacher: its output is not what the cache was promised.
        StaleCache: its files are not those that the cache was promised.
        RowsMissing: it said NaN or infinity for some rows; the shard is refused.
    """
    import torch

    from teacher_cache.teachers.loading import cached_teacher

    cache = Cache.open(task.cache)
    assert task.key.teacher is not None
    spec = cache.teacher(task.key.dataset, task.key.teacher)
    ingest = cache.commit(ShardKey(task.key.dataset, None, PLAIN, task.key.shard), with_table=True)
    readable = readable_rows(ingest.table)
    readable_S = readable.mask_S
    inputs_S = cache.read_inputs(task.key.dataset, task.key.shard)
    labels_S = labels_of(cache, task.key, ingest)

    with LOCK:
        began = time.monotonic()
        torch.set_num_threads(task.threads)  # in each task: a Dask nanny has set it to 1
        device = pick_device(task.device)
        teacher = cached_teacher(task.options, task.promise, spec.num_classes, device)
        shown_B, seen = _show(cache, task.key, inputs_S, readable, device)
        keys_B = torch.from_numpy(draw_keys(readable, task.key.view))
        asked = Asked(shown_B, torch.from_numpy(labels_S[readable_S]), keys_B)
        answers = _ask(teacher, asked, spec, task.key.dataset)
        seconds = time.monotonic() - began
    _refuse(answers, task, np.flatnonzero(readable_S))

    arrays = {name: spread_rows(encoded.cpu().numpy(), readable_S) for name, encoded in answers.encoded.items()}
    columns = {name: _column(values.cpu().numpy(), readable_S) for name, values in answers.columns.items()}
    table = pa.table({"row": ingest.table["row"], **columns})
    about = provenance(seconds) | {
        "quarantined": int((~readable_S).sum()),
        "inputs_digest": ingest.about["inputs_digest"],
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {task.threads} threads",
        "torch": torch.__version__,
        "promise": task.promise,
        **seen,
    }
    return commit_shard(cache, task, arrays, table, about, 0)


def _show(
    cache: Cache, key: ShardKey, inputs_S: np.ndarray, readable: Readable, device: str
) -> tuple[Tensor, dict[str, Any]]:
    """Return what the teacher is shown of the readable rows, (B, …), and what a commit says of it."""
    import torch

    stored_B = torch.from_numpy(inputs_S[readable.mask_S])
    if key.view == PLAIN:
        return stored_B, {"view_fingerprint": view_fingerprint(inputs_S)}
    views = cache.views(key.dataset)
    assert views is not None  # the build wrote it before any task
    shown_B = views.view(key.view).show_shard(stored_B.to(device), readable.keys_B, readable.splits_B)
    return shown_B, {
        "inputs_fingerprint": view_fingerprint(inputs_S),
        "view_fingerprint": view_fingerprint(shown_B[:FINGERPRINTED_ROWS].cpu().numpy()),
        "views": views.fingerprint,
        "libraries": libraries(),
    }


def pick_device(asked: str) -> str:
    """Return "cpu" or "cuda" for a task's device."""
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise BadRequest(
            "no CUDA device can be used here", found="torch.cuda.is_available() is false", do="--device cpu"
        )
    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def labels_of(cache: Cache, key: ShardKey, ingest: Commit) -> np.ndarray:
    """Return labels, int64 (S,) or of tokens (S, L), −1 where there is none."""
    if cache.dataset(key.dataset).vocabulary is not None:
        return cache.read_labels(key.dataset, key.shard).astype(np.int64)
    return np.asarray(ingest.table["label"].fill_null(NO_LABEL).to_numpy().astype(np.int64))


def draw_keys(readable: Readable, view: str) -> np.ndarray:
    """Return what draws are a function of, sample and view, int64 (B,)."""
    return readable.keys_B if view == PLAIN else readable.keys_B ^ sample_keys([view])


class Asked(NamedTuple):
    """Inputs (B, …), labels (B,) or of tokens (B, L) int64, −1 for none, and keys of draws (B,) int64."""

    inputs: Tensor
    labels: Tensor
    keys_B: Tensor


class Answers(NamedTuple):
    """What a teacher said of a shard, all on its device; B readable rows.

    Attributes:
        columns: of the commit's table, (B,) each.
        encoded: name of an array in the cache → stored form, (B, …), of tokens (B, L, …).
        finite: name → (B,) bool, of the teacher's own values.
        in_range: name → (B,) bool, of the stored form.
    """

    columns: dict[str, Tensor]
    encoded: dict[str, Tensor]
    finite: dict[str, Tensor]
    in_range: dict[str, Tensor]


def _ask(teacher: Teacher, asked: Asked, spec: TeacherSpec, dataset: str) -> Answers:
    """Return the teacher's answers, encoded batch by batch so that no whole logits or features are ever held."""
    import torch

    if not len(asked.inputs):  # nothing was readable; a blank tells the shapes, and models choke on no rows at all
        one = Asked(*(values.new_zeros(1, *values.shape[1:]) for values in asked))
        return Answers(*({name: t[:0] for name, t in tensors.items()} for tensors in _ask(teacher, one, spec, dataset)))
    parts: list[Answers] = []
    for batch in map(Asked, *(values.split(teacher.batch_size) for values in asked)):
        logits, features = teacher(plain(batch.inputs))
        check_classes(logits, batch.labels, spec, dataset)
        if not parts:
            refuse_probabilities(logits.flatten(0, -2), spec)
        parts.append(_answers(logits, features, batch, spec))

    def joined(dicts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        dicts = list(dicts)
        for name in dicts[0]:
            if len(shapes := {tuple(tensors[name].shape[1:]) for tensors in dicts}) > 1:
                raise BadTeacher(f"teacher {spec.name} changes the shape of {name} between batches", found=f"{shapes}")
        return {name: torch.cat([tensors[name] for tensors in dicts]) for name in dicts[0]}

    return Answers(*(joined(part[number] for part in parts) for number in range(len(Answers._fields))))


def _answers(logits: Tensor, features: dict[str, Tensor], batch: Asked, spec: TeacherSpec) -> Answers:
    """Return the answers for one batch; `logits` (B, V), of tokens (B, L, V)."""
    labels = batch.labels.to(logits.device)
    encoded = encode_rows(spec.encoding, logits, labels, batch.keys_B, spec.num_classes)
    in_range = {name: _finite_rows(v, bf16=name in spec.encoding.bf16_arrays) for name, v in encoded.items()}
    finite = {"logits": _finite_rows(logits[..., : spec.num_classes]) & _finite_rows(logits.amax(-1, keepdim=True))}
    for name, values in features.items():
        stored = encoded[f"feature/{name}"] = spec.features[name].encode(values)
        finite[f"feature/{name}"] = _finite_rows(values)
        in_range[f"feature/{name}"] = _finite_rows(stored, bf16=spec.features[name].dtype == "bf16")
    return Answers(_columns(logits, labels), encoded, finite, in_range)


def encode_rows(
    encoding: AnyEncoding, logits: Tensor, labels: Tensor, keys_B: Tensor, num_classes: int
) -> dict[str, Tensor]:
    """Return the arrays of an encoding for some rows, (B, …), of tokens (B, L, …).

    Args:
        encoding: how to store them.
        logits: float32, (B, V), of tokens (B, L, V).
        labels: int64, one for each, −1 where there is none, on the same device.
        keys_B: of the rows (`draw_keys`).
        num_classes: C ≤ V.
    """
    from storage.encodings.draws import position_keys

    keys = keys_B.to(logits.device)
    if logits.ndim == 3:
        keys = position_keys(keys, logits.shape[1])
    encoded = encoding.encode(
        logits.flatten(0, -2), num_classes=num_classes, labels_B=labels.flatten(), keys_B=keys.flatten()
    )
    return {name: values.unflatten(0, logits.shape[:-1]) for name, values in encoded.items()}


def _finite_rows(values_B: Tensor, *, bf16: bool = False) -> Tensor:
    """Return which rows hold neither NaN nor infinity, (B,) bool; bfloat16 is stored as its bits, for Zarr has none."""
    import torch

    if bf16:
        values_B = values_B.view(torch.bfloat16)
    return values_B.isfinite().flatten(1).all(dim=1)


def check_classes(logits: Tensor, labels: Tensor, spec: TeacherSpec, dataset: str) -> None:
    """Check the number of logits: that of the classes, of tokens at least that; the rest pads the vocabulary."""
    found, padded = logits.shape[-1], logits.ndim == 3
    if found < spec.num_classes or (found > spec.num_classes and not padded):
        raise BadTeacher(
            f"teacher {spec.name} does not fit dataset {dataset}",
            found=f"{found} logits per {'position' if padded else 'row'}",
            expected=f"{'at least ' * padded}{spec.num_classes} classes",
        )
    if labels.shape != logits.shape[:-1] or (labels.numel() and int(labels.max()) >= spec.num_classes):
        raise BadTeacher(
            f"teacher {spec.name} does not fit the labels of dataset {dataset}",
            found=f"logits of shape {tuple(logits.shape)}, labels of shape {tuple(labels.shape)}, "
            f"the largest {int(labels.max()) if labels.numel() else 'none'}",
            expected=f"logits for each label, and labels below {spec.num_classes}",
        )


def refuse_probabilities(logits_BC: Tensor, spec: TeacherSpec) -> None:
    """Raise BadTeacher if what should be logits are probabilities already."""
    import torch

    sums_B = logits_BC.sum(dim=1)
    if spec.num_classes > 1 and (logits_BC >= 0).all() and torch.allclose(sums_B, torch.ones_like(sums_B), atol=1e-3):
        raise BadTeacher(
            f"teacher {spec.name} returns probabilities",
            found="every row is non-negative and sums to 1",
            expected="logits: scores before softmax",
            do="remove the softmax at the end of the model, or take its logarithm",
        )


def _refuse(answers: Answers, task: Task, readable_rows: np.ndarray) -> None:
    """Refuse the whole shard if any value is NaN, infinite, or too large for its stored form."""
    for fault, masks, do in (
        (
            "gave NaN or infinite",
            answers.finite,
            "run it in fp32 or bf16 if it overflows in fp16, or look at those rows",
        ),
        ("overflows the stored precision of", answers.in_range, 'store dtype = "bf16" or "fp32"'),
    ):
        for name, mask_B in masks.items():
            if not mask_B.all():
                rows = (task.start + readable_rows[~mask_B.cpu().numpy()]).tolist()
                shown = ", ".join(map(str, rows[:SHOWN_ROWS])) + (" …" if len(rows) > SHOWN_ROWS else "")
                raise RowsMissing(
                    f"{task.key} is refused: teacher {task.key.teacher} {fault} {name}",
                    found=f"{len(rows)} of {len(readable_rows)} rows: {shown}",
                    expected="finite values",
                    do=do,
                )


def _columns(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return columns of the table, (B,) each: top class, its probability, entropy (nats), log-probability of the label.

    Of tokens, means over the positions that have a label, and no top class (−1). NaN: no value.
    """
    log_total = logits.logsumexp(-1)
    top = logits.max(dim=-1)
    log_p = logits - log_total[..., None]
    values = {
        "top_probability": (top.values - log_total).exp(),
        "entropy": -(log_p.exp() * log_p.clamp(min=-1e4)).sum(-1),  # padding of a vocabulary may be −inf
        "label_log_probability": log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0],
    }
    known = labels >= 0
    if logits.ndim == 3:
        means = {name: (value * known).sum(1) / known.sum(1) for name, value in values.items()}  # 0 / 0 is NaN
        return {"top": labels.new_full((len(labels),), NO_LABEL), **means}
    values["label_log_probability"] = values["label_log_probability"].masked_fill(~known, float("nan"))
    return {"top": top.indices, **values}


def spread_rows(values_B: np.ndarray, readable_S: np.ndarray) -> np.ndarray:
    """Return (S, …) with zeros where a row is unreadable; no reader is ever given such a row."""
    if readable_S.all():
        return values_B
    values_S = np.zeros((len(readable_S), *values_B.shape[1:]), values_B.dtype)
    values_S[readable_S] = values_B
    return values_S


def _column(values_B: np.ndarray, readable_S: np.ndarray) -> pa.Array:
    """Return a column (S,) that is null where a row is unreadable or has no value: NaN, or class −1."""
    null_B = np.isnan(values_B) if values_B.dtype.kind == "f" else values_B == NO_LABEL
    null_S = ~readable_S
    null_S[readable_S] = null_B
    return pa.array(spread_rows(np.where(null_B, 0, values_B).astype(values_B.dtype), readable_S), mask=null_S)
