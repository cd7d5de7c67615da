"""What an encoding costs a student: bytes, KL, students over seeds, beside labels alone and the teacher live.

    python -m tests.benchmarks.comparison cifar FOLDER
    python -m tests.benchmarks.comparison shakespeare FOLDER

Everything runs through the two programs, but for the live teacher, whom they do not know. What is finished in FOLDER is
kept, so that an interrupted comparison goes on.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from storage.cache import Cache
from storage.format.stages import list_stages
from storage.targets.soft import SoftTargets
from teacher_cache.pilot.fidelity import density, divergence
from tests.benchmarks.data import REPOSITORY, SHARED, cifar_slice, require


@dataclass(frozen=True)
class Way:
    """One way to be taught.

    Attributes:
        name: of the row, and of its cache and runs.
        encoding: TOML of the teacher's `encoding`; None reads the dense cache.
        objective: TOML.
        live: whether the teacher is asked at every step.
    """

    name: str
    encoding: str | None
    objective: str
    live: bool = False


@dataclass(frozen=True)
class Study:
    """One dataset with its teacher, its student and the ways to be compared."""

    teacher: str
    cache: str
    students: str
    ways: tuple[Way, ...]
    figure: str = "accuracy"


LABELS = '[{ loss = "labels" }]'


def kd(teacher: str, temperature: float, share: float, loss: str = "kd") -> str:
    """Return an objective of labels and one loss on soft targets."""
    at = f", temperature = {temperature}" if loss in ("kd", "topk_biased") else ""  # draws are of temperature 1
    soft = f'{{ loss = "{loss}", teacher = "{teacher}"{at}, weight = {share} }}'
    return f'[{{ loss = "labels", weight = {round(1 - share, 6)} }}, {soft}]' if share < 1 else f"[{soft}]"


def run(*command: object) -> None:
    """Run one of the programs, on one thread."""
    program = str(Path(sys.executable).with_name(str(command[0])))
    subprocess.run([program, *map(str, command[1:])], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def compare(study: Study, folder: Path, seeds: int) -> None:
    """Build, recode, train and print the table."""
    dense = folder / "dense.cache.toml"
    dense.write_text(f'cache = "dense"\n{study.cache.replace("ENCODING", DENSE)}')
    run("cache", "build", dense, "--workers", 1)
    rows = []
    for way in study.ways:
        cache = "dense"
        if way.encoding is not None:
            cache = way.name
            job = folder / f"{way.name}.cache.toml"
            job.write_text(f'cache = "{cache}"\n{study.cache.replace("ENCODING", way.encoding)}')
            run("cache", "recode", folder / "dense", job)
        students = "\n".join(
            f'[[student]]\nname = "seed{seed}"\nseed = {seed}\nobjective = {way.objective}\n' for seed in range(seeds)
        )
        job = folder / f"{way.name}.students.toml"
        job.write_text(f'cache = "{cache}"\nruns = "runs/{way.name}"\n{study.students}\n{students}')
        if way.live:
            _train_live(job, dense, study.teacher)
        else:
            run("student", "train", job)
        rows.append(_row(study, way, folder, cache))
        print(rows[-1], flush=True)
    head = ("way", "bytes a row or token", "mean KL, nats", "result, mean ± deviation", "each seed")
    print("\n| " + " | ".join(head) + " |\n" + "| --- " * len(head) + "|")
    print("\n".join(rows))


DENSE = '{ kind = "dense", dtype = "fp32", statistics = false }'


def _train_live(job: Path, cache_job: Path, name: str) -> None:
    import torch

    from jobs.files.cache_job import CacheJob
    from jobs.files.reading import read_job
    from jobs.files.student_job import StudentJob
    from student_train.options.sections import DataOptions
    from student_train.preparing.request import Request
    from teacher_cache.teachers.loading import load_teacher
    from tests.live import train_live

    torch.set_num_threads(1)
    read = read_job(job, StudentJob)
    data = DataOptions.model_validate(read.model_dump(include=set(DataOptions.model_fields)))
    teacher = next(teacher for teacher in read_job(cache_job, CacheJob).teacher if teacher.name == name)
    request = Request(Cache.open(read.cache), read.runs, data, tuple(read.student), "cpu")
    train_live(request, name, load_teacher(teacher, torch.device("cpu")))


def _row(study: Study, way: Way, folder: Path, cache: str) -> str:
    from student_train.run_files.comparison import compare_runs

    figures = compare_runs(folder / "runs" / way.name).sort("student")[study.figure].to_list()
    scale = 100 if study.figure == "accuracy" else 1
    values = [scale * value for value in figures]
    taught = way.objective != LABELS and not way.live
    size = f"{_bytes_per_row(folder / cache, study.teacher):.1f}" if taught else "–"
    kl = "–" if not taught or (nats := _mean_kl(folder, cache, study.teacher)) is None else f"{nats:.2g}"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    shown = ", ".join(f"{value:.2f}" if scale == 100 else f"{value:.4f}" for value in values)
    mean = (
        f"{statistics.mean(values):.2f} ± {spread:.2f}"
        if scale == 100
        else f"{statistics.mean(values):.4f} ± {spread:.4f}"
    )
    return f"| {way.name} | {size} | {kl} | {mean} | {shown} |"


def _bytes_per_row(cache: Path, teacher: str) -> float:
    """Return the stored bytes of a row's (a token's) soft targets, statistics included, metadata not."""
    opened = Cache.open(str(cache))
    size = rows = 0
    positions = 1
    for dataset, name, view in list_stages(opened.objects):
        if name == teacher:
            for commit in opened.catalogue().read_commits(dataset, name, view):
                size += sum(stored.size_bytes for stored in commit.members if "/c/" in f"/{stored.path}")
                rows += commit.stop - commit.start
            positions = 1 if opened.dataset(dataset).vocabulary is None else opened.dataset(dataset).input_shape[0]
    return size / (rows * positions)


def _mean_kl(folder: Path, cache: str, teacher: str) -> float | None:
    """Return the mean KL(dense‖decoded) over the first shard, nats; None where nothing but draws is stored."""
    from storage.format.stages import list_stages

    dense = Cache.open(str(folder / "dense"))
    stage = next(stage for stage in list_stages(dense.objects) if stage[1] == teacher)
    exact, kept = (_decoded(Cache.open(str(folder / name)), stage) for name in ("dense", cache))
    log_q = density(kept)
    return None if log_q is None else float(divergence(exact, log_q).mean())


def _decoded(cache: Cache, stage: tuple[str, str | None, str]) -> SoftTargets:
    import torch

    dataset, teacher, view = stage
    spec = cache.teacher(dataset, str(teacher))
    names = [
        name
        for name in cache.catalogue().read_commits(dataset, teacher, view)[0].array_names
        if not name.startswith("feature/")
    ]
    stored = cache.read_targets(dataset, str(teacher), 0, view, names)
    most = 4096 if spec.labelled_positions else 256
    arrays = {name: torch.from_numpy(values[:most].copy()) for name, values in stored.items()}
    return spec.encoding.decode(arrays, spec.num_classes)


CIFAR_STUDENTS = """
train = "train"
validation = "test"
[defaults]
architecture = "cnn"
options = { widths = [16, 32, 64] }
mean = [0.4914, 0.4822, 0.4465]
std = [0.2470, 0.2435, 0.2616]
epochs = 30
batch_size = 100
learning_rate = 0.004
warmup_epochs = 1
"""


def cifar(folder: Path) -> Study:
    """2,000 labelled images; a ResNet-9 that was trained on all 50,000 teaches a cnn of 24,000 weights."""
    train = cifar_slice(folder, 2_000)
    test = cifar_slice(folder, 4_000, require(SHARED / "data/cifar10-test.parquet"))
    cache = f"""
