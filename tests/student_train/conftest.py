"""Fixtures of this room's tests."""

from __future__ import annotations

import pytest

from storage.cache import Cache
from tests.student_train.toys import Recipe, write_cache


@pytest.fixture(scope="session")
def toy_cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Return a whole cache of 240 rows in 5 shards, never changed by a test."""
    return write_cache(tmp_path_factory.mktemp("cache") / "toy", Recipe())
