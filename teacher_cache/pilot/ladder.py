"""Which encodings a pilot tries."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, FiniteFloat

from storage.encodings import AnyEncoding, DenseEncoding, SparseEncoding
from storage.errors import BadRequest
from storage.options import Options

KEPT = (2, 4, 16, 64, 256)
KEPT_TRIED = 3  # the largest of KEPT that are no more than half of the classes
DRAWN = 50  # about 12 distinct classes of a language model: Anshumann 2025, arXiv 2503.16870
DRAW_SETS = 16  # of unbiased draws, the mean gradient's angle is a fourth of a single one's
STATISTICS_OPTIONS = ("temperatures", "standardised_temperatures", "statistics")


class FidelityOptions(Options):
    """The `[fidelity]` of a job: how far stored targets may be from the teacher. Only `cache plan` reads it.

    Attributes:
        max_kl: mean KL(dense‖decoded) at temperature 1, nats.
    """

    max_kl: Annotated[FiniteFloat, Field(ge=0)] = 0.001


def ladder(num_classes: int, own: AnyEncoding) -> list[AnyEncoding]:
    """Return the encodings to try for so many classes, a job's own among them.

    All keep the same statistics as the job's own, and draw by its seed.
    """
    common: dict[str, Any] = {name: getattr(own, name) for name in STATISTICS_OPTIONS}
    kept = [k for k in KEPT if 2 * k <= num_classes][-KEPT_TRIED:]
    sparse = {"seed": own.seed if isinstance(own, SparseEncoding) else 0} | common
    tried: list[AnyEncoding] = [DenseEncoding(dtype=dtype, **common) for dtype in ("fp32", "fp16", "bf16", "int8")]
    for k in kept:
        tried += [SparseEncoding(k=k, values=values, **sparse) for values in ("fp16", "8bit")]
    tried += [SparseEncoding(k=k, n=DRAWN, values="8bit", **sparse) for k in kept[:1]]
    tried.append(SparseEncoding(n=DRAWN, **sparse))
    return [encoding for encoding in tried if _fits(encoding, num_classes)] + [own] * (own not in tried)


def is_unbiased(encoding: AnyEncoding) -> bool:
    """Return whether the mean gradient over many draws is the dense one's."""
    return isinstance(encoding, SparseEncoding) and encoding.n > 0


def _fits(encoding: AnyEncoding, num_classes: int) -> bool:
    try:
        encoding.check(num_classes)
    except BadRequest:
        return False
    return True
