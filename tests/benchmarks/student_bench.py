"""`student bench` against a `student train` for each of its students in turn: real processes, everything counted.

Students by hand start from what `bench` has made, which is not counted; `bench` makes it each time, measures it before
and after, and writes the report.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.pairs import Figure, pairs
from tests.benchmarks.programs import DIGITS, build_cache, run_s, write_job, write_students

RUNS = 2  # of 13 processes each
OBJECTIVES = {"labels": [{"loss": "labels"}], "distilled": [{"loss": "kd", "teacher": "net"}]}
TRAINING = {"epochs": 40, "batch_size": 64}
ALIKE: dict[str, Any] = {"ways": ["prune-first"], "flops": [0.5], "seeds": list(range(6))}
SEVERAL: dict[str, Any] = {
    "ways": ["prune-first", "prune-magnitude", "lowrank-plain"],
    "flops": [0.5, 0.25],
    "seeds": [0],
}

NET = """
from torch import nn


def mlp(hidden):
    layers = [nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, 10))
"""


def measure(folder: Path) -> Iterator[Figure]:
    """Yield the time of `bench` over that of its students in turn: of one architecture, then of several."""
    for name, asked, reach in (("12 mlp", ALIKE, 0.5), ("12 of several", SEVERAL, 0.95)):
        values = _ratios(folder / name.replace(" ", "-"), asked)
        yield Figure(f"student bench, {name} / jobs in turn", values, reach, "at most")


def _ratios(folder: Path, asked: dict[str, Any]) -> list[float]:
    import torch
    from safetensors.torch import save_file

    from storage.options import load_factory

    folder.mkdir()
    (folder / "net.py").write_text(NET)
    factory = f"{folder / 'net.py'}:mlp"
    torch.manual_seed(0)
    save_file(load_factory(factory)(128).state_dict(), str(folder / "net.safetensors"))
    net = {"name": "net", "factory": factory, "arguments": {"hidden": 128}, "weights": str(folder / "net.safetensors")}
    build_cache(folder, DIGITS, net)
    rows = {"train": "digits/train", "validation": "digits/validation"}
    shrink = {"job": "cache.toml", "teacher": "net", "runs": "together", **rows, **asked, "rows": 64}
    training = TRAINING | {"architecture": factory}
    job = write_job(folder / "shrink.toml", shrink | {"distilled": OBJECTIVES["distilled"], "training": training})

    def together() -> float:
        shutil.rmtree(folder / "together", ignore_errors=True)
        return run_s("student", "bench", job, "--device", "cpu")

    together()  # once, that there is something to start from
    shutil.move(folder / "together/made", folder / "made")
    in_turn = []
    for made in (f"{way}-{share:g}" for way in asked["ways"] for share in asked["flops"]):
        for objective, terms in OBJECTIVES.items():
            for seed in asked["seeds"]:
                one = {"name": "s", "start": f"made/{made}", "objective": terms, "seed": seed, **training}
                path = folder / f"alone-{made}-{objective}-{seed}.toml"
                in_turn.append(write_students(path, [one], "digits"))

    def alone() -> float:
        for path in in_turn:
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        return sum(run_s("student", "train", path, "--device", "cpu") for path in in_turn)

    return [a / b for a, b in pairs(together, alone, RUNS, warm=False)]
