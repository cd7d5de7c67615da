"""Students are asked about the held rows: what each says of each row, and what is known of it without a student.

`run_files/predictions.py` has the table that comes of it. Of tokens its rows are the positions of the first held
blocks, MOST_POSITIONS at most: there may be millions.

B rows or positions of a batch, N all of them, L positions of a block, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from storage.cache import Cache, Samples
from storage.encodings import Capability, Encoded
from student_train.feed.batches import Needs, SoftNeed
from student_train.feed.feed import Feed
from student_train.feed.selection import NO_CLASS, Selection
from student_train.feed.shard_source import INPUTS, LABELS, ShardSource
from student_train.feed.windows import load_shard
from student_train.run_files.folder import RunFolder
from student_train.run_files.predictions import (
    HELD_SCHEMA,
    STUDENT_SCHEMA,
    TEACHER_SCHEMA,
    TOKEN_SCHEMA,
    HeldTable,
)
from student_train.stepping.positions import logits_in_parts, part_size
from student_train.students import Student

MOST_POSITIONS = 2**14
MOST_LOGITS = 2**29  # of the teacher's that are decoded; fewer positions of a vocabulary above 32,768


def held_table(cache: Cache, selection: Selection, teacher: str | None) -> HeldTable:
    """Return the held rows before any student has seen them: one table for all students of a job.

    Args:
        cache: where they are.
        selection: the held rows.
        teacher: to compare with; it must have seen them plain.

    Raises:
        CorruptObject: what is stored of tokens is missing or altered.
        StaleCache: the teacher was asked about other tokens than these.
    """
    of_tokens = selection.catalogue.dataset(selection.dataset).vocabulary is not None
    starts = {shard.shard: shard.start for shard in selection.catalogue.shards(selection.dataset)}
    rows = [starts[shard] + rows for shard, rows in zip(selection.shards_S, selection.rows, strict=True)]
    held = pl.DataFrame({"position": np.arange(selection.num_rows), "row": np.concatenate(rows)})
    names = [teacher] if teacher is not None and not of_tokens else []
    samples = Samples(selection.catalogue).of(selection.dataset, names)
    columns = {column: f"{name}{column.removeprefix('teacher')}" for name in names for column in TEACHER_SCHEMA}
    table = held.join(samples.select("row", "shard", "sample_id", "label", **columns), on="row", maintain_order="left")
    if of_tokens:
        table = _positions(cache, selection, teacher, table.drop("label"))
    schema = HELD_SCHEMA | (TOKEN_SCHEMA if of_tokens else {}) | TEACHER_SCHEMA
    absent = {name: pl.lit(None) for name in schema if name not in table.columns}
    table = table.with_columns(**absent).select(*schema).cast(schema)  # type: ignore[arg-type]
    return HeldTable(cache.id, selection.dataset, teacher, of_tokens, selection.num_rows, table)


class Columns:
    """Columns of N rows in place, filled a part of the rows at a time.

    Pieces that are kept for a `cat` at the end would lie between the logits of one part and the next, where the C
    library then reuses neither: 700 MB more for 2,000 positions of 50,000 ids (docs/log.md).
    """

    def __init__(self, num_rows: int):
        self._num_rows = num_rows
        self._filled = 0
        self._columns: dict[str, Tensor] = {}

    def add(self, part: Mapping[str, Tensor]) -> None:
        """Fill in the next rows: (B,) of each column."""
        rows = slice(self._filled, self._filled + len(next(iter(part.values()))))
        for name, values_B in part.items():
            self._columns.setdefault(name, values_B.new_empty(self._num_rows))[rows] = values_B
        self._filled = rows.stop

    def filled(self) -> dict[str, Tensor]:
        """Return them, (N,) each, on the CPU.

        Raises:
            ValueError: there are rows that nobody filled in.
        """
        if self._filled != self._num_rows:
            raise ValueError(f"{self._filled} of {self._num_rows} rows are filled in")
        return {name: column_N.cpu() for name, column_N in self._columns.items()}


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
    num_rows = int(held.table["position"].n_unique())
    said = [Columns(len(labels_N)) for _ in asked]
    done, labels_left = 0, labels_N
    with torch.inference_mode():
        for batch in feed.in_order(batch_size):
            if stop():
                return None
            inputs = batch.inputs[: num_rows - done]
            size = len(inputs) * (inputs.shape[1] if held.of_tokens else 1)
            labels_B, labels_left = labels_left[:size], labels_left[size:]
            for (student, _), answers in zip(asked, said, strict=True):
                if held.of_tokens:
                    _say_of_tokens(student, inputs, labels_B, answers)
                else:
                    answers.add(_said(student(inputs), labels_B))
            done += len(inputs)
            if done == num_rows:
                break
    return [_with(own, answers.filled(), labels_N) for (_, own), answers in zip(asked, said, strict=True)]


def _with(held: HeldTable, answers: Mapping[str, Tensor], labels_N: Tensor) -> HeldTable:
    """Return held rows with a student's columns."""
    known = pl.Series((answers["top"] != NO_CLASS).numpy())
    labelled = pl.Series((labels_N != NO_CLASS).cpu().numpy())
    columns = {
        name: pl.when(labelled if name == "label_log_probability" else known).then(pl.Series(values_N.numpy()))
        for name, values_N in answers.items()
    }
    return replace(held, table=held.table.with_columns(**columns).cast(STUDENT_SCHEMA))  # type: ignore[arg-type]


