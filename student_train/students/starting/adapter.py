"""An adapter: the weights that a student starts from stay as they are, and products of low rank are added and trained.

The package peft puts them into the network as it is, so that layers keep their names. What is written is a plain
student, the products added to the weights, with the adapter beside.

Source: Hu et al. 2021 (LoRA).
"""

from __future__ import annotations

import copy
import warnings
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from storage.errors import BadRequest, missing_extra
from student_train.options.model import LoraOptions
from student_train.students.build import Student
from student_train.students.tensors import shared_names

WHAT = 'adapter = { kind = "lora" }'
ADDED = ".lora_"  # in the names of what an adapter adds
BASE = ".base_layer."  # in those of what it is added to
NAME = "default"  # peft's, of the one adapter that there is


def adapt(student: Student, options: LoraOptions) -> None:
    """Add an adapter to a student's network, drawn from torch's global generator, and freeze all else.

    Raises:
        BadRequest: peft is not installed; a target names no layer, or one that cannot have an adapter.
    """
    if find_spec("peft") is None:
        raise missing_extra(WHAT, "no peft", "transformers")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except (ImportError, RuntimeError) as error:  # it imports what it finds: torchvision may be there and broken
        raise missing_extra(WHAT, str(error), "transformers") from None
    targets = _targets(student, options)
    config = LoraConfig(
        r=options.rank, lora_alpha=options.scale, lora_dropout=options.dropout, target_modules=targets, bias="none"
    )
    base = [name for name, _ in student.named_parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells of matrices that lie transposed, as GPT-2's do, and sees to it
        try:
            inject_adapter_in_model(config, student.network)
        except ValueError as error:
            raise BadRequest(
                "these layers cannot have an adapter", found=str(error)[:300], do="name linear layers in `targets`"
            ) from None
    student.requires_grad_(False)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(ADDED in name)
    moved = {name: name for name in base} | {name.replace(BASE, "."): name for name, _ in student.named_parameters()}
    student.frozen = frozenset(moved[name] for name in base)


def adapter_tensors(student: Student) -> dict[str, Tensor]:
    """Return the tensors of a student's adapter by name, as peft has them; none where there is no adapter."""
    added = {name: tensor for name, tensor in student.network.state_dict().items() if ADDED in name}
    return {name.replace(f".{NAME}.", "."): tensor for name, tensor in added.items()}


def merged(student: Student) -> Student:
    """Return a plain student that says the same: the products are added to the weights."""
    if not student.frozen:
        return student
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = copy.deepcopy(student)
    for name, layer in list(plain.network.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(adapter_names=[NAME])
            parent, _, child = name.rpartition(".")
            setattr(plain.network.get_submodule(parent), child, layer.get_base_layer())
    plain.frozen = frozenset()
    return plain.requires_grad_(False)


def target_names(student: Student) -> list[str]:
    """Return the names of a network's linear layers: those that may have an adapter."""
    return [name for name, module in student.network.named_modules() if _is_linear(module)]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's, a linear layer turned


def _targets(student: Student, options: LoraOptions) -> list[str]:
    """Return the names of the layers that get a product. Raises BadRequest."""
    there = target_names(student)
    asked = options.targets if options.targets is not None else _usual(student, there)
    found = {target: [name for name in there if name == target or name.endswith(f".{target}")] for target in asked}
    shared = shared_names(student.network)
    twice = {*shared, *shared.values()}
    own = [name for name in there if f"{name}.weight" not in twice]
    if unmatched := [target for target, names in found.items() if not names]:
        raise BadRequest(
            "a target of the adapter matches no linear layer",
            found=", ".join(unmatched),
            expected=", ".join(dict.fromkeys(name.rpartition(".")[2] for name in own)) or "a network that has some",
            do="`targets` are the last parts of names of linear layers",
        )
    names = list(dict.fromkeys(name for each in found.values() for name in each))
    if tied := [name for name in names if f"{name}.weight" in twice]:
        raise BadRequest(
            "an adapter cannot be merged into a weight that two layers share",
            found=", ".join(tied),
            expected="layers with weights of their own",
            do="leave them out of `targets`; or untie them, options = { tie_word_embeddings = false }",
        )
    return names


def _usual(student: Student, there: list[str]) -> list[str]:
    """Return the targets that peft has for a kind of model; of others every linear layer but the head."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL

    network: Any = student.network
    kind = getattr(getattr(network, "config", None), "model_type", None)
    if kind in USUAL:
        return list(USUAL[kind])
    head = network.get_output_embeddings() if hasattr(network, "get_output_embeddings") else None
    modules = dict(network.named_modules())
    return [name for name in there if modules[name] is not head and name.rpartition(".")[2] != "head"]
