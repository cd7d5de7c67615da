"""What tasks have in common that ask for the class of a row: it is its only site. B rows of a batch, C classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import polars as pl
from torch import Tensor

from storage.cache import Cache, Samples
from student_train.feed.selection import Selection
from student_train.students import Student
from student_train.tasks.base import Figures, ReportFacts, StudentTask
from student_train.tasks.held import TEACHER_SCHEMA


class OneClassStudent(StudentTask):
    """All logits of a batch are made at once."""

    way = "rows"
    tabular_tag: ClassVar[str | None] = "tabular-classification"
    figures: ClassVar[Figures] = "rows"
    report = ReportFacts(
        rows="rows",
        sites="rows",
        independent=True,
        mistakes="pictures",
        breakdown="classes",
        teacher=" on the same rows",
    )

    def tried_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        return input_shape

    def answer(self, student: Student, inputs: Tensor) -> Tensor:
        logits_BC: Tensor = student(inputs)
        return logits_BC

    def hidden_of_sites(self, student: Student, inputs: Tensor) -> Tensor:
        return student.hidden(inputs)

    def refuse_coupling(self, student: str, dataset: str, losses: Sequence[str]) -> None:
        return  # all rows of a batch are there at once

    def held_sites(self, cache: Cache, selection: Selection, teacher: str | None, rows: pl.DataFrame) -> pl.DataFrame:
        names = [] if teacher is None else [teacher]
        samples = Samples(selection.catalogue).of(selection.datasets[0], names)
        columns = {column: f"{name}{column.removeprefix('teacher')}" for name in names for column in TEACHER_SCHEMA}
        known = samples.select("row", "shard", "sample_id", "label", **columns)
        return rows.join(known, on="row", maintain_order="left")

    def told_of_rows(self, columns: pl.DataFrame) -> pl.DataFrame:
        return columns