[[dataset]]
name = "train"
kind = "parquet_images"
path = "{train}"
[[dataset]]
name = "test"
kind = "parquet_images"
path = "{test}"
[[teacher]]
name = "resnet9"
factory = "{SHARED / "teachers/resnet9.py"}:build"
weights = "{SHARED / "teachers/cifar10-resnet9.safetensors"}"
mean = [0.4914, 0.4822, 0.4465]
std = [0.2470, 0.2435, 0.2616]
encoding = ENCODING
"""
    objective = kd("resnet9", 4.0, 0.9)
    plain = "statistics = false"
    ways = (
        Way("labels", None, LABELS),
        Way("dense-fp32", None, objective),
        Way("top3-8bit", '{ kind = "sparse", k = 3, values = "8bit", temperatures = [1.0, 4.0] }', objective),
        Way("draws8", f'{{ kind = "sparse", n = 8, {plain} }}', kd("resnet9", 1.0, 0.9, "random_sampling")),
        Way("dense-fp16", f'{{ kind = "dense", dtype = "fp16", {plain} }}', objective),
        Way("dense-int8", f'{{ kind = "dense", dtype = "int8", {plain} }}', objective),
        Way("live", None, objective, live=True),
    )
    return Study("resnet9", cache, CIFAR_STUDENTS, ways)


SHAKESPEARE_STUDENTS = """
train = "train"
validation = "validation"
[defaults]
architecture = "gpt"
options = { depth = 1, width = 64, heads = 4 }
epochs = 12
batch_size = 16
learning_rate = 0.005
warmup_epochs = 1
weight_decay = 0.05
clip_norm = 1.0
"""


def shakespeare(folder: Path) -> Study:
    """A fifth of Tiny Shakespeare; a transformer that was trained on nine tenths teaches one of a sixth of its size.

    jobs/shakespeare.teacher.toml must have been run: the teacher and its tokenizer are read from there.
    """
    text = require(SHARED / "data/tinyshakespeare.txt")
    teacher = require(REPOSITORY / "runs/shakespeare-teacher/gpt")
    tokenizer = require(REPOSITORY / "caches/shakespeare/train/tokenizer.json")

    def dataset(name: str, part: str) -> str:
        return f"""
