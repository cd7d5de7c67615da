"""A layer whose weights are int8 codes, after training; or one that is trained so that it can become one.

Weights are symmetric, code · step with codes from -127 to 127. Inputs are rounded to 256 steps of a range that holds 0,
so that padding is exact. What is computed is what an int8 kernel computes, up to rounding of its sums; here it is
computed in floats, which saves memory and no time. Norms, biases and embeddings stay floats.

While it is trained, a layer rounds its weights and inputs in each pass, and gradients pass straight through the
rounding; the range of its inputs is a moving average of what it was given.

Source: Jacob et al. 2018, arXiv 1712.05877, sections 2 and 3.1, batch norm not folded; Bengio et al. 2013, arXiv
1308.3432, for what passes straight through. Steps are not learned, as they are in Esser et al. 2020 (LSQ).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from student_train.students.remade.changes import Per
from student_train.students.remade.products import product

LARGEST = 127  # code of a weight
STEPS = 255  # between the least and the greatest input
MOMENTUM = 0.05  # of a batch in the range of inputs
SMALLEST = 1e-8  # step


class Codes(nn.Module):
    """A layer of codes.

    Args:
        layer: that it takes the place of; its weights are not looked at.
        per: what has a step of its own.

    Attributes:
        codes: int8, of the weights.
        step: (out, 1, …) of codes, or (1, …) for all.
        low, high: of the inputs.
    """

    codes: Tensor
    step: Tensor
    low: Tensor
    high: Tensor
    bias: Tensor | None

    def __init__(self, layer: Any, per: Per):
        super().__init__()
        weight = layer.weight.detach()
        self.register_buffer("codes", torch.zeros_like(weight, dtype=torch.int8))
        self.register_buffer("step", weight.new_ones(_step_shape(weight, per)))
        self.register_buffer("low", weight.new_zeros(()))
        self.register_buffer("high", weight.new_ones(()))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        self._product = layer._product if isinstance(layer, Rounded) else product(layer)  # noqa: SLF001

    @property
    def learned(self) -> list[Tensor]:
        """What were parameters before they were codes."""
        return [self.codes] if self.bias is None else [self.codes, self.bias]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the layer makes of its inputs."""
        rounded = _round_inputs(inputs, self.low, self.high)
        return self._product(rounded, self.codes.to(self.step.dtype) * self.step, self.bias)


class Rounded(nn.Module):
    """A layer in training whose weights will be codes.

    Args, low, high: as of `Codes`.
    """

    low: Tensor
    high: Tensor

    def __init__(self, layer: Any, per: Per):
        super().__init__()
        self.per = per
        self.weight, self.bias = layer.weight, layer.bias
        # none yet: the first batch tells; finite, for averages of weights are of these too
        self.register_buffer("low", layer.weight.new_zeros(()))
        self.register_buffer("high", layer.weight.new_zeros(()))
        self._product = product(layer)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the layer makes of its inputs; in training it looks at their range."""
        if self.training:
            self._look(inputs.detach())
        step = step_of(self.weight.detach(), self.per)
        weight = _straight_through(self.weight / step) * step
        return self._product(_round_inputs(inputs, self.low, self.high), weight, self.bias)

    def settled(self) -> Codes:
        """Return the layer of codes that it becomes, which says the same."""
        made = Codes(self, self.per)
        weight = self.weight.detach()
        step = step_of(weight, self.per)
        made.codes.copy_(codes_of(weight, step))
        for name, value in (("step", step), ("low", self.low), ("high", self.high)):
            getattr(made, name).copy_(value)
        return made.train(self.training)

    def _look(self, inputs: Tensor) -> None:
        seen = self.high > self.low
        for name, now in (("low", inputs.amin().clamp(max=0.0)), ("high", inputs.amax().clamp(min=0.0))):
            before, found = getattr(self, name), now.to(self.low.dtype)
            before.copy_(torch.where(seen, before + MOMENTUM * (found - before), found))


def ranges_of(network: nn.Module) -> set[str]:
    """Return the names of the tensors that tell the range of what layers are given, of those that round in training."""
    rounding = [name for name, layer in network.named_modules() if isinstance(layer, Rounded)]
    return {f"{name}.{end}" for name in rounding for end in ("low", "high")}


def step_of(weight: Tensor, per: Per) -> Tensor:
    """Return the step of a layer's codes, by its largest weight: (out, 1, …), or (1, …) for all."""
    axes = tuple(range(1, weight.ndim)) if per == "channel" else tuple(range(weight.ndim))
    return (weight.abs().amax(axes, keepdim=True) / LARGEST).clamp(min=SMALLEST)


def codes_of(weight: Tensor, step: Tensor) -> Tensor:
    """Return the codes of weights, int8."""
    return (weight / step).round().clamp(-LARGEST, LARGEST).to(torch.int8)


def _step_shape(weight: Tensor, per: Per) -> tuple[int, ...]:
    return (weight.shape[0] if per == "channel" else 1, *[1] * (weight.ndim - 1))


def _round_inputs(inputs: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return inputs rounded to steps of a range, one of which is 0; those outside of it are cut."""
    step = ((high - low) / STEPS).clamp(min=SMALLEST)
    zero = (-low / step).round()
    numbers = (inputs / step + zero).clamp(0, STEPS)  # beyond it no gradient passes
    return (_straight_through(numbers) - zero) * step


def _straight_through(values: Tensor) -> Tensor:
    """Return rounded values, with the gradient of those that were not."""
    return values + (values.round() - values).detach()
