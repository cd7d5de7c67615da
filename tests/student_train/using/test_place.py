"""Where an export lies: one command at a time writes there, and what a killed one left is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.errors import StorageFailure, TryAgain
from student_train.using.exporting.place import part_of


def test_two_exports_into_one_folder_at_once_are_not_mixed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with part_of(out) as part:
        (part / "model").write_text("mine")
        with pytest.raises(TryAgain, match="another command"), part_of(out):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "model"]


def test_what_a_killed_export_left_is_gone(tmp_path: Path) -> None:
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part/half").write_text("")
    (tmp_path / ".out.lock").write_text("")
    with part_of(tmp_path / "out") as part:
        (part / "whole").write_text("")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "whole"]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFailure, match="file"), part_of(tmp_path / "file" / "out"):
        pass
