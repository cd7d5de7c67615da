"""How soft targets are stored: one file per encoding, each with encode, decode, what it serves, and bytes per row."""

from storage.encodings.base import Capability, Encoded, Encoding
from storage.encodings.dense import DenseEncoding, FeatureEncoding

AnyEncoding = DenseEncoding

__all__ = ["AnyEncoding", "Capability", "DenseEncoding", "Encoded", "Encoding", "FeatureEncoding"]
