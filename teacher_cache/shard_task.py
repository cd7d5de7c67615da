"""One shard from start to end: `ingest_shard` decodes it, `teach_shard` asks a teacher about it.

Both take a small frozen task and return a few numbers; data never pass through a scheduler. Two tasks share a process:
while one holds LOCK to compute, the other reads its inputs or writes its arrays.

Shapes: S rows of a shard, B rows of a batch, C classes.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from storage.cache import Cache
from storage.datasets import AnySource, RawSample, Source, Unreadable, check_label
from storage.digests import digest
from storage.errors import BadRequest, BadTeacher, MissingSource, RowsMissing
from storage.rows import Extent
from storage.shards import ShardKey, write_shard
from storage.spec import DatasetSpec, TeacherSpec
from storage.views import PLAIN, to_float, view_fingerprint

if TYPE_CHECKING:
    from torch import Tensor

    from teacher_cache.teachers import Teacher

LOCK = threading.Lock()
SHOWN_ROWS = 10  # of refused rows, in a message


class Task(NamedTuple):
    """One unit of work, as it travels: under 2 KB, and a file's name for each row of a folder of images.

    Attributes:
        cache: its address.
        key: which shard.
        start, stop: its rows.
        options: the section of the job that it needs, as JSON: a source for an ingest, else a teacher.
        promise: fingerprint of the teacher's spec; "" for an ingest.
        extents: where the rows of an ingest lie in the source; () for a teacher.
        device: for a teacher: auto, cpu, cuda.
        threads: of torch, in this process.
    """

    cache: str
    key: ShardKey
    start: int
    stop: int
    options: str
    promise: str
    extents: tuple[Extent, ...]
    device: str
    threads: int


class Done(NamedTuple):
    """What is left of a task: `won` is False if another builder had committed the shard already."""

    key: ShardKey
    rows: int
    quarantined: int
    bytes: int
    seconds: float
    won: bool


def perform(task: Task) -> Done:
    """Return what became of a task, after doing it."""
    return ingest_shard(task) if task.key.teacher is None else teach_shard(task)


def ingest_shard(task: Task) -> Done:
    """Decode the samples of one shard to model-ready inputs and commit them.

    Raises:
        LabelOutOfRange: a label is none of the classes.
        MissingSource: the source holds fewer samples than planned.
    """
    cache = Cache.open(task.cache)
    source: Source = TypeAdapter(AnySource).validate_json(task.options)
    spec = cache.dataset(task.key.dataset)
    with LOCK:
        began = time.monotonic()
        inputs_S, columns = _decode(source, spec, task)
        seconds = time.monotonic() - began
    table = pa.table({"row": pa.array(range(task.start, task.stop), pa.int64()), **columns})
    quarantined = task.stop - task.start - table["error"].null_count
    about = _about(seconds) | {"quarantined": quarantined, "inputs_digest": digest(inputs_S.data.cast("B"))}
    return _commit(cache, task, {"inputs": inputs_S}, table, about, quarantined)


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
    about = _about(seconds) | {
        "quarantined": int((~readable_S).sum()),
        "inputs_digest": ingest.about["inputs_digest"],
        "view_fingerprint": view_fingerprint(inputs_S),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {task.threads} threads",
        "torch": torch.__version__,
        "promise": task.promise,
    }
    return _commit(cache, task, arrays, table, about, 0)


def _decode(source: Source, spec: DatasetSpec, task: Task) -> tuple[np.ndarray, dict[str, pa.Array]]:
    """Return inputs (S, …) and the columns of the commit; an unreadable sample leaves zeros and its reason."""
    inputs_S = np.zeros((task.stop - task.start, *spec.input_shape), dtype=spec.input_dtype)
    ids: list[str] = []
    labels: list[int | None] = []
    digests: list[str] = []
    errors: list[str | None] = []
    for i, sample in enumerate(_samples(source, task)):
        check_label(sample.label, spec.classes, sample.sample_id)
        error = None
        try:
            inputs_S[i] = _decode_one(source, spec, sample)
        except Unreadable as reason:
            error = str(reason)
        ids.append(sample.sample_id)
        labels.append(sample.label)
        digests.append(sample.digest)
        errors.append(error)
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise BadRequest(f"{task.key}: two samples have one id", found=twice, expected="a permanent id for each sample")
    return inputs_S, {
        "sample_id": pa.array(ids, pa.string()),
        "label": pa.array(labels, pa.int64()),
        "split": pa.array([source.split(name) for name in ids], pa.string()),
        "digest": pa.array(digests, pa.string()),
        "error": pa.array(errors, pa.string()),
    }


def _samples(source: Source, task: Task) -> Iterator[RawSample]:
    for extent in task.extents:
        count = 0
        for sample in source.read(*extent):
            count += 1
            yield sample
        if count != extent.rows:
            raise MissingSource(
                f"{extent.file} of dataset {source.name} changed during the build",
                found=f"{count} samples from position {extent.position}",
                expected=f"{extent.rows}",
            )


def _decode_one(source: Source, spec: DatasetSpec, sample: RawSample) -> np.ndarray:
    if isinstance(sample.payload, Unreadable):
        raise sample.payload
    array = source.decode(sample.payload)
    if array.shape != spec.input_shape or array.dtype != spec.input_dtype:
        raise Unreadable(
            f"is {array.dtype} {array.shape}, the dataset is {spec.input_dtype} {spec.input_shape}"
            + ("; set `size` to resize" if spec.input_dtype == "uint8" and array.ndim == 3 else "")
        )
    if array.dtype != np.uint8 and not np.isfinite(array).all():
        raise Unreadable("holds NaN or infinity")
    return array


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


def _about(seconds: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 4),  # of computing, so that rows over seconds is the rate of one worker
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "stillroom": version("stillroom"),
    }


def _commit(
    cache: Cache, task: Task, arrays: dict[str, np.ndarray], table: pa.Table, about: dict[str, Any], quarantined: int
) -> Done:
    commit = write_shard(cache.objects, task.key, rows=(task.start, task.stop), arrays=arrays, table=table, about=about)
    num_bytes = 0 if commit is None else sum(stored.size_bytes for stored in commit.objects)
    return Done(task.key, task.stop - task.start, quarantined, num_bytes, about["seconds"], commit is not None)
