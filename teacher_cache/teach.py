"""Ask a teacher about one shard, and commit its soft targets, features and per-sample statistics.

Shapes: S rows of a shard, B readable rows of it or of a batch, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from storage.cache import Cache
from storage.errors import BadRequest, BadTeacher, RowsMissing
from storage.shards import ShardKey
from storage.spec import TeacherSpec
from storage.views import PLAIN, to_float, view_fingerprint
from teacher_cache.tasks import LOCK, Done, Task, commit_shard, provenance

if TYPE_CHECKING:
    from torch import Tensor

    from teacher_cache.teachers import Teacher

SHOWN_ROWS = 10  # of refused rows, in a message


def teach_shard(task: Task) -> Done:
    """Ask a teacher about every readable sample of one shard, and commit its soft targets and features.

    Raises:
        BadTeacher: its output is not what the cache was promised.
        StaleCache: its files are not those that the cache was promised.
        RowsMissing: it said NaN or infinity for some rows; the shard is refused.
    """
    import torch

    from teacher_cache.teachers import cached_teacher

    cache = Cache.open(task.cache)
    assert task.key.teacher is not None
    spec = cache.teacher(task.key.dataset, task.key.teacher)
    ingest = cache.commit(ShardKey(task.key.dataset, None, PLAIN, task.key.shard), with_table=True)
    readable_S = ingest.table["error"].is_null().to_numpy(zero_copy_only=False)
    inputs_S = cache.read_inputs(task.key.dataset, task.key.shard)

    with LOCK:
        began = time.monotonic()
        torch.set_num_threads(task.threads)  # in each task: a Dask nanny has set it to 1
        device = _device(task.device)
        teacher = cached_teacher(task.options, task.promise, spec.num_classes, device)
        answers = _ask(teacher, torch.from_numpy(inputs_S[readable_S]), spec, task.key.dataset)
        labels = ingest.table["label"].to_numpy(zero_copy_only=False)[readable_S]
        statistics = _statistics(answers.logits_BC, labels)
        seconds = time.monotonic() - began
    _refuse(answers, task, np.flatnonzero(readable_S))

    arrays = {name: _spread_rows(encoded.cpu().numpy(), readable_S) for name, encoded in answers.encoded.items()}
    table = pa.table(
        {"row": ingest.table["row"], **{name: _column(values, readable_S) for name, values in statistics.items()}}
    )
    about = provenance(seconds) | {
        "quarantined": int((~readable_S).sum()),
        "inputs_digest": ingest.about["inputs_digest"],
        "view_fingerprint": view_fingerprint(inputs_S),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {task.threads} threads",
        "torch": torch.__version__,
        "promise": task.promise,
    }
    return commit_shard(cache, task, arrays, table, about, 0)


def _device(asked: str) -> str:
    """Return "cpu" or "cuda" for a task's device."""
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise BadRequest(
            "no CUDA device can be used here", found="torch.cuda.is_available() is false", do="--device cpu"
        )
    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


class Answers(NamedTuple):
    """What a teacher said of a shard, all on its device.

    Attributes:
        logits_BC: (B, C) float32, for B readable rows.
        encoded: name of an array in the cache → stored form, (B, …).
        finite: name → (B,) bool, of the teacher's own values.
        in_range: name → (B,) bool, of the stored form.
    """

    logits_BC: Tensor
    encoded: dict[str, Tensor]
    finite: dict[str, Tensor]
    in_range: dict[str, Tensor]


