"""Caches and students for the tests of this room; shards are written by the real writer, with no teacher in sight."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from storage.cache import Cache
from storage.digests import digest, fingerprint
from storage.encodings import DenseEncoding, FeatureEncoding, SparseEncoding
from storage.errors import Interrupted
from storage.format.rows import EXTENT_SCHEMA, Segment, create_segment
from storage.format.shards import ShardKey
from storage.format.specs import DatasetSpec, TeacherSpec, write_spec
from storage.inputs.arguments import to_float
from storage.views import PLAIN, view_fingerprint
from student_train.feed.order import Positions, epoch_windows, join_windows, window_order
from student_train.options.sections import DataOptions, StudentOptions
from student_train.preparing.request import Request
from student_train.running.train import train_students


@dataclass(frozen=True)
class Recipe:
    """A small cache: rows of noisy class prototypes, and a teacher that measures the distance to each of them."""

    rows: int = 240
    rows_per_shard: int = 50
    shape: tuple[int, ...] = (1, 6, 6)
    classes: int = 4
    class_names: tuple[str, ...] = ()  # else "class 0", "class 1", …
    dataset: str = "toy"
    logits_dtype: str = "fp16"
    encoding: SparseEncoding | None = None  # in place of dense logits
    teacher: str = "toy"  # which model it is
    teacher_name: str = "sage"
    sureness: float = 4.0  # of the teacher
    seed: int = 7  # of the rows
    teacher_classes: int | None = None  # of a teacher that fits another dataset
    no_ingest: frozenset[int] = frozenset()  # shards that are missing
    no_teacher: frozenset[int] = frozenset()
    unreadable: frozenset[int] = frozenset()  # rows
    unlabelled: frozenset[int] = frozenset()
    other_inputs: frozenset[int] = frozenset()  # shards whose teacher was shown something else
    features: dict[str, str] = field(default_factory=lambda: {"pooled": "mean", "map": "none"})


def write_cache(folder: Path, recipe: Recipe) -> Cache:
    """Return a cache made by a recipe; the same recipe gives the same rows."""
    cache = Cache.create(str(folder))
    name = recipe.dataset
    prototypes = np.random.default_rng(7).integers(0, 256, (recipe.classes, *recipe.shape))
    classes = list(recipe.class_names) or [f"class {i}" for i in range(recipe.classes)]
    dataset = DatasetSpec(
        name=name, source={"kind": "toy"}, classes=classes, input_shape=recipe.shape, input_dtype="uint8"
    )
    write_spec(cache.objects, f"{name}/dataset.json", dataset, "test")
    extents = pl.DataFrame([("toy", 0, "1", 0, recipe.rows)], schema=EXTENT_SCHEMA, orient="row")
    create_segment(cache.objects, name, 0, Segment(extents, recipe.rows_per_shard))
    for shard, start, stop in cache.catalogue().shards(name):
        if shard not in recipe.no_ingest:
            _ingest(cache, recipe, shard, start, *_shard(recipe, prototypes, shard, stop - start))
    add_teacher(cache, recipe)
    return cache


def add_teacher(cache: Cache, recipe: Recipe) -> None:
    """Write what the teacher of a recipe says of the rows of a cache that was made by one like it."""
    name = recipe.dataset
    prototypes = np.random.default_rng(7).integers(0, 256, (recipe.classes, *recipe.shape))
    teacher = TeacherSpec(
        name=recipe.teacher_name,
        model={"kind": recipe.teacher},
        num_classes=recipe.teacher_classes or recipe.classes,
        encoding=recipe.encoding or DenseEncoding.model_validate({"dtype": recipe.logits_dtype}),
        features={n: FeatureEncoding.model_validate({"layer": "x", "pool": p}) for n, p in recipe.features.items()},
    )
    write_spec(cache.objects, f"{name}/{recipe.teacher_name}/teacher.json", teacher, "test")
    for shard, start, stop in cache.catalogue().shards(name):
        if shard not in recipe.no_teacher:
            rows = _shard(recipe, prototypes, shard, stop - start)
            _teach(cache, recipe, teacher, shard, start, *rows, prototypes)


def _shard(recipe: Recipe, prototypes: Any, shard: int, rows: int) -> tuple[Any, Any]:
    """Return inputs and labels of a shard."""
    random = np.random.default_rng([recipe.seed, shard])
    labels_S = random.integers(0, recipe.classes, rows)
    noise_S = 60 * random.standard_normal((rows, *recipe.shape), dtype=np.float32)
    return (prototypes[labels_S] + noise_S).clip(0, 255).astype(np.uint8), labels_S


def _ingest(cache: Cache, recipe: Recipe, shard: int, start: int, inputs_S: Any, labels_S: Any) -> None:
    rows = range(start, start + len(inputs_S))
    labels = [None if row in recipe.unlabelled else int(label) for row, label in zip(rows, labels_S, strict=True)]
    columns = {
        "row": pa.array(rows, pa.int64()),
        "sample_id": pa.array([f"toy-{row}" for row in rows]),
        "label": pa.array(labels, pa.int64()),
        "split": pa.array(["validation" if row % 5 == 4 else "train" for row in rows]),
        "payload_digest": pa.array([digest(values.tobytes()) for values in inputs_S]),
        "label_digest": pa.array([fingerprint(label) for label in labels]),
        "error": pa.array(["broken" if row in recipe.unreadable else None for row in rows], pa.string()),
    }
    key = ShardKey(recipe.dataset, None, PLAIN, shard)
    quarantined = sum(row in recipe.unreadable for row in rows)
    about = {"inputs_digest": digest(inputs_S.tobytes()), "quarantined": quarantined}
    table = pa.table(columns)
    cache.write_shard(key, rows=(start, rows.stop), arrays={"inputs": inputs_S}, table=table, about=about)


def _teach(
    cache: Cache,
    recipe: Recipe,
    spec: TeacherSpec,
    shard: int,
    start: int,
    inputs_S: Any,
    labels_S: Any,
    prototypes: Any,
) -> None:
    flat = to_float(torch.from_numpy(inputs_S)).flatten(1)
    distances_SC = torch.cdist(flat, to_float(torch.from_numpy(prototypes.astype(np.uint8))).flatten(1))
    logits_SC = -recipe.sureness * distances_SC
    if spec.num_classes != recipe.classes:
        logits_SC = torch.zeros(len(inputs_S), spec.num_classes)
    map_S = to_float(torch.from_numpy(inputs_S))[:, :, ::2, ::2].repeat(1, 5, 1, 1) if len(recipe.shape) == 3 else flat
    encoded = spec.encoding.encode(
        logits_SC,
        num_classes=spec.num_classes,
        labels_B=torch.from_numpy(labels_S),
        keys_B=torch.arange(start, start + len(inputs_S)),
    ) | {f"feature/{name}": options.encode(map_S) for name, options in spec.features.items()}
    log_probabilities_SC = logits_SC.log_softmax(1)
    columns = {
        "row": pa.array(range(start, start + len(inputs_S)), pa.int64()),
        "top": pa.array(logits_SC.argmax(1).numpy()),
        "top_probability": pa.array(log_probabilities_SC.max(1).values.exp().numpy()),
        "entropy": pa.array(-(log_probabilities_SC.exp() * log_probabilities_SC).sum(1).numpy()),
        "label_log_probability": pa.array(log_probabilities_SC[:, 0].numpy()),
    }
    shown = inputs_S[::-1] if shard in recipe.other_inputs else inputs_S
    cache.write_shard(
        ShardKey(recipe.dataset, spec.name, PLAIN, shard),
        rows=(start, start + len(inputs_S)),
        arrays={name: np.asarray(values) for name, values in encoded.items()},
        table=pa.table(columns),
        about={"view_fingerprint": view_fingerprint(shown), "inputs_digest": digest(inputs_S.tobytes())},
    )


LABELS = {"loss": "labels"}
KD = {"loss": "kd", "teacher": "sage", "temperature": 2.0}
HINT = {"loss": "hint", "teacher": "sage", "feature": "pooled", "student_layer": "network.hidden1"}

BATCH_NORM = """
from torch import nn

