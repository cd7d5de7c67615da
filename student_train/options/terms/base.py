"""What every term has, and the types of what they are told."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints

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


def name_of(teacher: str | dict[str, str]) -> str:
    """Return how a teacher, or one of each dataset, is called in the name of a term."""
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


def not_all_off(term: Any, *names: str) -> None:
    """Check that not all of these parts of a loss are switched off. Raises ValueError."""
    if not any(getattr(term, name) for name in names):
        raise ValueError(f"{' and '.join(names)} are all 0: nothing is left of {term.loss}")
