"""A small residual teacher from a user's file, asked about some digits once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from storage.options import load_factory
from tests.teacher_cache.toys import build, write_digits, write_job

RESIDUAL = '''
"""A residual network of 8 by 8 inputs, whose channels depend on each other through a sum, a Flatten and a depth."""

from torch import nn


def block(c_in, c_out):
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(block(width, width), block(width, width))

    def forward(self, x):
        return x + self.body(x)


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = block(1, width)
        self.layer = nn.Sequential(block(width, width), Residual(width), Residual(width))
        self.each = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.pool = nn.MaxPool2d(4)
        self.hidden = nn.Linear(4 * width, 3 * width)
        self.head = nn.Linear(3 * width, 10)

    def forward(self, x):
        x = self.pool(self.each(self.layer(self.stem(x)))).flatten(1)
        return self.head(self.hidden(x).sigmoid()) * 3


def build(width=8):
    return Net(width)
'''

TEACHER = """[[teacher]]
name = "net"
factory = "net.py:build"
weights = "net.safetensors"
mean = [0.3]
std = [0.4]
encoding = { kind = "dense", dtype = "fp32" }
"""


@pytest.fixture(scope="session")
def pantry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a job, `job.toml`, and its whole cache; do not change it."""
    folder = tmp_path_factory.mktemp("pantry")
    (folder / "net.py").write_text(RESIDUAL)
    torch.manual_seed(0)
    model: nn.Module = load_factory(f"{folder / 'net.py'}:build")()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that every channel is another
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.bias, std=0.5)
    save_file(model.state_dict(), folder / "net.safetensors")
    assert build(write_job(folder, write_digits(folder, 60), TEACHER)).exit_code == 0
    return folder
