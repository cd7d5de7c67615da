"""How a student's network is called: as one function, or in two parts whose logits never exist for a whole batch.

B rows, N sites, D width, C classes.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class Calling(Protocol):
    """A way.

    Attributes:
        in_two_parts: whether `hidden` gives hidden states, of which `scores` makes logits.
    """

    in_two_parts: bool

    def logits(self, network: Any, *given: Tensor) -> Tensor:
        """Return the network's own logits (B, *sites, C)."""

    def hidden(self, network: Any, *given: Tensor) -> Tensor:
        """Return what `scores` makes logits of: hidden states (B, *sites, D); of a network in one part the logits."""

    def scores(self, network: Any, hidden_ND: Tensor) -> Tensor:
        """Return the logits (N, C) of some sites' hidden states (N, D)."""


class AsOne:
    """The network is one function."""

    in_two_parts = False

    def logits(self, network: nn.Module, *given: Tensor) -> Tensor:
        logits_BC: Tensor = network(*given)
        return logits_BC

    def hidden(self, network: nn.Module, *given: Tensor) -> Tensor:
        return self.logits(network, *given)

    def scores(self, network: nn.Module, hidden_ND: Tensor) -> Tensor:
        return hidden_ND


class BodyAndHead(AsOne):
    """The network has the two children `body` and `head`, and is no more than both."""

    in_two_parts = True

    def hidden(self, network: Any, *given: Tensor) -> Tensor:
        hidden_BD: Tensor = network.body(*given)
        return hidden_BD

    def scores(self, network: Any, hidden_ND: Tensor) -> Tensor:
        logits_NC: Tensor = network.head(hidden_ND)
        return logits_NC
