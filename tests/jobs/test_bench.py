"""`student bench`: made, trained on labels alone and distilled, measured before and after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Program
from tests.teacher_cache.making.conftest import pantry

__all__ = ["pantry"]

SHRINK = """
job = "{pantry}/job.toml"
teacher = "net"
runs = "runs"
train = "digits"
validation = "digits"
ways = ["prune-random"]
flops = [0.6]
int8 = ["tensor"]
rows = 40
seeds = [0, 1]
distilled = [{{ loss = "kd", teacher = "net" }}]
[training]
architecture = "{pantry}/net.py:build"
epochs = 1
batch_size = 32
"""


@pytest.mark.slow
def test_ways_are_compared_before_and_after_training(pantry: Path, tmp_path: Path, program: Program) -> None:
    job = tmp_path / "shrink.toml"
    job.write_text(SHRINK.format(pantry=pantry))
    ended = program("student", "bench", job, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    by_name = {each["name"]: each for each in found["students"]}
    assert by_name.keys() == {"prune-random-0.6", "int8-tensor"}
    for name, each in by_name.items():
        assert each["after"].keys() == {"labels", "distilled"}
        assert each["ms_64"] > each["ms_1"] > 0
        assert name == "int8-tensor" or each["flops"] <= 0.6 * found["teacher"]["flops"]
    assert by_name["int8-tensor"]["bytes"] < found["teacher"]["bytes"]
    assert Path(found["report"]).exists()
    drawn = [(tmp_path / f"runs/made/prune-random-0.6-s{seed}/student.safetensors").read_bytes() for seed in (0, 1)]
    assert drawn[0] != drawn[1]  # chance is asked for each seed
    # int8 ones start alike, so that only the order of rows makes them differ
    orders = [tmp_path / f"runs/students/int8-tensor-labels-s{seed}/student.safetensors" for seed in (0, 1)]
    assert orders[0].read_bytes() != orders[1].read_bytes()
    # again: nothing is left to do, and the table fits the terminal
    again = program("student", "bench", job)
    assert (again.code, again.out.count("prune-random-0.6")) == (0, 1)
    assert max(map(len, again.out.splitlines()[:5])) <= 80
