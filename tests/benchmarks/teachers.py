"""Teachers that cost what a real one costs and were never trained: their weights are drawn once, and lie in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.benchmarks.data import TEACHER, require

# What a teacher says costs the same to store and to learn from whether or not it is right.
LINEAR = """
from torch import nn

def build(inputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 10))
"""


def linear(folder: Path, inputs: int = 3072) -> dict[str, Any]:
    """Return the `[[teacher]]` fields of a linear map, which costs next to nothing."""
    code = folder / "linear.py"
    code.write_text(LINEAR)
    return _drawn(folder, f"{code}:build", {"inputs": inputs})


def resnet9(folder: Path, width: int = 40) -> dict[str, Any]:
    """Return those of the ResNet-9 from beside the repository."""
    return _drawn(folder, f"{require(TEACHER)}:ResNet9", {"width": width})


def _drawn(folder: Path, factory: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a function, its arguments, and a file of what it drew under one seed."""
    import torch
    from safetensors.torch import save_file

    from storage.options import load_factory

    torch.manual_seed(0)
    weights = folder / "drawn.safetensors"
    save_file(load_factory(factory)(**arguments).state_dict(), str(weights))
    return {"factory": factory, "arguments": arguments, "weights": str(weights)}
