"""Invariant 7, on the command itself: `student train` imports no teacher code and needs no teacher weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

STUDENTS = """
cache = "cache"
runs = "runs"
train = "digits"
validation = "digits"
[[student]]
name = "s"
architecture = "mlp"
objective = [{ loss = "kd", teacher = "TEACHER" }]
epochs = 1
batch_size = 8
"""
WITH_MODULES = """
import json, sys
from jobs.cli import {module}
sys.argv = {argv!r}
try:
    {module}.main()
finally:
    print(json.dumps([sorted({{name.split(".")[0] for name in sys.modules}})]), file=sys.stderr)
"""


def run_and_list_rooms(module: str, *argv: object) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run a command to its end in a process of its own; return that and the top-level modules it has loaded."""
    code = WITH_MODULES.format(module=module, argv=[module, *map(str, argv)])
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended, set(json.loads(ended.stderr.splitlines()[-1])[0])


def rooms_of(module: str, *argv: object) -> set[str]:
    """Return the top-level modules of a process that has run a command to its end."""
    return run_and_list_rooms(module, *argv)[1]


def only_the_cache(kitchen: Path, folder: Path) -> Path:
    """Copy a cache, and nothing that it was made from, beside a job that learns from its teacher; return the job."""
    shutil.copytree(kitchen / "cache", folder / "cache")
    (teacher,) = (path.parent.name for path in (folder / "cache").glob("*/*/teacher.json"))
    (folder / "students.toml").write_text(STUDENTS.replace("TEACHER", teacher))
    return folder / "students.toml"


def test_student_train_imports_no_teacher_code_and_needs_no_teacher_weights(kitchen: Path, tmp_path: Path) -> None:
    rooms = rooms_of("student", "train", only_the_cache(kitchen, tmp_path))
    assert "student_train" in rooms
    assert rooms & {"teacher_cache", "dask", "distributed", "sklearn"} == set()


def test_teacher_code_would_be_seen(kitchen: Path) -> None:
    assert "teacher_cache" in rooms_of("cache", "build", kitchen / "job.toml")
