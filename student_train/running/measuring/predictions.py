"""Students are asked about the held rows: what each says of each row, and what is known of it without a student.

`run_files/predictions.py` has the table that comes of it; which sites are in it, says the task.

B sites of a batch, N all of them, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from storage.cache import Cache
from storage.tasks import task_of
from storage.views import PLAIN
from student_train.feed.feed import Feed
from student_train.feed.selection import NO_CLASS, Selection
from student_train.options.by_dataset import teacher_of
from student_train.run_files.folder import RunFolder
from student_train.run_files.predictions import HeldTable, held_schema
from student_train.students import Student
from student_train.students.parts import logits_in_parts
from student_train.tasks import TASKS
from student_train.tasks.held import DATASET, STUDENT_SCHEMA, Columns


def held_table(cache: Cache, selection: Selection, teacher: str | None) -> HeldTable:
    """Return the held rows before any student has seen them: one table for all students of a job.

    Args:
        cache: where they are.
        selection: the held rows.
        teacher: to compare with; it must have seen them plain.

    Raises:
        CorruptObject, StaleCache: as the task's `held_sites`.
    """
    task = TASKS[task_of(selection.spec).name]
    tables = []
    for part, own in zip(selection.parts, selection.apart(), strict=True):
        starts = {shard.shard: shard.start for shard in selection.catalogue.shards(part.dataset)}
        rows = [starts[shard] + rows for shard, rows in zip(own.shards_S, own.rows, strict=True)]
        held = pl.DataFrame({"position": np.array(part.rows), "row": np.concatenate(rows)})
        taught = None if teacher is None else teacher_of(teacher, part.dataset)
        if taught is not None and PLAIN not in selection.catalogue.view_names(part.dataset, taught):
            taught = None
        table = task.held_sites(cache, own, taught, held)
        schema = held_schema(task.site_schema, several=len(selection.parts) > 1)
        absent = {name: pl.lit(None) for name in schema if name not in table.columns}
        table = table.with_columns(**absent | {DATASET: pl.lit(part.dataset)})
        tables.append(table.select(*schema).cast(schema))  # type: ignore[arg-type]
    return HeldTable(
        cache.id, ",".join(selection.datasets), teacher, task.asked.name, selection.num_rows, pl.concat(tables)
    )


class Respondent(NamedTuple):
    """A student that is asked about the held rows.

    Attributes:
        files: of its run.
        student: with the weights that were exported, in evaluation mode.
        held: those rows, and what is known of them.
    """

    files: RunFolder
    student: Student
    held: HeldTable


def ask_students(
    asked: Sequence[Respondent], feed: Feed, *, batch_size: int, stop: Callable[[], bool] = lambda: False
) -> bool:
    """Ask students about the held rows, each batch of which is read once, and write their answers.

    Args:
        asked: students, of the same held rows.
        feed: the held rows.
        batch_size: rows at a time.
        stop: asked after each batch; if it says so, nothing is written.

    Returns:
        Whether `stop` let it end.
    """
    answered = predict([each[1:] for each in asked], feed, batch_size=batch_size, stop=stop)
    if answered is None:
        return False
    for (files, _, _), predictions in zip(asked, answered, strict=True):
        files.write_predictions(predictions)
    return True


def predict(
    asked: Sequence[tuple[Student, HeldTable]],
    feed: Feed,
    *,
    batch_size: int,
    stop: Callable[[], bool] = lambda: False,
) -> list[HeldTable] | None:
    """Return held rows with each student's columns, computed in float32; None if `stop` said so."""
    first, held = asked[0]
    labels_N = torch.tensor(held.table["label"].fill_null(NO_CLASS).to_numpy()).to(first.device)
    # ascending; of a dataset the table may have the first blocks alone
    wanted_R, task = held.table["position"].unique(maintain_order=True).to_numpy(), TASKS[held.task]
    said = [Columns(len(labels_N)) for _ in asked]
    start, done, labels_left = 0, 0, labels_N
    with torch.inference_mode():
        for batch in feed.in_order(batch_size):
            if stop():
                return None
            stop_row = start + len(batch.inputs)
            within = wanted_R[done : np.searchsorted(wanted_R, stop_row)] - start
            start = stop_row
            if not len(within):
                continue
            inputs = batch.inputs.index_select(0, torch.from_numpy(within).to(batch.inputs.device))
            for (student, _), answers in zip(asked, said, strict=True):
                # (B, D): a row is one site, or each of its positions
                hidden_BD = task.hidden_of_sites(student, inputs)
                size, labels_B = len(hidden_BD), labels_left[: len(hidden_BD)]
                for at, logits_BC in logits_in_parts(student, hidden_BD):
                    answers.add(task.said(logits_BC, labels_B[at]))
            labels_left = labels_left[size:]
            done += len(inputs)
            if done == len(wanted_R):  # the table has no more
                break
    return [_with(own, answers.filled(), labels_N) for (_, own), answers in zip(asked, said, strict=True)]


def _with(held: HeldTable, answers: Mapping[str, Tensor], labels_N: Tensor) -> HeldTable:
    """Return held rows with a student's columns."""
    known = pl.Series((answers["top"] != NO_CLASS).numpy())
    labelled = pl.Series((labels_N != NO_CLASS).cpu().numpy())
    predicted = TASKS[held.task].predicted
    columns: dict[str, Any] = {
        name: pl.when(labelled if name == "label_log_probability" else known).then(pl.Series(values_N.numpy()))
        for name, values_N in answers.items()
        if name not in predicted
    } | {name: pl.Series(answers[name].numpy()) for name in predicted}
    schema: dict[str, Any] = {**STUDENT_SCHEMA, **predicted}
    return replace(held, table=held.table.with_columns(**columns).cast(schema))  # type: ignore[arg-type]