def net(num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes))
"""


def student(name: str = "a", **options: Any) -> StudentOptions:
    """Return a small student; options replace its own."""
    defaults = {
        "name": name,
        "architecture": "mlp",
        "options": {"hidden": [16]},
        "objective": [LABELS],
        "epochs": 3,
        "batch_size": 32,
        "learning_rate": 0.01,
    }
    return StudentOptions.model_validate(defaults | options)


def request_of(cache: Cache, runs: Path, *students: StudentOptions, **data: Any) -> Request:
    """Return a request to train students on the toy rows, on the CPU."""
    rows = DataOptions.model_validate({"train": "toy/train", "validation": "toy/validation"} | data)
    return Request(cache, runs, rows, students or (student(),), "cpu")


def epoch_order(shard_sizes_S: Positions, *, seed: int, epoch: int, window_shards: int) -> Positions:
    """Return the positions of all rows in the order in which an epoch takes them."""
    windows = epoch_windows(shard_sizes_S, seed=seed, epoch=epoch, window_shards=window_shards)
    return join_windows(shard_sizes_S, windows, partial(window_order, seed=seed, epoch=epoch))


def train_in_parts(request: Request, *, calls: int) -> int:
    """Train to the end, stopped each time after so many steps and evaluated batches; return how often that was."""
    stopped = 0
    while True:
        asked = itertools.count(1)
        try:
            train_students(request, stop=lambda: next(asked) == calls)  # noqa: B023 - called within the loop
        except Interrupted:
            stopped += 1
        else:
            return stopped
