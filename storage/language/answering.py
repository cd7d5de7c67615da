"""Encoders as modules: a model of transformers behind what makes its one answer for each text, or picture.

As a teacher has them and as a student does, under the same names of layers.

B rows, L positions, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from storage.language.pooling import Pooling

LEAST = 1e-9  # of what a mean is divided by


def _mean(hidden_BLD: Tensor, mask_BL1: Tensor) -> Tensor:
    return (hidden_BLD * mask_BL1).sum(1) / mask_BL1.sum(1).clamp(min=LEAST)


def _max(hidden_BLD: Tensor, mask_BL1: Tensor) -> Tensor:
    return hidden_BLD.masked_fill(mask_BL1 == 0, -torch.inf).amax(1)


def _first(hidden_BLD: Tensor, mask_BL1: Tensor) -> Tensor:
    return hidden_BLD[:, 0]


def _last(hidden_BLD: Tensor, mask_BL1: Tensor) -> Tensor:
    last_B = mask_BL1[..., 0].sum(1).long().clamp(min=1) - 1
    return hidden_BLD[torch.arange(len(last_B), device=last_B.device), last_B]


POOLED: dict[Pooling, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "cls": _first,
    "max": _max,
    "lasttoken": _last,
}
"""By its name, from hidden states and where there is a token, to (B, D)."""


def padded_as(model: Any, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Return ids, int64 (B, L), with the model's own id of padding where the mask is false.

    Most models leave out what the mask does not name; classifiers on a causal model look for the last other id alone.
    """
    padding = model.config.get_text_config().pad_token_id
    return tokens_BL if padding is None else tokens_BL.masked_fill(~mask_BL, padding)


class Embedding(nn.Module):
    """A vector for each text: the model's last hidden states, pooled over its tokens, and perhaps of length 1.

    Source: Reimers and Gurevych 2019 (Sentence-BERT), section 3, arXiv 1908.10084.
    """

    base_model_prefix = "model"  # before the names of a plain model's tensors, as in models of transformers

    def __init__(self, model: Any, pooling: Pooling, *, normalize: bool):
        super().__init__()
        self.model = model
        self.pooling, self.normalize = pooling, normalize

    def forward(self, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return vectors (B, D) of int64 tokens (B, L); `mask_BL` is false at padding."""
        hidden_BLD = self.model(input_ids=tokens_BL, attention_mask=mask_BL.long()).last_hidden_state
        vectors_BD = POOLED[self.pooling](hidden_BLD, mask_BL[:, :, None].to(hidden_BLD.dtype))
        return functional.normalize(vectors_BD, dim=1) if self.normalize else vectors_BD


class ImageClassifier(nn.Module):
    """Scores of classes for each picture."""

    base_model_prefix = "model"

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return logits (B, C) of pictures (B, channels, H, W), normalised as the model was trained."""
        logits_BC: Tensor = self.model(pixel_values=pixels_BCHW).logits
        return logits_BC


class TextClassifier(nn.Module):
    """Scores of classes for each text."""

    base_model_prefix = "model"

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        config = model.config.get_text_config()
        if config.pad_token_id is not None and config.pad_token_id < 0:  # some configs say so that there is none
            config.pad_token_id = None  # so that a model which needs one says so

    def forward(self, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return logits (B, C) of int64 tokens (B, L); `mask_BL` is false at padding."""
        ids_BL = padded_as(self.model, tokens_BL, mask_BL)
        logits_BC: Tensor = self.model(input_ids=ids_BL, attention_mask=mask_BL.long()).logits
        return logits_BC
