"""A student's steady step, rows resident, against the same step written by hand on tensors in memory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from jobs.cluster.builds import open_runner
from jobs.files.cluster_options import BuildClusterOptions
from tests.benchmarks.building import build
from tests.benchmarks.data import cifar_slice
from tests.benchmarks.pairs import Figure, pairs
from tests.benchmarks.teachers import linear

ROWS = 10_240
BATCH = 128


def measure(folder: Path) -> Iterator[Figure]:
    """Yield the ratio of rates, for a network of 6 MFLOP an image and for a small one that shows the overhead."""
    from teacher_cache.teachers.options import TeacherOptions

    teacher = TeacherOptions(name="linear", **linear(folder))
    with open_runner(BuildClusterOptions(kind="inline")) as runner:
        build(folder / "cache", cifar_slice(folder, ROWS), runner, (teacher,))
    for name, architecture, options in (
        ("cnn", "cnn", {"widths": [16, 32, 64]}),
        ("mlp", "mlp", {"hidden": [128]}),
    ):
        values = [
            b / a
            for a, b in pairs(
                lambda a=architecture, o=options: _ours(folder, a, o),
                lambda a=architecture, o=options: _by_hand(folder, a, o),
            )
        ]
        yield Figure(f"student step / by hand, {name}", values, 0.98, "at least")


def _ours(folder: Path, architecture: str, options: dict[str, object]) -> float:
    """Return seconds of an epoch as `student train` runs it, evaluation apart."""
    from storage.cache import Cache
    from student_train.options.sections import DataOptions, StudentOptions
    from student_train.preparing.request import Request
    from student_train.running.train import train_students

    shutil.rmtree(folder / "runs", ignore_errors=True)
    objective = [{"loss": "labels", "weight": 0.1}, {"loss": "kd", "teacher": "linear", "weight": 0.9}]
    student = StudentOptions.model_validate(
        {
            "name": "s",
            "architecture": architecture,
            "options": options,
            "objective": objective,
            "epochs": 1,
            "batch_size": BATCH,
        }
    )
    data = DataOptions(train="cifar", validation="cifar", residency="device")
    summary = train_students(Request(Cache.open(str(folder / "cache")), folder / "runs", data, (student,), "cpu"))
    (record,) = summary.records
    assert record.rows_per_s is not None
    return ROWS / record.rows_per_s


def _by_hand(folder: Path, architecture: str, options: dict[str, object]) -> float:
    """Return seconds of the same epoch, written out."""
    import torch
    from torch.nn import functional

    from storage.cache import Cache
    from student_train.students import Blueprint, build_student

    cache = Cache.open(str(folder / "cache"))
    shards = [shard.shard for shard in cache.catalogue().shards("cifar")]
    inputs_N = torch.cat([torch.from_numpy(cache.read_inputs("cifar", s)) for s in shards])
    logits_NC = torch.cat([torch.from_numpy(cache.read_targets("cifar", "linear", s)["logits"]) for s in shards])
    labels_N = torch.from_numpy(cache.samples().of("cifar")["label"].to_numpy().copy())
    torch.manual_seed(0)
    spec = Blueprint(
        architecture=architecture, options=options, num_classes=10, input_shape=(3, 32, 32), mean=(0.5,), std=(0.5,)
    )
    model = build_student(spec).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=5e-4, fused=True)
    temperature = 4.0
    began = time.perf_counter()
    for rows_B in torch.randperm(ROWS).split(BATCH):
        inputs_B = inputs_N[rows_B].float() / 255
        student_BC = model(inputs_B)
        teacher_BC = (logits_NC[rows_B].float() / temperature).log_softmax(dim=1)
        kd = functional.kl_div(
            (student_BC / temperature).log_softmax(dim=1), teacher_BC, reduction="batchmean", log_target=True
        )
        loss = 0.1 * functional.cross_entropy(student_BC, labels_N[rows_B]) + 0.9 * temperature**2 * kd
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - began