def _ask(teacher: Teacher, inputs_B: Tensor, spec: TeacherSpec, dataset: str) -> Answers:
    """Return the teacher's answers, encoded batch by batch so that no whole feature is ever held."""
    import torch

    if not len(inputs_B):  # nothing was readable; a blank tells the shapes, and models choke on no rows at all
        blank = _ask(teacher, inputs_B.new_zeros(1, *inputs_B.shape[1:]), spec, dataset)
        return Answers(blank.logits_BC[:0], *({name: t[:0] for name, t in tensors.items()} for tensors in blank[1:]))
    parts: list[Answers] = []
    for batch in inputs_B.split(teacher.batch_size):
        logits_BC, features = teacher(to_float(batch))
        _check_classes(logits_BC, spec, dataset)
        if not parts:
            _refuse_probabilities(logits_BC, spec)
        encoded = spec.encoding.encode(logits_BC) | {
            f"feature/{name}": spec.features[name].encode(values) for name, values in features.items()
        }
        raw = {"logits": logits_BC} | {f"feature/{name}": values for name, values in features.items()}
        parts.append(
            Answers(
                logits_BC,
                encoded,
                {name: _finite_rows(values) for name, values in raw.items()},
                {name: _finite_rows(values) for name, values in encoded.items()},
            )
        )

    def joined(dicts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        dicts = list(dicts)
        for name in dicts[0]:
            if len(shapes := {tuple(tensors[name].shape[1:]) for tensors in dicts}) > 1:
                raise BadTeacher(f"teacher {spec.name} changes the shape of {name} between batches", found=f"{shapes}")
        return {name: torch.cat([tensors[name] for tensors in dicts]) for name in dicts[0]}

    return Answers(
        torch.cat([part.logits_BC for part in parts]),
        joined(part.encoded for part in parts),
        joined(part.finite for part in parts),
        joined(part.in_range for part in parts),
    )


def _finite_rows(values_B: Tensor) -> Tensor:
    """Return which rows hold neither NaN nor infinity, (B,) bool."""
    import torch

    if values_B.dtype == torch.uint16:
        values_B = values_B.view(torch.bfloat16)  # stored as its bits, for Zarr has no such type
    return values_B.isfinite().flatten(1).all(dim=1)


def _check_classes(logits_BC: Tensor, spec: TeacherSpec, dataset: str) -> None:
    if logits_BC.shape[1] != spec.num_classes:
        raise BadTeacher(
            f"teacher {spec.name} does not fit dataset {dataset}",
            found=f"{logits_BC.shape[1]} logits per row",
            expected=f"{spec.num_classes} classes",
        )


def _refuse_probabilities(logits_BC: Tensor, spec: TeacherSpec) -> None:
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


def _statistics(logits_BC: Tensor, labels_B: np.ndarray) -> dict[str, np.ndarray]:
    """Return per-row columns: top class, its probability, entropy (nats), log-probability of the label (NaN: none)."""
    import torch

    log_probabilities_BC = logits_BC.log_softmax(dim=1)
    top = log_probabilities_BC.max(dim=1)
    entropy_B = -(log_probabilities_BC.exp() * log_probabilities_BC).sum(dim=1)
    labels = torch.from_numpy(np.nan_to_num(labels_B.astype(np.float64)).astype(np.int64)).to(logits_BC.device)
    of_label_B = log_probabilities_BC.gather(1, labels[:, None])[:, 0].cpu().numpy()
    return {
        "top": top.indices.cpu().numpy(),
        "top_probability": top.values.exp().cpu().numpy(),
        "entropy": entropy_B.cpu().numpy(),
        "label_log_probability": np.where(np.isnan(labels_B.astype(np.float64)), np.float32(np.nan), of_label_B),
    }


def _spread_rows(values_B: np.ndarray, readable_S: np.ndarray) -> np.ndarray:
    """Return (S, …) with zeros where a row is unreadable; no reader is ever given such a row."""
    if readable_S.all():
        return values_B
    values_S = np.zeros((len(readable_S), *values_B.shape[1:]), values_B.dtype)
    values_S[readable_S] = values_B
    return values_S


def _column(values_B: np.ndarray, readable_S: np.ndarray) -> pa.Array:
    """Return a column (S,) that is null where a row is unreadable or its value is NaN."""
    null_B = np.isnan(values_B) if values_B.dtype.kind == "f" else np.zeros(len(values_B), bool)
    null_S = ~readable_S
    null_S[readable_S] = null_B
    return pa.array(_spread_rows(np.where(null_B, 0, values_B).astype(values_B.dtype), readable_S), mask=null_S)
