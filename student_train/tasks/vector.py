"""Students that answer with a vector: an embedding, or the numbers of a regression. B rows of a batch, D numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import polars as pl
import torch
from torch import Tensor

from storage.cache import Cache
from storage.encodings import Capability
from storage.errors import BadRequest
from storage.tasks import NO_LABEL, TASKS
from student_train.feed.selection import Selection
from student_train.options.terms import FeatureTerm, ObjectiveTerm, VectorTerm
from student_train.options.training import Figure
from student_train.tasks.base import Figures
from student_train.tasks.one_class import OneClassStudent

MOST_PREDICTED = 2**16  # rows whose vectors are kept of a student, in memory and in its file


class Vector(OneClassStudent):
    """A vector of each row, measured against the teacher's own: there is no label to be right about."""

    asked = TASKS["vector"]
    figures: ClassVar[Figures] = "vectors"
    pipeline_tag = "feature-extraction"
    report = replace(OneClassStudent.report, mistakes="texts")
    best_by: ClassVar[Figure] = "spearman"
    beside_teacher = True
    beside = Capability("vectors")
    predicted: ClassVar[dict[str, pl.DataType]] = {"vector": pl.List(pl.Float32)}
    unsteady: ClassVar[str | None] = (
        "vectors: of texts a batch is as long as its longest row, which is another length in each batch"
    )

    def refuse_losses(self, student: str, dataset: str, terms: Sequence[ObjectiveTerm]) -> None:
        if strange := [term.loss for term in terms if not isinstance(term, VectorTerm | FeatureTerm)]:
            raise BadRequest(
                f"student {student} has losses on classes, and the answers to {dataset} are vectors",
                found=", ".join(strange),
                expected="vector_cosine, vector_mse, vector_rkd, vector_similarity, vector_pkt, infonce, "
                "or a loss on features",
            )

    def held_sites(self, cache: Cache, selection: Selection, teacher: str | None, rows: pl.DataFrame) -> pl.DataFrame:
        return super().held_sites(cache, selection, None, rows.head(MOST_PREDICTED))

    def said(self, logits_BC: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        nothing_B = torch.full_like(logits_BC[:, 0], torch.nan, dtype=torch.float32)
        top_B = torch.full_like(labels_B, NO_LABEL)
        return {
            "top": top_B,
            "top_probability": nothing_B,
            "label_log_probability": nothing_B,
            "vector": logits_BC.float(),
        }
