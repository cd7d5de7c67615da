"""What every task answers to those who train, measure and show students.

Shapes: B rows of a batch, `sites` the axes of a row's sites (storage.tasks), C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import polars as pl
from torch import Tensor

from storage.cache import Cache
from storage.encodings import Capability
from storage.errors import BadRequest
from storage.tasks import NO_LABEL, Task
from student_train.feed.selection import Selection
from student_train.options.terms import SOFTENED, ObjectiveTerm, VectorTerm
from student_train.options.training import Figure
from student_train.students import Student

# How a student is stepped and measured: all logits of whole rows at once, or a part of the sites at a time, because
# the logits of all sites of a batch might not fit. `stepping.gradients.ways` has both.
Way = Literal["rows", "sites"]
Figures = Literal["rows", "sites", "vectors", "numbers"]  # by which it is measured: `running.measuring.evaluate`


@dataclass(frozen=True)
class ReportFacts:
    """What the report shows of a task, and in which words.

    Attributes:
        rows, sites: what they are called.
        independent: whether sites are samples of their own, so that a mean over them has an interval.
        mistakes: how one is shown, of `report.gallery.CARDS`.
        breakdown: of what the best student's figures are broken down, of `report.contents.BREAKDOWNS`.
        token_classes: whether a class is a token, and has that one's text for a name.
        in_order: whether sites follow each other, so that the loss along a row is of interest.
        accuracy, teacher, answers, chosen: what is to be said beside figures, the teacher's, those of a cache, and
            mistakes.
    """

    rows: str
    sites: str
    independent: bool
    mistakes: Literal["pictures", "contexts", "texts"]
    breakdown: Literal["classes", "tokens"]
    token_classes: bool = False
    in_order: bool = False
    accuracy: str = ""
    teacher: str = ""
    answers: str = ""
    chosen: str = ""


class StudentTask(ABC):
    """The students' half of a task.

    Attributes:
        asked: the other half.
        way: how its students are stepped and asked.
        figures: by which they are measured.
        report: what the report shows of it.
        site_schema: columns of a held site beside those of its row.
        best_by: the figure by which students and their weights are best, where the job names none.
        temperature: of `kd` and `dkd` where a job leaves it out.
        macro_f1: whether it is a figure of the task: where classes are few and may be of unequal size.
        perplexity: whether it is a figure of the task: where the classes are tokens.
        beside_teacher: whether students are measured against a teacher's soft targets of the held rows, site by site.
        beside: what that takes of the soft targets.
        predicted: columns of a prediction beside those that all have.
        pipeline_tag: what the Hub calls it; None: it has no name for it.
        tabular_tag: likewise, of rows of a table.
        unsteady: why steps on it cannot be recorded; None: batches of one kind are all of one shape.
    """

    asked: ClassVar[Task]
    way: ClassVar[Way]
    figures: ClassVar[Figures]
    report: ClassVar[ReportFacts]
    site_schema: ClassVar[dict[str, type[pl.DataType]]] = {}
    best_by: ClassVar[Figure] = "accuracy"
    temperature: ClassVar[float] = SOFTENED
    macro_f1: ClassVar[bool] = False
    perplexity: ClassVar[bool] = False
    beside_teacher: ClassVar[bool] = False
    beside: ClassVar[Capability] = Capability("bucket", 1.0)  # serves the likeliest class too
    predicted: ClassVar[dict[str, pl.DataType]] = {}
    pipeline_tag: ClassVar[str | None] = None
    tabular_tag: ClassVar[str | None] = None
    unsteady: ClassVar[str | None] = None

    @abstractmethod
    def tried_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of rows of which all logits are sure to fit, to try a student on."""

    @abstractmethod
    def answer(self, student: Student, inputs: Tensor) -> Tensor:
        """Return the logits (B, C) with which a student answers each row once, as those do who use it."""

    @abstractmethod
    def hidden_of_sites(self, student: Student, inputs: Tensor) -> Tensor:
        """Return what a student's `scores` makes logits of, of all sites of some rows one after another, (N, D)."""

    @abstractmethod
    def refuse_coupling(self, student: str, dataset: str, losses: Sequence[str]) -> None:
        """Raise BadRequest if losses that compare rows with each other cannot be computed.

        Args:
            student: its name.
            dataset: likewise.
            losses: those of its losses that do, one at least.
        """

    @abstractmethod
    def held_sites(self, cache: Cache, selection: Selection, teacher: str | None, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the held sites, or the first of them, with what is known of each before any student has seen it.

        Args:
            cache: where they are.
            selection: the held rows, of one dataset.
            teacher: whose TEACHER_SCHEMA is wanted; None: nobody's.
            rows: those of the selection in order, with `position` and `row`.

        Returns:
            HELD_SCHEMA, `site_schema`, and as much of TEACHER_SCHEMA as is known (`held.py`).

        Raises:
            CorruptObject: what is stored of them is missing or altered.
            StaleCache: the teacher was asked about other rows than these.
        """

    def refuse_losses(self, student: str, dataset: str, terms: Sequence[ObjectiveTerm]) -> None:
        """Raise BadRequest if one of a student's losses means nothing for the task's answers."""
        if of_vectors := [term.loss for term in terms if isinstance(term, VectorTerm)]:
            raise BadRequest(
                f"student {student} has losses on vectors, and the answers to {dataset} are classes",
                found=", ".join(of_vectors),
                expected='labels, a loss on soft targets such as "kd", or one on features',
                do=f'task = "vector" in the cache job, [[dataset]] {dataset}, if vectors are meant',
            )

    def said(self, logits_BC: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        """Return a student's columns of some sites, (B, …) each; NO_LABEL at those that are none to answer."""
        log_p_BC = logits_BC.float().log_softmax(dim=1)
        top_B, log_sure_B = log_p_BC.max(dim=1)[::-1]  # of (values, indices)
        if not self.asked.unlabelled_sites:
            top_B = top_B.masked_fill(labels_B == NO_LABEL, NO_LABEL)
        label_log_p_B = log_p_BC.gather(1, labels_B.clamp(min=0)[:, None])[:, 0]  # left out where there is none
        return {"top": top_B, "top_probability": log_sure_B.exp(), "label_log_probability": label_log_p_B}

    @abstractmethod
    def told_of_rows(self, columns: pl.DataFrame) -> pl.DataFrame:
        """Return a teacher's per-sample columns such that figures over their rows are of its sites.

        Args:
            columns: `label`, and `teacher_` with each of TEACHER_COLUMNS.
        """
