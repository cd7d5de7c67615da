"""What all tests of this folder read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.published.toys import unpack


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of what the libraries themselves wrote, which no test changes."""
    return unpack(tmp_path_factory.mktemp("published"))
