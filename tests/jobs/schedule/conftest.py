"""What the tests of schedules share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.schedule.place import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return a folder in which schedules run."""
    return Place(tmp_path)
