"""Terms on labels and on a teacher's soft targets."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from student_train.options.terms.base import (
    SOFTENED,
    Fraction,
    Mixing,
    Share,
    Teacher,
    Teachers,
    Temperature,
    Term,
    name_of,
    not_all_off,
)


class LabelsTerm(Term):
    """Cross-entropy to the labels.

    Attributes:
        smoothing: share of the mass that is spread evenly over all classes.
        where_labelled: rows without a label, as those of a transfer set, count as 0 in its mean; else they are refused.
    """

    loss: Literal["labels"]
    smoothing: Fraction = 0.0
    where_labelled: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is the cross-entropy to a label of every row, and no more."""
        return not self.smoothing and not self.where_labelled


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
        weights = {name_of(self.teacher): 1.0} if self.teacher is not None else self.teachers or {}
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}

    @property
    def teacher_names(self) -> tuple[str, ...]:
        return tuple(self.shares)

    @property
    def name(self) -> str:
        chosen = "" if self.mixing == "weights" else f"({self.mixing})"
        return f"{self.loss}:{'+'.join(self.teacher_names)}{chosen}"


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
        not_all_off(self, "alpha", "beta")
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
        not_all_off(self, "beta", "gamma")
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
