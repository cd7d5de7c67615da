"""A model in two parts, a body that runs once over a batch and a head for some of its sites at a time.

Logits of all sites of a batch might not fit, and are not wanted: a chat has a label at a few of its positions. The
parts are found by the names that students use, `body` and `head`, or as transformers' models have them. Whether
they say what the model itself says is tried, to the last bit: some models scale or cap their logits behind the head.

Shapes: B rows of a batch, L positions, N sites, D width, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from storage.errors import is_out_of_memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Call = Callable[[Any], Any]
"""Calls a model, or its body, about some rows (`Inputs.call`)."""

PART_OFF = 1e-2  # of the largest logit, by which those of some sites alone may differ: far more than rounding


class Rewriting:
    """A head that is one matrix, and writes logits where it wrote those before them.

    New memory for the logits of a vocabulary costs a processor a fifth of the time that it takes to fill it.
    """

    def __init__(self, linear: nn.Linear):
        self._linear = linear
        self._held_NC: Tensor | None = None

    def serves(self, hidden_ND: Tensor) -> bool:
        """Return whether it is a matrix and nothing else, on the host, in the type of these hidden states."""
        import torch

        weight_CD = self._linear.weight
        hooked = "forward" in self._linear.__dict__ or self._linear._forward_hooks or self._linear._forward_pre_hooks  # noqa: SLF001
        same = weight_CD.device.type == hidden_ND.device.type == "cpu" and weight_CD.dtype == hidden_ND.dtype
        plain = type(weight_CD) in (torch.Tensor, torch.nn.Parameter)  # codes of a quantiser say they are floats
        return same and plain and not hooked and not torch.is_autocast_enabled("cpu")

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """Return the logits of some sites, (N, C), until the next call."""
        import torch

        weight_CD, bias_C, sites = self._linear.weight, self._linear.bias, len(hidden_ND)
        if self._held_NC is None or len(self._held_NC) < sites or self._held_NC.dtype != weight_CD.dtype:
            self._held_NC = None  # before there is another
            self._held_NC = _in_huge_pages(max(1, sites), len(weight_CD), weight_CD.dtype)  # of none, no view
        out_NC = self._held_NC[:sites]
        if bias_C is None:
            return torch.mm(hidden_ND, weight_CD.T, out=out_NC)
        return torch.addmm(bias_C, hidden_ND, weight_CD.T, out=out_NC)


def _in_huge_pages(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Return memory of the host for a matrix; by NumPy, which asks for huge pages: what streams through is quicker."""
    import numpy as np
    import torch

    return torch.from_numpy(np.empty(rows * columns * dtype.itemsize, np.uint8)).view(dtype).view(rows, columns)


class Parts(NamedTuple):
    """A body, from what the model is called with to hidden states (B, L, D), and what makes logits of (1, N, D).

    `rewriting` says the same as the head, where that is one matrix.
    """

    body: nn.Module
    head: Callable[[Tensor], Tensor]
    rewriting: Rewriting | None = None

    def hidden(self, call: Call) -> Tensor:
        """Return the hidden states of a batch, (B, L, D)."""
        output: Any = call(self.body)
        hidden_BLD: Tensor = getattr(output, "last_hidden_state", output)
        return hidden_BLD

    def scores(self, hidden_ND: Tensor, *, again: bool = False) -> Tensor:
        """Return the logits of some sites, (N, C); `again`: perhaps in memory that the next such call writes to."""
        if again and self.rewriting is not None and self.rewriting.serves(hidden_ND):
            return self.rewriting(hidden_ND)
        logits_NC: Tensor = logits_of(self.head(hidden_ND[None]))[0]
        return logits_NC


def logits_of(output: Any) -> Any:
    """Return the logits in a model's output: many models of transformers return an object that has them."""
    return getattr(output, "logits", output)


