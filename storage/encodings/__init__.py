"""How soft targets are stored: one file per encoding, each with encode, decode, what it serves, and bytes per row.

    base.py        what every encoding offers
    dense.py       the logits, whole; and features
    sparse.py      the largest classes exactly, draws from the rest, and how much the rest is
    vectors.py     answers that are no classes, whole
    none.py        nothing, of a teacher asked for features alone
    statistics.py  what is kept of each row besides: masses at temperatures, moments, entropy
    fused.py       the same sums on a CUDA device, in two reads of the logits
    largest.py     the largest classes of a row, without sorting a vocabulary
    draws.py       classes drawn, a pure function of seed, sample and number
    never.py       classes that can never be
    packing.py     ids and log-probabilities in few bits
    naming.py      how an encoding is written in a job, and called in a table

`targets/` is what they are once decoded.
"""

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from storage.encodings.base import Capability, Encoded, Encoding
from storage.encodings.dense import DenseEncoding, FeatureEncoding
from storage.encodings.none import NoEncoding
from storage.encodings.sparse import SparseEncoding
from storage.encodings.vectors import VectorEncoding


def _kind(section: Any) -> Any:
    """Return which encoding a section of a job, or of a teacher's promise, is; without a `kind` it is dense."""
    return section.get("kind", "dense") if isinstance(section, dict) else getattr(section, "kind", None)


AnyEncoding = Annotated[
    Annotated[DenseEncoding, Tag("dense")]
    | Annotated[SparseEncoding, Tag("sparse")]
    | Annotated[VectorEncoding, Tag("vectors")]
    | Annotated[NoEncoding, Tag("none")],
    Discriminator(_kind),
]

__all__ = [
    "AnyEncoding",
    "Capability",
    "DenseEncoding",
    "Encoded",
    "Encoding",
    "FeatureEncoding",
    "NoEncoding",
    "SparseEncoding",
    "VectorEncoding",
]
