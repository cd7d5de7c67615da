"""A student made smaller than its config, as a smaller config builds it: fewer blocks, narrower perceptrons."""

from __future__ import annotations

import re
from typing import Any

from storage.errors import BadRequest
from student_train.students import Blueprint, Dropped, Resized, Student, build_student
from student_train.students.transformers import of_layers

BLOCKS, WIDTH, INNER = "num_hidden_layers", "hidden_size", ("intermediate_size", "ffn_dim")  # OPT has another name
BLOCK = re.compile(r"^(.*)\.(\d+)$")  # one of a list


def of_its_config(student: Student, name: str) -> Student:
    """Return a student of transformers whose layers were changed, as one of a config of its own, unchanged.

    Args:
        student: whose blueprint has changes.
        name: of its run, for what is said.

    Raises:
        BadRequest: no config builds such layers.
    """
    blueprint = student.blueprint
    config, dropped = _config(student)
    if config is not None:
        options = blueprint.options | {"config": config}
        plain = build_student(Blueprint.model_validate(blueprint.model_dump() | {"options": options, "changes": ()}))
        try:
            plain.load_state_dict(_renumbered(student.state_dict(), dropped))
        except RuntimeError:  # names or shapes: the config builds others
            config = None
        else:
            plain.tokenizer = student.tokenizer
            return plain.eval()
    said = [f"layer {change.layer}, {change.kind}" for change in blueprint.changes]
    raise BadRequest(
        f"{name} has no equal in transformers",
        found=", ".join(said[:4]) + (f", and {len(said) - 4} more" if said[4:] else ""),
        expected="layers that some config has: whole blocks left out, perceptrons of one width in all others",
        do="--format onnx, safetensors or pt2, which take any student",
    )


def _config(student: Student) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the config of a smaller model, and the blocks that it lacks; None: its layers were changed otherwise."""
    changes, config = student.blueprint.changes, dict(student.blueprint.options.get("config", {}))
    model: Any = getattr(student.network, "model", student.network)
    names: dict[str, str] = getattr(model.config, "attribute_map", {})
    dropped = [change.layer for change in changes if isinstance(change, Dropped)]
    narrower = [change for change in changes if isinstance(change, Resized)]
    if not config or len(dropped) + len(narrower) < len(changes):
        return None, dropped
    if dropped:
        key = names.get(BLOCKS, BLOCKS)
        places = [found for each in dropped if (found := BLOCK.match(each)) is not None]
        if (
            len(places) < len(dropped)
            or len({found[1] for found in places}) > 1
            or not isinstance(config.get(key), int)
        ):
            return None, dropped
        gone = {int(found[2]) for found in places}
        kept = [number for number in range(config[key]) if number not in gone]
        config = of_layers(config, model.config, {key: len(kept)}, kept) | {key: len(kept)}
    if narrower:
        width: int = getattr(model.config, WIDTH, 0)
        inner = {size for change in narrower for size in change.shape if size != width} or {width}
        if len(inner) == 2 and max(inner) == 2 * min(inner):  # gates and what they let through, in one layer
            inner = {min(inner)}
        if len(inner) > 1:
            return None, dropped
        inner_name = next((name for name in INNER if hasattr(model.config, name)), INNER[0])
        config[names.get(inner_name, inner_name)] = inner.pop()
    return config, dropped


def _renumbered(tensors: dict[str, Any], dropped: list[str]) -> dict[str, Any]:
    """Return tensors by the names that they have where blocks that were left out are not counted."""
    if not dropped:
        return tensors
    under = f"network.{dropped[0].rpartition('.')[0]}."
    gone = {int(name.rpartition(".")[2]) for name in dropped}

    def renamed(name: str) -> str:
        if not name.startswith(under):
            return name
        number, _, inner = name.removeprefix(under).partition(".")
        return f"{under}{int(number) - sum(each < int(number) for each in gone)}.{inner}"

    return {renamed(name): tensor for name, tensor in tensors.items()}