[[dataset]]
name = "{name}"
kind = "text"
path = "{text}"
part = {part}
block = 128
tokenizer = "{tokenizer}"
long_documents = "split"
"""

    cache = (
        dataset("train", "[0.0, 0.2]")
        + dataset("validation", "[0.95, 1.0]")
        + f"""
[[teacher]]
name = "gpt"
student = "{teacher}"
batch_size = 32
datasets = ["train"]
encoding = ENCODING
"""
    )
    objective = kd("gpt", 1.0, 0.9)
    plain = "statistics = false"
    ways = (
        Way("labels", None, LABELS),
        Way("dense-fp32", None, objective),
        Way("draws50", f'{{ kind = "sparse", n = 50, {plain} }}', kd("gpt", 1.0, 0.9, "random_sampling")),
        Way("top8-8bit", f'{{ kind = "sparse", k = 8, values = "8bit", {plain} }}', objective),
        Way("top8-renormalised", f'{{ kind = "sparse", k = 8, {plain} }}', kd("gpt", 1.0, 0.9, "topk_biased")),
        Way("top64-8bit", f'{{ kind = "sparse", k = 64, values = "8bit", {plain} }}', objective),
        Way("top8-draws16", f'{{ kind = "sparse", k = 8, n = 16, {plain} }}', kd("gpt", 1.0, 0.9, "stratified")),
        Way("dense-int8", f'{{ kind = "dense", dtype = "int8", {plain} }}', objective),
        Way("dense-fp16", f'{{ kind = "dense", dtype = "fp16", {plain} }}', objective),
        Way("live", None, objective, live=True),
    )
    return Study("gpt", cache, SHAKESPEARE_STUDENTS, ways, "cross_entropy")


STUDIES = {"cifar": cifar, "shakespeare": shakespeare}

if __name__ == "__main__":
    chosen, where = sys.argv[1], Path(sys.argv[2]).resolve()
    where.mkdir(parents=True, exist_ok=True)
    compare(STUDIES[chosen](where), where, seeds=int(sys.argv[3]) if len(sys.argv) > 3 else 3)
