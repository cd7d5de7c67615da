"""The terms of an objective, as a job file writes them; `losses/` holds what each of them computes.

base.py         what every term has
on_targets.py   on labels and soft targets
on_features.py  on what layers say
on_vectors.py   on answers that are vectors

No torch here, so that a job file is checked before anything slow is imported.
"""

from typing import Annotated

from pydantic import Field

from student_train.options.terms.base import SOFTENED, Fraction, Mixing, Term
from student_train.options.terms.on_features import (
    AttentionTerm,
    CosineTerm,
    CrdTerm,
    FeatureTerm,
    HintTerm,
    PktTerm,
    ProjectedTerm,
    RkdTerm,
    SimilarityTerm,
    VidTerm,
)
from student_train.options.terms.on_targets import (
    DistTerm,
    DkdTerm,
    JsdTerm,
    KdTerm,
    LabelsTerm,
    LogitMseTerm,
    MarginalSmoothingTerm,
    NkdTerm,
    RandomSamplingTerm,
    ReverseKlTerm,
    SkewedKlTerm,
    SkewedReverseKlTerm,
    SoftenedTerm,
    SoftTerm,
    StandardisedTerm,
    StratifiedTerm,
    TopkBiasedTerm,
    TotalVariationTerm,
)
from student_train.options.terms.on_vectors import (
    InfoNceTerm,
    TargetMseTerm,
    VectorCosineTerm,
    VectorMseTerm,
    VectorPktTerm,
    VectorRkdTerm,
    VectorSimilarityTerm,
    VectorTerm,
)

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
    | TargetMseTerm
    | VectorCosineTerm
    | VectorMseTerm
    | VectorRkdTerm
    | VectorSimilarityTerm
    | VectorPktTerm
    | InfoNceTerm,
    Field(discriminator="loss"),
]

__all__ = [
    "SOFTENED",
    "AttentionTerm",
    "CosineTerm",
    "CrdTerm",
    "DistTerm",
    "DkdTerm",
    "FeatureTerm",
    "Fraction",
    "HintTerm",
    "InfoNceTerm",
    "JsdTerm",
    "KdTerm",
    "LabelsTerm",
    "LogitMseTerm",
    "MarginalSmoothingTerm",
    "Mixing",
    "NkdTerm",
    "ObjectiveTerm",
    "PktTerm",
    "ProjectedTerm",
    "RandomSamplingTerm",
    "ReverseKlTerm",
    "RkdTerm",
    "SimilarityTerm",
    "SkewedKlTerm",
    "SkewedReverseKlTerm",
    "SoftTerm",
    "SoftenedTerm",
    "StandardisedTerm",
    "StratifiedTerm",
    "TargetMseTerm",
    "Term",
    "TopkBiasedTerm",
    "TotalVariationTerm",
    "VectorCosineTerm",
    "VectorMseTerm",
    "VectorPktTerm",
    "VectorRkdTerm",
    "VectorSimilarityTerm",
    "VectorTerm",
    "VidTerm",
]
