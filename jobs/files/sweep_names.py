"""Names of the students of a sweep: `mlp-learning_rate_0.01-seed_0`, from what varies.

A name depends on the keys that vary and on its own values alone, so that a value which is added to a sweep later does
not rename the students that are there.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import TypeAdapter, ValidationError

from storage.digests import digest
from storage.options import Name

LONGEST_NAME = 64  # of storage.options.Name
LONGEST_LABELS = 32  # of one sweep, together
DIGEST_LENGTH = 10

_NAME: TypeAdapter[str] = TypeAdapter(Name)


def swept_name(base: Any, labels: list[str], tokens: list[str]) -> Any:
    """Return a student's name; the end of one that is too long becomes a digest of the whole.

    A base that is no valid name is returned as it is, to be refused as such.
    """
    try:
        _NAME.validate_python(base, strict=True)
    except ValidationError:
        return base
    name = "-".join([base, *(f"{label}_{token}" for label, token in zip(labels, tokens, strict=True))])
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - DIGEST_LENGTH - 1]}-{digest(name.encode())[:DIGEST_LENGTH]}"


def labels_of(keys: list[tuple[str, ...]]) -> list[str]:
    """Return what a name calls each dotted key: the shortest end that no other one has, `seed` or `kd.weight`.

    Of keys that are long together, words are cut to as few letters as tell them apart: `lr`, `k.w`.
    """
    labels = [_text(".".join(_end(key, keys))) for key in keys]
    if sum(map(len, labels)) <= LONGEST_LABELS:
        return labels
    cuts = (_cut(labels, letters) for letters in range(1, max(map(len, labels))))
    return next((cut for cut in cuts if len(set(cut)) == len(labels)), labels)


def token(value: Any) -> str:
    """Return a value as it is written in a name: letters, digits, `_ . -`.

    Numbers are written without what does not tell them apart: 1 for 1.0, 1e16 for 1e+16. A text with other characters
    ends in its digest.
    """
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value).removesuffix(".0").replace("+", "")
        case list():
            return "_".join(map(token, value)) or "none"
        case dict():
            return "_".join(f"{_text(key)}_{token(below)}" for key, below in value.items()) or "none"
    return _text(str(value))


def _end(key: tuple[str, ...], keys: list[tuple[str, ...]]) -> tuple[str, ...]:
    shortest = 2 if key[-1].isdecimal() else 1  # a position says nothing without what it is in
    for length in range(shortest, len(key)):
        if sum(other[-length:] == key[-length:] for other in keys) == 1:
            return key[-length:]
    return key


def _cut(labels: list[str], letters: int) -> list[str]:
    return [re.sub(rf"([A-Za-z]{{1,{letters}}})[A-Za-z]*_?", r"\1", label) for label in labels]


def _text(text: str) -> str:
    written = re.sub(r"[^A-Za-z0-9_.-]", "_", text)
    return written if written == text != "" else f"{written}_{digest(text.encode())[:DIGEST_LENGTH]}"
