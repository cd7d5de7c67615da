"""How an encoding is written in a job, and called in a table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from storage.encodings.dense import DenseEncoding
from storage.encodings.none import NoEncoding
from storage.encodings.vectors import VectorEncoding

if TYPE_CHECKING:
    from storage.encodings import AnyEncoding


def short_name(encoding: AnyEncoding) -> str:
    """Return a name for a line of a table: `dense fp16`, `sparse k=64 8bit`."""
    if isinstance(encoding, DenseEncoding):
        return f"dense {encoding.dtype}"
    if isinstance(encoding, VectorEncoding):
        return f"vectors {encoding.dtype}"
    if isinstance(encoding, NoEncoding):
        return "features alone"
    parts = [f"k={encoding.k}"] * bool(encoding.k) + [f"n={encoding.n}"] * bool(encoding.n)
    parts += [] if encoding.p is None else [f"p={encoding.p:g}"]
    parts += [encoding.values] * bool(encoding.k)
    return " ".join(["sparse", *parts])


def as_toml(encoding: AnyEncoding) -> str:
    """Return the line of a `[[teacher]]` that asks for an encoding; defaults are left out."""
    values = {"kind": encoding.kind} | encoding.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    return f"encoding = {{ {', '.join(f'{key} = {_toml(value)}' for key, value in values.items())} }}"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return f"{value:g}" if isinstance(value, float) and value.is_integer() else json.dumps(value)
