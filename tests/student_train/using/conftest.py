"""One student of pictures for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.student_train.using.toys import train_pictures


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a settled run, never changed by a test; its pictures and cache lie above it."""
    return train_pictures(tmp_path_factory.mktemp("pictures"))
