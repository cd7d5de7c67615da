"""Neurons of the perceptrons of models of transformers, found by the names that their layers have.

A graph of dependencies follows each number of an attention through its turning and its masks, and takes minutes for a
language model of two layers. Here a perceptron is what its layers are called: some make neurons, and one reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from teacher_cache.making.ways.coupled import Side, Units

if TYPE_CHECKING:
    from torch import nn

LIBRARY = "transformers."
PERCEPTRONS = (  # layers that make the neurons, and the one that reads them, within one module
    (("gate_proj", "up_proj"), "down_proj"),  # Llama, Qwen, Mistral, Gemma, OLMo
    (("gate_up_proj",), "down_proj"),  # Phi-3: gates, then what is let through
    (("up_proj",), "down_proj"),
    (("dense_h_to_4h",), "dense_4h_to_h"),  # GPT-NeoX, BLOOM, Falcon
    (("fc1",), "fc2"),  # OPT, Phi
)


def find_neurons(network: nn.Module) -> tuple[Units, ...]:
    """Return the neurons of each perceptron of transformers whose layers have such names; none of other networks.

    Somebody's own `fc1` and `fc2` may have anything between them, and other layers beside them.
    """
    layers = dict(network.named_modules())
    found = (_neurons(name, layers) for name, layer in layers.items() if type(layer).__module__.startswith(LIBRARY))
    return tuple(each for each in found if each is not None)


def _neurons(module: str, layers: Mapping[str, Any]) -> Units | None:
    import torch
    from torch import nn

    inner = f"{module}." if module else ""
    for makers, reader in PERCEPTRONS:
        names = [f"{inner}{name}" for name in (*makers, reader)]
        if not all(isinstance(layers.get(name), nn.Linear) for name in names):
            continue
        width = layers[names[-1]].in_features
        sides = []
        for name in names[:-1]:
            times, rest = divmod(layers[name].out_features, width)
            if rest or times > 2:  # gates at most, beside what they let through
                return None
            sides.append(Side(name, "out", torch.arange(times * width).view(times, width).T))
        return Units(names[0], width, (*sides, Side(names[-1], "in", torch.arange(width)[:, None])))
    return None
