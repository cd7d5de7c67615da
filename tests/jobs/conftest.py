"""A small cache to look into."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.teacher_cache.toys import build, teacher_section, write_digits, write_job, write_teacher


@pytest.fixture(scope="session")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a job and its whole cache: 40 digits in shards of 16, one teacher; do not change it."""
    folder = tmp_path_factory.mktemp("kitchen")
    write_teacher(folder)
    assert build(write_job(folder, write_digits(folder, 40), teacher_section())).exit_code == 0
    (folder / "students.toml").write_text(
        'cache = "cache"\nruns = "runs"\ntrain = "digits"\nvalidation = "digits"\n'
        '[[student]]\nname = "s"\narchitecture = "mlp"\nobjective = [{ loss = "labels" }]\nepochs = 1\nbatch_size = 8\n'
    )
    return folder
