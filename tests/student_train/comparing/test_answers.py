from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from storage.errors import CorruptObject
from storage.format.sealed import seal
from student_train.comparing.answers import COLUMNS, read_answers
from student_train.run_files.predictions_file import PREDICTIONS_FILE


@pytest.mark.parametrize(("version", "known"), [(1, True), (2, True), (3, False)])
def test_predictions_of_a_format_that_is_not_known_are_refused(tmp_path: Path, version: int, known: bool) -> None:
    table = pa.table({name: pa.array([0]) for name in COLUMNS})
    about = {"format_version": version, "task": "image_classification", "teacher": None}
    (tmp_path / PREDICTIONS_FILE).write_bytes(seal(table, about))
    if known:
        assert read_answers(tmp_path) is not None
        return
    with pytest.raises(CorruptObject) as refused:
        read_answers(tmp_path)
    assert refused.value.found == "it is of another format"
