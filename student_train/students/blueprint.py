"""What a student is, as data: all that is needed to build one, weights apart."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from storage.options import Options

Size = Annotated[int, Field(ge=1)]
Numbers = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]


class Blueprint(Options):
    """All that is needed to build a student, weights apart.

    Attributes:
        architecture: a built-in one, or `module:factory`.
        options: of the architecture.
        num_classes: of a row, or ids of the vocabulary.
        input_shape: of one row, (L,) for tokens.
        mean, std: normalisation of inputs in [0, 1]; None for tokens, which have none.
        tokenizer: fingerprint of the tokenizer whose ids it knows, if that was known.
    """

    architecture: str
    options: dict[str, Any] = Field(default={})
    num_classes: Size
    input_shape: Annotated[tuple[Size, ...], Field(strict=False, min_length=1)]
    mean: Numbers | None
    std: Numbers | None
    tokenizer: str | None = None

    @property
    def of_tokens(self) -> bool:
        """Whether its inputs are tokens, (B, L) int64, and its logits (B, L, C)."""
        return self.mean is None
