"""No soft targets: of a teacher that is asked for features alone, whose scores are neither stored nor computed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from storage.encodings.base import Capability, Encoding

if TYPE_CHECKING:
    from torch import Tensor

FEATURES_ALONE = "features_alone"  # in `uses`: nothing of soft targets is there


class NoEncoding(Encoding):
    """Nothing of soft targets; there is no agreement with such a teacher, and no loss on what it says.

    >>> NoEncoding().serves, NoEncoding().bytes_per_row(1000)
    (('no soft targets: features alone',), 0)
    """

    soft: ClassVar[bool] = False

    kind: Literal["none"] = "none"
    statistics: bool = False

    @model_validator(mode="after")
    def _nothing_of_nothing(self) -> Self:
        if self.statistics or self.temperatures != [1.0] or self.standardised_temperatures:
            raise ValueError('kind = "none" keeps nothing of soft targets: leave out temperatures and statistics')
        return self

    @property
    def serves(self) -> tuple[str, ...]:
        return ("no soft targets: features alone",)

    def lacks(self, need: Capability) -> str | None:
        if need.name == "vectors":
            return 'encoding = { kind = "vectors", dtype = "fp16" }'
        if need.name in ("draws", "stratified"):
            return f'encoding = {{ kind = "sparse", {"k = 16, " * (need.name == "stratified")}n = 50 }}'
        return 'encoding = { kind = "dense", dtype = "fp16" }'

    def array_names(self, needs: Iterable[Capability]) -> tuple[str, ...]:
        return ()

    def bytes_per_row(self, num_classes: int) -> int:
        return 0

    def encode(self, logits_BC: Tensor, *, num_classes: int, labels_B: Tensor, keys_B: Tensor) -> dict[str, Tensor]:
        """Return no array."""
        return {}
