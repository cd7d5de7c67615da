"""Students that tell numbers of a row, such as its price. B rows of a batch, T numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from storage.errors import BadRequest
from storage.tasks import TASKS
from student_train.options.terms import CrdTerm, FeatureTerm, ObjectiveTerm, TargetMseTerm, VectorTerm
from student_train.options.training import Figure
from student_train.tasks.base import Figures
from student_train.tasks.vector import Vector


class Regression(Vector):
    """A vector of each row, measured against the true one, and its teacher's beside."""

    asked = TASKS["regression"]
    figures: ClassVar[Figures] = "numbers"
    pipeline_tag = tabular_tag = "tabular-regression"
    report = replace(Vector.report, mistakes="texts")
    best_by: ClassVar[Figure] = "rmse"
    unsteady: ClassVar[str | None] = None

    def refuse_losses(self, student: str, dataset: str, terms: Sequence[ObjectiveTerm]) -> None:
        strange = [
            term.loss
            for term in terms
            if not isinstance(term, VectorTerm | FeatureTerm | TargetMseTerm)
            or (isinstance(term, CrdTerm) and not term.same_class_negatives)
        ]
        if strange:
            raise BadRequest(
                f"student {student} has losses on classes, and the answers to {dataset} are numbers",
                found=", ".join(strange),
                expected='"target_mse", on the numbers of the dataset; vector_mse and the like, on those of a teacher; '
                "or a loss on features without classes",
            )
