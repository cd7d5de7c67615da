"""A classifier of images as a module: a model of transformers behind what makes its one answer for each row. B rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ImageClassifier(nn.Module):
    """Scores of classes for each image in [0, 1], normalised as the model's own preprocessor would."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, mean: list[float], std: list[float]):
        super().__init__()
        self.model = model
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return logits (B, C) of images (B, channels, H, W)."""
        logits_BC: Tensor = self.model(pixel_values=(pixels_BCHW - self.mean) / self.std).logits
        return logits_BC
