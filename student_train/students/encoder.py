"""A transformer encoder over texts: one answer for each row of tokens. B rows, L positions, D width, C classes."""

from __future__ import annotations

from torch import Tensor, nn

from storage.errors import BadRequest
from student_train.students.gpt import INITIAL_DEVIATION, MAX_DEPTH, Block


def encoder(
    num_classes: int,
    input_shape: tuple[int, ...],
    *,
    vocabulary: int | None = None,
    depth: int = 2,
    width: int = 128,
    heads: int = 4,
    dropout: float = 0.0,
) -> nn.Module:
    """Return a transformer whose positions all see each other, and whose row is the mean of them.

    Layers to learn from are named `pool` and `norm`; each gives (B, D), a vector for each row. With a depth of 0 it is
    a bag of embeddings, as fastText is: quick on any processor, and hard to beat where there are few rows.

    Args:
        num_classes: of a row.
        input_shape: (L,), the longest row.
        vocabulary: number of ids.
        depth: number of blocks.
        width: D, a multiple of `heads`.
        heads: of attention.
        dropout: share of the units of embeddings, after each attention and each perceptron, and of the mean, that a
            training step leaves out.

    Raises:
        BadRequest: inputs are no tokens; or it cannot be built in this size.

    Source: Devlin et al. 2019 (BERT), with blocks that normalise first; Joulin et al. 2017 for the bag.
    """
    if len(input_shape) != 1 or vocabulary is None:  # an option of its own
        raise BadRequest(
            "architecture 'encoder' cannot take these inputs",
            found=f"inputs of shape {input_shape}"
            + ("" if len(input_shape) != 1 else ", each position with an answer of its own"),
            expected="texts, each with one class",
            do='a dataset of kind "text" with a `label`, or another architecture',
        )
    good = 0 <= depth <= MAX_DEPTH and heads >= 1 and width >= 1 and width % heads == 0
    if not (good and 0 <= dropout < 1):
        raise BadRequest(
            "an encoder of this size cannot be built",
            found=f"depth = {depth}, width = {width}, heads = {heads}, dropout = {dropout:g}",
            expected=f"a depth of 0 to {MAX_DEPTH}, a width that is a multiple of heads, and a dropout in [0, 1)",
        )
    return Encoder(num_classes, vocabulary, input_shape[0], depth, width, heads, dropout)


class Encoder(nn.Module):
    """From tokens and a mask of those that are none of padding to one row of logits each."""

    def __init__(
        self, num_classes: int, vocabulary: int, length: int, depth: int, width: int, heads: int, dropout: float
    ):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width) if depth else None  # a bag has no order
        self.blocks = nn.ModuleList([Block(width, heads, dropout) for _ in range(depth)])
        self.pool = MaskedMean()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # as in `gpt`
                nn.init.normal_(
                    parameter, std=INITIAL_DEVIATION / ((2 * depth) ** 0.5 if name.endswith("out.weight") else 1)
                )

    def forward(self, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return logits (B, C) of int64 tokens (B, L); `mask_BL` is false at padding, whose ids are of no meaning."""
        hidden_BLD = self.tokens(tokens_BL)
        if self.positions is not None:
            hidden_BLD = hidden_BLD + self.positions.weight[: tokens_BL.shape[1]]
        hidden_BLD = self.dropout(hidden_BLD)
        # A row without any token sees its padding, or attention would divide 0 by 0.
        seen_BL = mask_BL | ~mask_BL.any(1, keepdim=True)
        for block in self.blocks:
            hidden_BLD = block(hidden_BLD, seen_BL[:, None, None])
        row_BD = self.norm(self.pool(hidden_BLD, mask_BL))
        logits_BC: Tensor = self.head(self.dropout(row_BD))
        return logits_BC


class MaskedMean(nn.Module):
    """The mean of the positions that a mask names."""

    def forward(self, hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return (B, D), zeros for a row without any."""
        weight_BL1 = mask_BL[:, :, None].to(hidden_BLD.dtype)
        mean_BD: Tensor = (hidden_BLD * weight_BL1).sum(1) / weight_BL1.sum(1).clamp(min=1)
        return mean_BD
