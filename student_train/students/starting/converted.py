"""Weights of a model's folder under the names that the model has for them, where the library stores them under others.

transformers has renamed layers and joined experts of some models since their weights were saved, and saves them as they
were: the head of a GPT-NeoX is `embed_out` in a file and `lm_head` in the model.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from storage.language.model_folder import CONFIG, weights_files

WRAPPED = "model"  # within what answers about a whole text


class Converted(NamedTuple):
    """Weights by name in a network.

    Attributes:
        tensors: those that the model has, shared ones once; on the meta device where only shapes were asked for.
        unused: names of those in the files that it does not have.
    """

    tensors: dict[str, Tensor]
    unused: tuple[str, ...]


def is_stored_otherwise(path: Path, network: nn.Module) -> bool:
    """Return whether the library stores the model of a folder under other names than a network has."""
    model, _ = _model_within(network)
    if model is None or not (path / CONFIG).exists():
        return False
    from transformers import conversion_mapping

    try:
        config = json.loads((path / CONFIG).read_bytes())
    except ValueError:
        return False  # whatever it is, its tensors are taken by their names
    if not isinstance(config, dict) or config.get("model_type") != model.config.model_type:
        return False
    changes = conversion_mapping.get_model_conversion_mapping(model, add_legacy=False)
    return any(type(change).__name__ != "PrefixChange" for change in changes)


def converted(path: Path, network: nn.Module, *, values: bool) -> Converted:
    """Return the weights of a folder under a network's names, as the library loads them.

    Args:
        path: of a folder that `is_stored_otherwise`.
        network: whose names are meant; it may have fewer layers.
        values: whether they are read, in the precision that is stored.
    """
    from transformers import AutoConfig

    model, prefix = _model_within(network)
    stored: dict[str, Tensor] = {}
    for file in weights_files(path):
        with safe_open(path / file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                part = opened.get_slice(name)
                stored[name] = opened.get_tensor(name) if values else _shape_of(part)
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # what is not there is drawn, and left out
        warnings.simplefilter("ignore")
        loaded, found = type(model).from_pretrained(
            None,
            config=config,
            state_dict=stored,
            dtype="auto",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=True,
            **({} if values else {"device_map": {"": "meta"}}),
        )
    absent = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    tensors, seen = {}, set[int]()
    for name, tensor in loaded.state_dict(keep_vars=True).items():
        if name not in absent and id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[prefix + name] = tensor.detach()
    return Converted(tensors, tuple(sorted(found["unexpected_keys"])))


def _model_within(network: nn.Module) -> tuple[Any, str]:
    """Return the model of the library in a network, and what is before its names there; None: there is none."""
    for model, prefix in ((network, ""), (getattr(network, WRAPPED, None), f"{WRAPPED}.")):
        if hasattr(model, "base_model_prefix") and hasattr(model, "from_pretrained"):
            return model, prefix
    return None, ""


def _shape_of(part: Any) -> Tensor:
    dtype = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return torch.empty(part.get_shape(), dtype=dtype.get(part.get_dtype(), torch.float32), device="meta")
