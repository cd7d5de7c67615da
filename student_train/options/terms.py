"""The terms of an objective, as a job file writes them; `losses/` holds what each of them computes.

No torch here, so that a job file is checked before anything slow is imported.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from storage.options import Name, Options
from student_train.options.by_dataset import named_together

LayerName = Annotated[str, StringConstraints(min_length=1)]
Weight = Annotated[float, Field(gt=0, le=1e6)]
Share = Annotated[float, Field(ge=0, le=1e6)]  # of a part within a loss; 0 switches it off
Fraction = Annotated[float, Field(ge=0, lt=1)]
Temperature = Annotated[float, Field(gt=0, le=1000)]

SOFTENED = 4.0  # the temperature of kd and dkd where nobody says another: Hinton et al. 2015 and Zhao et al. 2022


def _equal_weights(value: Any) -> Any:
    """Return a list of names as names with weight 1."""
    return dict.fromkeys(value, 1.0) if isinstance(value, list | tuple) else value


Teachers = Annotated[dict[Name, Weight], BeforeValidator(_equal_weights), Field(min_length=2)]
Teacher = Name | Annotated[dict[Name, Name], Field(min_length=1)]  # of all datasets, or of each by its name
Mixing = Literal["weights", "most_confident", "correct"]


def _name_of(teacher: str | dict[str, str]) -> str:
    return teacher if isinstance(teacher, str) else named_together(teacher)


class Term(Options):
    """What every term has."""

    loss: str
    weight: Weight = 1.0

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """The teachers that it learns from, each as `by_dataset.py` says it."""
        return ()

    @property
    def name(self) -> str:
        """What logs call it: "labels", "kd:cnn", "hint:cnn/stage2"."""
        return self.loss

    @property
    def layout(self) -> tuple[str | int, ...]:
        """What the shapes of all that it learns depend on, student and teacher apart."""
        return (self.loss, self.name)


class LabelsTerm(Term):
    """Cross-entropy to the labels."""

    loss: Literal["labels"]
    smoothing: Fraction = 0.0  # share of the mass that is spread evenly over all classes


class SoftTerm(Term):
    """A term on the soft targets of one teacher, which may be another in each dataset, or of several mixed.

    `mixing` says how, for each row: "weights", all of them as `teachers` weighs them; "most_confident", the one whose
    likeliest class has most probability at temperature 1; "correct", those whose likeliest class is the label, as
    `teachers` weighs them, and all where none is.
    """

    teacher: Teacher | None = None
    teachers: Teachers | None = None
    mixing: Mixing = "weights"

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if (self.teacher is None) == (self.teachers is None):
            raise ValueError('give `teacher = "a"`, or `teachers = { a = 0.7, b = 0.3 }`')
        if self.teachers is None and self.mixing != "weights":
            raise ValueError(f'mixing = "{self.mixing}" chooses among `teachers`; there is one')
        if self.teachers is not None and self.mixing == "most_confident" and len(set(self.teachers.values())) > 1:
            raise ValueError('mixing = "most_confident" knows no weights; write `teachers = ["a", "b"]`')
        return self

    @property
    def shares(self) -> dict[str, float]:
        """What each teacher weighs; they sum to 1."""
        weights = {_name_of(self.teacher): 1.0} if self.teacher is not None else self.teachers or {}
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}

    @property
    def teacher_names(self) -> tuple[str, ...]:
        return tuple(self.shares)

    @property
    def name(self) -> str:
        chosen = "" if self.mixing == "weights" else f"({self.mixing})"
        return f"{self.loss}:{'+'.join(self.teacher_names)}{chosen}"


def _not_all_off(term: Any, *names: str) -> None:
    if not any(getattr(term, name) for name in names):
        raise ValueError(f"{' and '.join(names)} are all 0: nothing is left of {term.loss}")


class SoftenedTerm(SoftTerm):
    """A term whose temperature is the task's where the job leaves it out: 4 of images, 1 of tokens.

    Before the first step it is decided (`preparing/left_open.py`), and a run's record says which.
    """

    temperature: Temperature | None = None

    @property
    def at(self) -> float:
        """Return its temperature; undecided, that of images."""
        return SOFTENED if self.temperature is None else self.temperature


class KdTerm(SoftenedTerm):
    """KL divergence to a teacher's soft targets, both at `temperature`; of sparse ones, with the rest as one bucket."""

    loss: Literal["kd"]


class RandomSamplingTerm(SoftTerm):
    """Cross-entropy to classes that were drawn from the teacher."""

    loss: Literal["random_sampling"]
    less_entropy: bool = False  # report a divergence: less the teacher's entropy, which has no gradient


class StratifiedTerm(SoftTerm):
    """Cross-entropy to the kept classes exactly, and to draws from the rest."""

    loss: Literal["stratified"]
    less_entropy: bool = False


