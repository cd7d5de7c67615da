"""The terms of an objective, as a job file writes them; `losses/` holds what each of them computes.

No torch here, so that a job file is checked before anything slow is imported.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from storage.options import Name, Options

LayerName = Annotated[str, StringConstraints(min_length=1)]
Weight = Annotated[float, Field(gt=0, le=1e6)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Temperature = Annotated[float, Field(gt=0, le=1000)]


class LabelsTerm(Options):
    """Cross-entropy to the labels."""

    loss: Literal["labels"]
    weight: Weight = 1.0
    smoothing: Fraction = 0.0  # share of the mass that is spread evenly over all classes


class KdTerm(Options):
    """KL divergence to a teacher's soft targets, both at `temperature`."""

    loss: Literal["kd"]
    teacher: Name
    weight: Weight = 1.0
    temperature: Temperature = 4.0


class HintTerm(Options):
    """Mean squared distance to a teacher's feature, through a learned projection of a student's layer."""

    loss: Literal["hint"]
    teacher: Name
    feature: Name
    student_layer: LayerName  # as in `named_modules()`: "network.stage2"
    weight: Weight = 1.0


ObjectiveTerm = Annotated[LabelsTerm | KdTerm | HintTerm, Field(discriminator="loss")]
