"""What a student begins as: the weights that it starts from, and an adapter on top of them. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from storage.options import JobPath, Options

Layers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)]
Targets = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False, min_length=1)]


class StartOptions(Options):
    """The weights that a student starts from; they are taken by name and shape.

    Attributes:
        path: a safetensors file, a run's folder, or a model's folder; None: the student's own `path`.
        layers: of these weights, one for each of the student's layers in order: [0, 2, 4, 6] cuts a student of 4 layers
            from a model of 7 or more. None: each layer has its own number.
    """

    path: JobPath | None = None
    layers: Layers | None = None


class LoraOptions(Options):
    """An adapter: the weights that a student starts from stay as they are, products of low rank are added and trained.

    Attributes:
        kind: the one that there is.
        rank: of each product.
        alpha: what is added is the product times alpha / rank; None: twice the rank.
        targets: last parts of the names of linear layers that get one; None: those that peft has for this kind of
            model, and of others every linear layer but the head.
        dropout: share of a target's inputs that a training step leaves out of the product.

    Source: Hu et al. 2021 (LoRA).
    """

    kind: Literal["lora"]
    rank: Annotated[int, Field(ge=1)]
    alpha: Annotated[float, Field(gt=0)] | None = None
    targets: Targets | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def scale(self) -> float:
        """Return alpha."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


class QuantizeOptions(Options):
    """Weights of linear layers and convolutions that are rounded while they are trained, and written as int8 codes.

    Attributes:
        kind: the one that there is.
        per: whether each output of a layer has a step of its own, or all have one.

    Source: Jacob et al. 2018, arXiv 1712.05877; gradients pass straight through (Bengio et al. 2013, arXiv 1308.3432).
    """

    kind: Literal["int8"]
    per: Literal["channel", "tensor"] = "channel"


def _quantize(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


Quantize = Annotated[QuantizeOptions | None, BeforeValidator(_quantize)]
"""`"int8"`, or a section."""


def _start(value: Any) -> Any:
    """Return the section that `true`, `false` or a path is short for."""
    if isinstance(value, bool):
        return {} if value else None
    return {"path": value} if isinstance(value, str | Path) else value


Start = Annotated[StartOptions | None, BeforeValidator(_start)]
"""`true`: the weights in the student's own `path`; a path: those; or a section."""
