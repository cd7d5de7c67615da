"""Terms on a teacher's vectors and the student's own, of a task whose answers are vectors."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from student_train.options.terms.base import Share, Teacher, Temperature, Term, name_of, not_all_off


class VectorTerm(Term):
    """A term on a teacher's vectors and the student's own, of a task whose answers are vectors."""

    teacher: Teacher

    @property
    def teacher_names(self) -> tuple[str, ...]:
        return (name_of(self.teacher),)

    @property
    def name(self) -> str:
        return f"{self.loss}:{name_of(self.teacher)}"


class TargetMseTerm(Term):
    """Mean squared error to the numbers that the dataset has."""

    loss: Literal["target_mse"]


class VectorCosineTerm(VectorTerm):
    """One less the cosine."""

    loss: Literal["vector_cosine"]


class VectorMseTerm(VectorTerm):
    """Mean squared distance."""

    loss: Literal["vector_mse"]


class VectorRkdTerm(VectorTerm):
    """Distances of pairs of rows, and angles of triples."""

    loss: Literal["vector_rkd"]
    distance: Share = 1.0  # of the pairs
    angle: Share = 2.0  # of the triples

    @model_validator(mode="after")
    def _something(self) -> Self:
        not_all_off(self, "distance", "angle")
        return self


class VectorSimilarityTerm(VectorTerm):
    """Similarity of pairs of rows."""

    loss: Literal["vector_similarity"]


class VectorPktTerm(VectorTerm):
    """Each row's probabilities of being near each other row."""

    loss: Literal["vector_pkt"]


class InfoNceTerm(VectorTerm):
    """Each row's own vector told from the cached ones of other rows."""

    loss: Literal["infonce"]
    temperature: Temperature = 0.05