def _said(logits_BC: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
    """Return a student's columns of some rows, (B,) each."""
    log_p_BC = logits_BC.float().log_softmax(dim=1)
    top = log_p_BC.max(dim=1)
    label_log_p_B = log_p_BC.gather(1, labels_B.clamp(min=0)[:, None])[:, 0]
    return {"top": top.indices, "top_probability": top.values.exp(), "label_log_probability": label_log_p_B}


def _say_of_tokens(student: Student, tokens_BL: Tensor, labels_B: Tensor, answers: Columns) -> None:
    """Add the same of all positions of some blocks, a part of them at a time; of those without a label nothing."""
    hidden_BD = student.hidden(tokens_BL).flatten(0, 1)
    for at, logits_BC in logits_in_parts(student, hidden_BD):
        said = _said(logits_BC, labels_B[at])
        answers.add(said | {"top": said["top"].masked_fill(labels_B[at] == NO_CLASS, NO_CLASS)})


def _positions(cache: Cache, selection: Selection, teacher: str | None, blocks: pl.DataFrame) -> pl.DataFrame:
    """Return the positions of the first held blocks, with their tokens, labels and what the teacher said of them."""
    source = ShardSource(cache, selection)
    spec = selection.catalogue.dataset(selection.dataset)
    length = spec.input_shape[0]
    left = max(1, min(MOST_POSITIONS, MOST_LOGITS // spec.num_classes) // length)
    taught = selection.catalogue.committed(selection.dataset, teacher) if teacher is not None else set()
    parts = []
    for index, shard in enumerate(selection.shards_S):
        needs = _teacher_needs(selection, teacher if shard in taught else None)
        arrays = load_shard(source, index, source.names(needs))
        arrays = {name: values[:left] for name, values in arrays.items()}
        labels_N = arrays[LABELS].flatten().long()
        columns = {"label": labels_N}
        for encoded in source.encoded(arrays).values():
            columns |= _teacher_said(encoded, labels_N, needs)
        labelled = pl.Series((labels_N != NO_CLASS).numpy())
        known = [pl.when(labelled).then(pl.Series(name, values.numpy())) for name, values in columns.items()]
        parts.append(pl.DataFrame({"token": arrays[INPUTS].flatten().numpy()}).with_columns(known))
        left -= len(arrays[INPUTS])
        if left <= 0:
            break
    positions = pl.concat(parts, how="diagonal_relaxed")
    taken = blocks.head(len(positions) // length)
    at = pl.Series("at", np.tile(np.arange(length), len(taken)))
    repeated = taken.select(pl.all().repeat_by(length).explode())
    return pl.concat([repeated, at.to_frame(), positions], how="horizontal")


def _teacher_needs(selection: Selection, teacher: str | None) -> Needs:
    """Return what there is to know of a teacher's top class and of the label: not every encoding serves both."""
    if teacher is None:
        return Needs()
    wanted = (Capability("bucket", 1.0), Capability("label_probability", 1.0))
    encoding = selection.catalogue.teacher(selection.dataset, teacher).encoding
    return Needs(soft=frozenset(SoftNeed(teacher, need) for need in wanted if encoding.lacks(need) is None))


def _teacher_said(encoded: Encoded, labels_N: Tensor, needs: Needs) -> dict[str, Tensor]:
    """Return the teacher's columns of all positions, decoded a part of them at a time."""
    served = {need.capability.name for need in needs.soft}
    columns = Columns(len(labels_N))
    for positions in torch.arange(len(labels_N)).split(part_size(encoded.num_classes, labels_N.device)):
        targets = encoded.pick(positions).decode()
        part: dict[str, Tensor] = {}
        if "bucket" in served:
            log_p_B, part["teacher_top"] = targets.top()  # type: ignore[attr-defined]
            part["teacher_top_probability"] = log_p_B.exp()
        if "label_probability" in served:
            labels_B = labels_N[positions].clamp(min=0)
            part["teacher_label_log_probability"] = targets.label_log_p(labels_B, 1.0)
        columns.add(part)
    return columns.filled()
