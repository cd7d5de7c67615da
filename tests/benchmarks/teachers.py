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


BOTTLENECKS = """
from torch import nn


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )
        self.short = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.body(x) + self.short(x))


def build(depths):
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, depth in enumerate(depths):
        for block in range(depth):
            width = 64 * 2**stage
            layers.append(Bottleneck(inputs, width, 2 if stage and not block else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))
"""
GPT = """
from student_train.students.gpt import gpt


def build(ids, block, depth, width, heads):
    return gpt(ids, (block,), depth=depth, width=width, heads=heads, tied=False)
"""


def bottleneck_resnet(folder: Path, depths: list[int]) -> dict[str, Any]:
    """Return those of a ResNet of bottlenecks; [3, 4, 6, 3] of them are ResNet-50, 4.1 G multiplications at 224²."""
    return _written(folder, "bottlenecks", BOTTLENECKS, {"depths": depths})


def language_model(folder: Path, ids: int, block: int, **model: int) -> dict[str, Any]:
    """Return those of a `gpt`, with a head of its own."""
    return _written(folder, "language", GPT, {"ids": ids, "block": block, **model})


def _written(folder: Path, name: str, code: str, arguments: dict[str, Any]) -> dict[str, Any]:
    path = folder / f"{name}.py"
    path.write_text(code)
    return _drawn(folder, f"{path}:build", arguments)


def _drawn(folder: Path, factory: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a function, its arguments, and a file of what it drew under one seed."""
    import torch
    from safetensors.torch import save_file

    from storage.digests import fingerprint
    from storage.options import load_factory

    torch.manual_seed(0)
    weights = folder / f"drawn-{fingerprint([factory, arguments])}.safetensors"
    save_file(load_factory(factory)(**arguments).state_dict(), str(weights))
    return {"factory": factory, "arguments": arguments, "weights": str(weights)}