def find_parts(model: nn.Module, call: Call, tapped: Collection[str]) -> Parts | None:
    """Return the parts of a model, or None: it has none, or none that say what it says.

    Args:
        model: in evaluation mode.
        call: about some rows to try it on.
        tapped: names of the layers that features are taken of, all of which must be the body's.
    """
    import torch

    for parts in _candidates(model, tapped):
        try:
            whole_BLC, hidden_BLD = logits_of(call(model)).float(), parts.hidden(call)
            said_BLC = logits_of(parts.head(hidden_BLD)).float()
            some_NC = parts.scores(hidden_BLD[0, 1:]).float()
        except (Exception, SystemExit) as error:  # the user's own model
            if is_out_of_memory(error):
                raise
            continue  # whatever it says to this, it is not two parts
        alike = some_NC.shape == whole_BLC[0, 1:].shape and torch.equal(said_BLC, whole_BLC)
        if alike and _about_same(some_NC, whole_BLC[0, 1:]):
            return parts._replace(rewriting=_rewriting(parts, hidden_BLD[0, 1:]))
    return None


def _rewriting(parts: Parts, hidden_ND: Tensor) -> Rewriting | None:
    """Return the head of a model as one that writes again where it wrote, if to the last bit it says the same."""
    import torch
    from torch import nn

    if type(parts.head) is not nn.Linear or not (rewriting := Rewriting(parts.head)).serves(hidden_ND):
        return None
    return rewriting if torch.equal(rewriting(hidden_ND), parts.scores(hidden_ND)) else None


def find_body(
    model: nn.Module,
    call: Call,
    tapped: Collection[str],
    heard: Callable[[Callable[[], Any]], Mapping[str, Any]],
) -> Parts | None:
    """Return the parts of a model whose body alone gives the same features, to the last bit; None: it has none.

    Args:
        model, call, tapped: as of `find_parts`; what the model returns is of no matter.
        heard: calls what it is given, and returns what the tapped layers said.
    """
    import torch

    for parts in _candidates(model, tapped):
        try:
            whole, alone = heard(lambda: call(model)), heard(lambda body=parts.body: call(body))  # type: ignore[misc]
            same = whole.keys() == alone.keys() and all(torch.equal(whole[name], alone[name]) for name in whole)
        except (Exception, SystemExit) as error:  # the user's own model; or what is no tensor
            if is_out_of_memory(error):
                raise
            continue
        if same:
            return parts
    return None


def _about_same(one: Tensor, other: Tensor) -> bool:
    import torch

    largest = float(other.nan_to_num(0.0, 0.0, 0.0).abs().max()) if other.numel() else 0.0
    return torch.allclose(one, other, rtol=0.0, atol=PART_OFF * largest, equal_nan=True)


def _candidates(model: nn.Module, tapped: Collection[str]) -> Iterator[Parts]:
    """Yield what may be a model's parts, from the simplest on, where all layers that are tapped are the body's."""
    modules = dict(model.named_modules())
    for parts in _all_candidates(model):
        inside = set(map(id, parts.body.modules()))
        if all(id(modules[name]) in inside for name in tapped):
            yield parts


def _all_candidates(model: nn.Module) -> Iterator[Parts]:
    from torch import nn

    children = dict(model.named_children())
    if children.keys() == {"body", "head"}:
        yield Parts(children["body"], children["head"])
    body = getattr(model, "base_model", None)
    body = getattr(model, "model", None) if body is None or body is model else body
    if not isinstance(body, nn.Module) or body is model:
        return
    if isinstance(head := _own_head(model), nn.Module):
        yield Parts(body, head)
    for name, child in children.items():
        if child is body:
            yield Parts(body, _behind(model, name))


def _own_head(model: nn.Module) -> Any:
    """Return what a model calls its head, or None."""
    try:
        return model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError):
        return None


def _behind(model: nn.Module, body: str) -> Callable[[Tensor], Any]:
    """Return all that a model does behind its body: it itself, with a body that hands on what it is given.

    Another object with the same layers, so that both may run at a time.
    """
    from torch import nn

    class HandsOn(nn.Module):
        def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
            from transformers.modeling_outputs import BaseModelOutputWithPast

            return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)

    rest = copy.copy(model)
    for bound in (
        "forward",
        "_old_forward",
        "_hf_hook",
    ):  # accelerate's, of layers on several devices: to the model itself
        rest.__dict__.pop(bound, None)
    rest.__dict__["_modules"] = model._modules | {body: HandsOn()}  # noqa: SLF001 - the model's own stay as they are
    return lambda hidden: rest(inputs_embeds=hidden)
