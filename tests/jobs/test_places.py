"""Where nothing can be written: told before anything is computed, with what to do; a full disk leaves no half file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Program
from tests.jobs.test_full_disks import Disk, fill, tiny_disk
from tests.student_train.using.conftest import run
from tests.teacher_cache.making.conftest import pantry

pytestmark = pytest.mark.slow
__all__ = ["pantry", "run", "tiny_disk"]

WRITERS = {
    "safetensors": "student export RUN --format safetensors -o PLACE/x",
    "onnx": "student export RUN --format onnx -o PLACE/x",
    "pt2": "student export RUN --format pt2 -o PLACE/x",
    "make": "student make copy JOB:net -o PLACE/x",
    "csv": "student predict RUN a.npy -o PLACE/x.csv",
    "parquet": "student predict RUN a.npy -o PLACE/x.parquet",
    "report": "student report RUNS --out PLACE/x.html",
    "plot": "cache plan JOB --rows 16 --plot PLACE/x.png",
    "copy": "cache copy CACHE PLACE/x",
    "compact": "cache compact CACHE PLACE/x",
    "train": "student train train.toml",
}
TRAIN = """
cache = "{cache}"
runs = "{place}/x"
train = "digits"
validation = "digits"
[[student]]
name = "a"
architecture = "mlp"
objective = [{{ loss = "labels" }}]
epochs = 1
"""


Line = Callable[[str, Path], list[str]]


@pytest.fixture
def line(run: Path, pantry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Line:
    """Return what gives the words of a command that writes at a place."""
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.zeros((2, 3, 8, 8), np.uint8))

    def words(writer: str, place: Path) -> list[str]:
        (tmp_path / "train.toml").write_text(TRAIN.format(cache=pantry / "cache", place=place))
        names = {"RUNS": run.parent, "RUN": run, "JOB": pantry / "job.toml", "CACHE": pantry / "cache", "PLACE": place}
        text = WRITERS[writer]
        for name, value in names.items():
            text = text.replace(name, str(value))
        return text.split()

    return words


@pytest.mark.parametrize("writer", WRITERS)
def test_where_nothing_can_be_made_is_told_before_anything_is_computed(
    line: Line, program: Program, tiny_disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name in ("teacher_cache.pilot.pilot.run_pilot", "teacher_cache.making.make.some_rows"):
        monkeypatch.setattr(name, None)  # nothing is computed
    for place in (Path("/proc"), tmp_path / "file", tiny_disk("ro")):
        ended = program(*line(writer, place))
        assert (ended.code, "Traceback" in ended.err) == (2, False), (place, ended.err)
        assert re.search(r"\n  found     .+\n(  expected .+\n)?  do        .+", ended.err), ended.err
        assert str(place) in ended.err


@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_is_full_leaves_no_half_file_under_a_name(
    line: Line, program: Program, tiny_disk: Disk, writer: str
) -> None:
    disk = tiny_disk("size=64k")
    fill(disk)
    ended = program(*line(writer, disk))
    assert (ended.code, "Traceback" in ended.err) == (1, False), ended.err
    assert "\n  found     No space left on device\n  do        free space on that disk, then" in ended.err
    left = [path.relative_to(disk) for path in disk.rglob("*") if path.is_file() and path.name != "filler"]
    assert [path for path in left if not path.name.startswith(".lock")] == []
    if writer not in ("train", "make", "copy", "compact"):  # whose folders are there from the beginning, and resumed
        assert not (disk / f"x{Path(line(writer, disk)[-1]).suffix}").exists()