class MarginalSmoothingTerm(SoftTerm):
    """KD with the rest spread evenly over the classes that are not kept."""

    loss: Literal["marginal_smoothing"]
    temperature: Temperature = 1.0


class TopkBiasedTerm(SoftTerm):
    """KD on the kept classes alone, scaled up to sum to 1. Biased: a baseline."""

    loss: Literal["topk_biased"]
    temperature: Temperature = 1.0


class DkdTerm(SoftenedTerm):
    """Decoupled KD: whether the label, and which of the others."""

    loss: Literal["dkd"]
    alpha: Share = 1.0  # of the label against all others
    beta: Share = 8.0  # of the others among themselves

    @model_validator(mode="after")
    def _something(self) -> Self:
        _not_all_off(self, "alpha", "beta")
        return self


class NkdTerm(SoftTerm):
    """Normalised KD: the label at temperature 1, and which of the others at `temperature`."""

    loss: Literal["nkd"]
    temperature: Temperature = 1.0
    gamma: Share = 1.5  # of the others


class DistTerm(SoftTerm):
    """DIST: correlation of rows, and of columns over the batch."""

    loss: Literal["dist"]
    temperature: Temperature = 1.0
    beta: Share = 1.0  # of the rows
    gamma: Share = 1.0  # of the columns
    allow_approximate_columns: bool = False  # of sparse targets, with the rest spread evenly

    @model_validator(mode="after")
    def _something(self) -> Self:
        _not_all_off(self, "beta", "gamma")
        return self


class StandardisedTerm(SoftTerm):
    """KD of logits with mean 0 and deviation 1 in each row."""

    loss: Literal["standardised"]
    temperature: Temperature = 2.0


class ReverseKlTerm(SoftTerm):
    """KL divergence of the teacher from the student."""

    loss: Literal["reverse_kl"]
    temperature: Temperature = 1.0
    allow_bucket: bool = False  # of sparse targets, of whose rest a bucket recovers little


class JsdTerm(SoftTerm):
    """Generalised Jensen-Shannon divergence."""

    loss: Literal["jsd"]
    temperature: Temperature = 1.0
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of the teacher in the mixture


class SkewedKlTerm(SoftTerm):
    """KL divergence from the teacher to a mixture of it and the student."""

    loss: Literal["skewed_kl"]
    temperature: Temperature = 1.0
    skew: Annotated[float, Field(gt=0, lt=1)] = 0.1  # of the teacher in the mixture


class SkewedReverseKlTerm(SoftTerm):
    """KL divergence from the student to a mixture of it and the teacher."""

    loss: Literal["skewed_reverse_kl"]
    temperature: Temperature = 1.0
    skew: Annotated[float, Field(gt=0, lt=1)] = 0.1  # of the student in the mixture


class TotalVariationTerm(SoftTerm):
    """Half the sum of absolute differences."""

    loss: Literal["total_variation"]
    temperature: Temperature = 1.0


class LogitMseTerm(SoftTerm):
    """Squared distance of logits."""

    loss: Literal["logit_mse"]


class FeatureTerm(Term):
    """A term on a teacher's feature and a student's layer."""

    teacher: Teacher
    feature: Name
    student_layer: LayerName  # as in `named_modules()`: "network.stage2"

    @property
    def teacher_names(self) -> tuple[str, ...]:
        return (_name_of(self.teacher),)

    @property
    def name(self) -> str:
        return f"{self.loss}:{_name_of(self.teacher)}/{self.feature}"

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
        _not_all_off(self, "distance", "angle")
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


class VectorTerm(Term):
    """A term on a teacher's vectors and the student's own, of a task whose answers are vectors."""

    teacher: Teacher

    @property
    def teacher_names(self) -> tuple[str, ...]:
        return (_name_of(self.teacher),)

    @property
    def name(self) -> str:
        return f"{self.loss}:{_name_of(self.teacher)}"


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
        _not_all_off(self, "distance", "angle")
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


ObjectiveTerm = Annotated[
    LabelsTerm
    | KdTerm
    | RandomSamplingTerm
    | StratifiedTerm
    | MarginalSmoothingTerm
    | TopkBiasedTerm
    | DkdTerm
    | NkdTerm
    | DistTerm
    | StandardisedTerm
    | ReverseKlTerm
    | JsdTerm
    | SkewedKlTerm
    | SkewedReverseKlTerm
    | TotalVariationTerm
    | LogitMseTerm
    | HintTerm
    | CosineTerm
    | VidTerm
    | AttentionTerm
    | RkdTerm
    | SimilarityTerm
    | PktTerm
    | CrdTerm
    | VectorCosineTerm
    | VectorMseTerm
    | VectorRkdTerm
    | VectorSimilarityTerm
    | VectorPktTerm
    | InfoNceTerm,
    Field(discriminator="loss"),
]
