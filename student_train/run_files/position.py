"""Where a run is that is not settled: the content of `checkpoint.json`. No torch here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from storage.errors import CorruptObject
from storage.format.sealed import read_json
from storage.options import Options
from student_train.options.steps_taken import Stretch
from student_train.run_files.records import CHECKPOINT_FILE, EpochMetrics


class Position(Options):
    """Where a run is: the next step, and what the epochs so far gave.

    Attributes:
        epoch, step: the next step to take is number `step` of epoch `epoch`, both from 0; `step` may be the number of
            an epoch's steps, when its evaluation is still to come.
        history: one entry per evaluation.
        best_row: place in it of the best so far, where the job keeps that.
        best_epoch, best_score: the same, before there was more than one an epoch.
        stacked: whether it steps in a stack: it goes on as it was, for rounding differs.
        stack: names of the students whose checkpoints are committed together with this one, itself among them.
        stretches: in whose company its steps were taken so far; empty before format 2.
        seconds: of the run so far.
        epoch_seconds: of training since the last evaluation, or since the epoch began.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")  # a loss may be NaN, which JSON has no word for

    epoch: int = 0
    step: int = 0
    history: tuple[EpochMetrics, ...] = ()
    best_row: int | None = None
    best_epoch: int | None = None
    best_score: float | None = None
    stacked: bool = False
    stack: tuple[str, ...] = ()
    stretches: tuple[Stretch, ...] = ()
    seconds: float = 0.0
    epoch_seconds: float = 0.0


class CheckpointFile(Position):
    """The content of `checkpoint.json`; `student`, since format 2, is the name of whom it is of."""

    format_version: Literal[1, 2] = 2
    student: str | None = None
    weights_file: str
    weights_digest: str
    torch_version: str
    identity: dict[str, Any]


def read_position(folder: Path, name: str = CHECKPOINT_FILE) -> CheckpointFile | None:
    """Return what a checkpoint's JSON says, or None where there is none.

    Raises:
        CorruptObject: its bytes are not those that were written.
        UnsupportedFormat: it was written by a later format.
    """
    path = folder / name
    if not path.exists():
        return None
    try:
        return CheckpointFile.model_validate_json(json.dumps(read_json(path)))
    except (OSError, ValueError) as error:
        raise CorruptObject(
            f"{path} is not a checkpoint", found=str(error), do=f"rm -r {folder}    # this student then starts again"
        ) from None
