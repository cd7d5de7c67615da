"""A small cache of digits and one teacher, built once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
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
