"""Terms on what a teacher's layers and the student's own say."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from storage.options import Name
from student_train.options.terms.base import LayerName, Share, Teacher, Temperature, Term, name_of, not_all_off


class FeatureTerm(Term):
    """A term on a teacher's feature and a student's layer."""

    teacher: Teacher
    feature: Name
    student_layer: LayerName  # as in `named_modules()`: "network.stage2"

    @property
    def teacher_names(self) -> tuple[str, ...]:
        return (name_of(self.teacher),)

    @property
    def name(self) -> str:
        return f"{self.loss}:{name_of(self.teacher)}/{self.feature}"

    @property
    def layout(self) -> tuple[str | int, ...]:
        return (*super().layout, self.student_layer)


class ProjectedTerm(FeatureTerm):
    """A term that compares a layer with a feature itself, or through a learned projection, which export drops.

    `projection`: whether there is one; None: where the two are not of one width. It is decided before the first step
    (`preparing/left_open.py`), and a run's record says where there is none.
    """

    projection: bool | None = None

    @property
    def layout(self) -> tuple[str | int, ...]:
        return (*super().layout, repr(self.projection))


class HintTerm(ProjectedTerm):
    """Mean squared distance to a feature."""

    loss: Literal["hint"]


class CosineTerm(ProjectedTerm):
    """One less the cosine to a feature."""

    loss: Literal["cosine"]


class VidTerm(ProjectedTerm):
    """Likelihood of a feature under a Gaussian around a layer, with a learned variance a channel."""

    loss: Literal["vid"]


class AttentionTerm(FeatureTerm):
    """Distance of where a map has its energy."""

    loss: Literal["attention"]


class RkdTerm(FeatureTerm):
    """Distances of pairs of rows, and angles of triples."""

    loss: Literal["rkd"]
    distance: Share = 1.0  # of the pairs
    angle: Share = 2.0  # of the triples

    @model_validator(mode="after")
    def _something(self) -> Self:
        not_all_off(self, "distance", "angle")
        return self


class SimilarityTerm(FeatureTerm):
    """Similarity of pairs of rows."""

    loss: Literal["similarity"]


class PktTerm(FeatureTerm):
    """Each row's probabilities of being near each other row."""

    loss: Literal["pkt"]


class CrdTerm(FeatureTerm):
    """Each row's own feature told from those of other rows, after learned projections of both."""

    loss: Literal["crd"]
    temperature: Temperature = 0.1
    width: Annotated[int, Field(ge=1)] = 128  # of the space in which they are compared
    same_class_negatives: bool = False  # whether another row of the same class is one to tell from; false needs labels

    @property
    def layout(self) -> tuple[str | int, ...]:
        return (*super().layout, self.width)
