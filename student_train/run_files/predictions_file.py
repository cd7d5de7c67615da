"""The file `predictions.parquet` as such: sealed, and of the very training that the record beside it is of.

Without torch: comparisons read a few of its columns (`comparing/answers.py`), the report all (`predictions.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from storage.digests import digest
from storage.errors import CorruptObject
from storage.format.sealed import unseal
from student_train.run_files.records import RUN_FILE, read_record

PREDICTIONS_FILE = "predictions.parquet"

Read = TypeVar("Read")


def read_file(folder: Path, read: Callable[[dict[str, Any], pa.Table], Read]) -> Read | None:
    """Return what is read of the predictions of a run's student; None if nobody asked it.

    Args:
        folder: of the run.
        read: of what the file says of itself, and of its table; whatever it raises says what is wrong with them.

    Raises:
        CorruptObject: the file is not one of these, or not as it was written.
    """
    path = folder / PREDICTIONS_FILE
    if not path.exists():
        return None
    try:
        data, record = path.read_bytes(), read_record(folder)
        if record is not None and record.predictions_digest not in (None, digest(data)):
            raise ValueError(f"its bytes do not match the digest in {RUN_FILE}: it is of another training")
        return read(*unseal(data))
    except Exception as error:  # whatever a file that only looks like one leads to
        raise CorruptObject(
            f"{path} holds no predictions",
            found=str(error) or type(error).__name__,
            do=f"delete {folder} and train this student again",
        ) from None
