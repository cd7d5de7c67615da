"""What a student begins as: the weights that it starts from. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from storage.options import JobPath, Options

Layers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)]


class StartOptions(Options):
    """The weights that a student starts from; they are taken by name and shape.

    Attributes:
        path: a safetensors file, a run's folder, or a model's folder; None: the student's own `path`.
        layers: of these weights, one for each of the student's layers in order: [0, 2, 4, 6] cuts a student of 4 layers
            from a model of 7 or more. None: each layer has its own number.
    """

    path: JobPath | None = None
    layers: Layers | None = None


def _start(value: Any) -> Any:
    """Return the section that `true`, `false` or a path is short for."""
    if isinstance(value, bool):
        return {} if value else None
    return {"path": value} if isinstance(value, str | Path) else value


Start = Annotated[StartOptions | None, BeforeValidator(_start)]
"""`true`: the weights in the student's own `path`; a path: those; or a section."""
