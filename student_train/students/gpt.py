"""A causal transformer over tokens. B rows, L positions, D width, H heads, C ids of the vocabulary."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from storage.errors import BadRequest
from storage.inputs.packed import documents_of

MAX_DEPTH = 256  # keeps a damaged student.json from asking for any number of layers
INITIAL_DEVIATION = 0.02  # of GPT-2


def gpt(
    num_classes: int,
    input_shape: tuple[int, ...],
    *,
    depth: int = 4,
    width: int = 128,
    heads: int = 4,
    dropout: float = 0.0,
    tied: bool = True,
    end_of_text: int | None = None,
) -> nn.Module:
    """Return a transformer in two parts: `body`, from tokens to hidden states, and `head`, from those to logits.

    Layers to learn from are named `body.tokens`, `body.blocks.0`, …, and `body.norm`; each gives (B, L, D).

    Args:
        num_classes: of the vocabulary.
        input_shape: (L,); longer rows are refused, shorter ones are not.
        depth: number of blocks.
        width: D, a multiple of `heads`.
        heads: of attention.
        dropout: share of the units after each attention and each perceptron that a training step leaves out.
        tied: the head is the embedding of tokens.
        end_of_text: id of the token that ends a document; what is after it sees nothing of what is before. None: every
            position sees all that are before it.

    Raises:
        BadRequest: inputs are no tokens; or it cannot be built in this size.

    Source: Radford et al. 2019 (GPT-2); blocks that normalise first, the initialisation of its section 2.3.
    """
    if len(input_shape) != 1:
        raise BadRequest(
            "architecture 'gpt' cannot take these inputs",
            found=f"inputs of shape {input_shape}",
            expected="tokens (L,)",
            do='a dataset of kind "text", "chat" or "tokens", or another architecture',
        )
    end_is_known = end_of_text is None or 0 <= end_of_text < num_classes
    good = 1 <= depth <= MAX_DEPTH and heads >= 1 and width >= 1 and width % heads == 0
    if not (good and 0 <= dropout < 1 and end_is_known):
        raise BadRequest(
            "a gpt of this size cannot be built",
            found=f"depth = {depth}, width = {width}, heads = {heads}, dropout = {dropout:g}, "
            f"end_of_text = {end_of_text}",
            expected=f"a depth of 1 to {MAX_DEPTH}, a width that is a multiple of heads, a dropout in [0, 1), and an "
            f"end_of_text below {num_classes}",
        )
    return Gpt(num_classes, input_shape[0], depth, width, heads, dropout, tied, end_of_text)


class Gpt(nn.Module):
    """`head(body(tokens))`."""

    def __init__(
        self,
        vocabulary: int,
        length: int,
        depth: int,
        width: int,
        heads: int,
        dropout: float,
        tied: bool,
        end_of_text: int | None,
    ):
        super().__init__()
        self.body = Body(vocabulary, length, depth, width, heads, dropout, end_of_text)
        self.head: nn.Module = Tied(self.body.tokens) if tied else nn.Linear(width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # The sum of 2·depth residual branches begins with the deviation of one.
                deviation = INITIAL_DEVIATION / (math.sqrt(2 * depth) if name.endswith("out.weight") else 1)
                nn.init.normal_(parameter, std=deviation)

    def forward(self, tokens_BL: Tensor, positions_BL: Tensor | None = None) -> Tensor:
        """Return logits (B, L, C) of int64 tokens (B, L), of several documents where positions begin anew."""
        logits_BLC: Tensor = self.head(self.body(tokens_BL, positions_BL))
        return logits_BLC


class Body(nn.Module):
    """From tokens (B, L) to hidden states (B, L, D)."""

    def __init__(
        self, vocabulary: int, length: int, depth: int, width: int, heads: int, dropout: float, end_of_text: int | None
    ):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList([Block(width, heads, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.end_of_text = end_of_text

    def forward(self, tokens_BL: Tensor, positions_BL: Tensor | None = None) -> Tensor:
        """Return hidden states; `positions_BL` count from the first of each document, None: from that of the row."""
        length = tokens_BL.shape[1]
        placed = self.positions.weight[:length] if positions_BL is None else self.positions(positions_BL)
        hidden_BLD = self.tokens(tokens_BL) + placed
        visible = visible_positions(tokens_BL, positions_BL, self.end_of_text)
        for block in self.blocks:
            hidden_BLD = block(hidden_BLD, visible)
        normed_BLD: Tensor = self.norm(hidden_BLD)
        return normed_BLD


class Block(nn.Module):
    """Attention and a perceptron, each added to what it was given."""

    is_block = True  # which may be run again in the backward pass (`recompute`)

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.perceptron = Perceptron(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_BLD: Tensor, visible: Tensor | None) -> Tensor:
        """Return hidden states of the same shape; `visible` as in `Attention`."""
        hidden_BLD = hidden_BLD + self.dropout(self.attention(self.norm1(hidden_BLD), visible))
        added_BLD: Tensor = hidden_BLD + self.dropout(self.perceptron(self.norm2(hidden_BLD)))
        return added_BLD


class Attention(nn.Module):
    """Causal attention of `heads` heads."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, hidden_BLD: Tensor, visible: Tensor | None) -> Tensor:
        """Return (B, L, D); `visible` (B, 1, L, L) says which positions each one sees, None: all up to itself."""
        # queries, keys and values first: 3 of (B, H, L, D / H)
        parts = self.queries_keys_values(hidden_BLD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries_BHLD, keys_BHLD, values_BHLD = parts.unbind(0)
        mixed_BHLD = functional.scaled_dot_product_attention(
            queries_BHLD, keys_BHLD, values_BHLD, attn_mask=visible, is_causal=visible is None
        )
        out_BLD: Tensor = self.out(mixed_BHLD.transpose(1, 2).flatten(2))
        return out_BLD


class Perceptron(nn.Module):
    """Four times as wide inside."""

    def __init__(self, width: int):
        super().__init__()
        self.into = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return (B, L, D)."""
        # tanh: as GPT-2 has it
        out_BLD: Tensor = self.out(functional.gelu(self.into(hidden_BLD), approximate="tanh"))
        return out_BLD


class Tied(nn.Module):
    """A head whose weight is that of an embedding, which is stored once."""

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self._embedding = (embedding,)  # in a tuple, or it would be a part of this module too

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits (…, C)."""
        return functional.linear(hidden, self._embedding[0].weight)


def visible_positions(tokens_BL: Tensor, positions_BL: Tensor | None, end_of_text: int | None) -> Tensor | None:
    """Return which positions each one sees, (B, 1, L, L) bool: those up to itself, of its own document.

    None: all up to itself.
    """
    if positions_BL is None and end_of_text is None:
        return None
    document_BL = torch.zeros_like(tokens_BL) if positions_BL is None else documents_of(positions_BL)
    if end_of_text is not None:
        ends_BL = tokens_BL == end_of_text
        document_BL = document_BL + ends_BL.cumsum(dim=1) - ends_BL.long()  # the end of a document belongs to it
    same_BLL = document_BL[:, :, None] == document_BL[:, None, :]
    return torch.ones_like(same_BLL).tril().logical_and(same_BLL)[:, None]
