"""A vector for each row: an embedding, or the numbers of a regression. B rows, S of a shard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from storage.tasks.base import Answered
from storage.tasks.one_class import OneClass

if TYPE_CHECKING:
    from torch import Tensor

    from storage.format.specs import DatasetSpec


class Vector(OneClass):
    """One vector for a row, whose width its teacher alone knows; a row is its only site, and needs no label."""

    name: ClassVar[Literal["vector"]] = "vector"
    inputs: ClassVar[tuple[str, ...]] = ("pixels", "values", "texts")
    has_classes = False
    encodings = ("vectors", "none")
    figure = "spearman"
    look_at = "whether teacher and dataset have one tokenizer, and at the teacher's weights"

    def num_classes(self, dataset: DatasetSpec) -> int:
        return 0

    def described(self, dataset: DatasetSpec) -> str:
        return "vectors"

    def row_columns(self, sites: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        return sites

    def standing(
        self, answered: Answered, num_classes: int, labels: Sequence[int], deviations: Sequence[float] = ()
    ) -> tuple[str, bool]:
        return "there is no chance to be better than: vectors have no classes", False

    def chance(self, num_classes: int, labels: Sequence[int]) -> float:
        return 0.0
