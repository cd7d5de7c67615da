"""A small cache of digits and one teacher, built once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from storage.cache import Cache
from tests.teacher_cache.toys import build, teacher_section, write_digits, write_job, write_teacher

FEATURES = """features.pooled = { layer = "norm", dtype = "fp32" }
features.whole = { layer = "norm", pool = "none", dtype = "fp32" }
features.half = { layer = "conv", pool = "none", dtype = "bf16" }
batch_size = 10
"""


@dataclass(frozen=True)
class Built:
    """A built cache, its job, and the teacher's model for forwards by hand."""

    folder: Path
    job: Path
    cache: Cache
    model: nn.Module


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Return 40 digits in shards of 16, 16 and 8, with one teacher in float32 and three features; do not change it."""
    folder = tmp_path_factory.mktemp("built")
    model = write_teacher(folder)
    job = write_job(folder, write_digits(folder, 40), teacher_section(extra=FEATURES))
    assert build(job).exit_code == 0
    return Built(folder, job, Cache.open(str(folder / "cache")), model)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Run forwards by hand as tasks do: their bits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
