"""Peak memory of a process that trains many students, against the bound that `--dry-run` prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.memory import peak_bytes, run_json
from tests.benchmarks.pairs import Figure
from tests.benchmarks.programs import OBJECTIVE, build_cache, cifar, program, write_students

ALLOWED = 1.2
STUDENTS = 16
ROWS = 1_280
STUDENT = {"architecture": "cnn", "options": {"widths": [16, 32, 64]}, "epochs": 1, "batch_size": 128}


def measure(folder: Path) -> Iterator[Figure]:
    """Yield measured peak over promised bound, of stacked students and of the same one by one."""
    build_cache(folder, cifar(folder, ROWS))
    fleet = [{"name": f"s{seed}", **STUDENT, "objective": OBJECTIVE, "seed": seed} for seed in range(STUDENTS)]
    for how, stacking in (("stacked", "always"), ("one by one", "never")):
        job = write_students(folder / f"{stacking}.toml", fleet, "cifar", stacking=stacking)
        train = program("student", "train", job, "--device", "cpu")
        bound = run_json([*train, "--dry-run", "--json"])["memory"]["host_bytes"]
        values = [peak_bytes(train, children=False) / bound]
        yield Figure(f"peak of {STUDENTS} students {how} / its bound", values, ALLOWED, "at most")
