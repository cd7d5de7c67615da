"""How soft targets are stored: one file per encoding, each with encode, decode, what it serves, and bytes per row."""

from storage.encodings.dense import DenseEncoding, FeatureEncoding

__all__ = ["DenseEncoding", "FeatureEncoding"]
