"""Tiny ONNX graphs, made by hand: of digits, with the channels last and a softmax at the end, as Keras makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)
WIDE = RNG.normal(size=(64, 6)).astype(np.float32)
LAST = RNG.normal(size=(6, 10)).astype(np.float32)


def by_hand(images_BHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits and the hidden units that a toy has for pixels from 0 to 1."""
    hidden = np.maximum(images_BHWC.reshape(len(images_BHWC), -1) @ WIDE, 0)
    return hidden @ LAST, hidden


def toy(
    *,
    batch: int | str = "rows",
    softmax: bool = True,
    outputs: Sequence[str] = ("probabilities",),
    shape: Sequence[int | str] = (8, 8, 1),
    scale: float = 1.0,
) -> onnx.ModelProto:
    """Return a graph: pixels (batch, 8, 8, 1) → hidden → logits, and, with a softmax, → probabilities."""
    logits = "logits" if softmax else outputs[0]
    nodes = [
        helper.make_node("Mul", ["images", "scale"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "flat_shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "wide"], ["units"]),
        helper.make_node("Relu", ["units"], ["model/hidden:0"]),
        helper.make_node("MatMul", ["model/hidden:0", "last"], [logits]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], [outputs[0]], axis=-1))
    weights = {"scale": np.float32(scale), "flat_shape": np.array([-1, 64]), "wide": WIDE, "last": LAST}
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def save(folder: Path, **choices: Any) -> Path:
    """Write a toy; return its file."""
    path = folder / "toy.onnx"
    onnx.save(toy(**choices), path)
    return path


def save_beside(folder: Path, location: str | Callable[[str], str] = "toy.data") -> Path:
    """Write a toy whose weights lie in `toy.data` beside it, and change where it says that they are."""
    model, path = toy(), folder / "toy.onnx"
    onnx.save(model, path, save_as_external_data=True, location="toy.data", size_threshold=200)
    if location != "toy.data":
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location if isinstance(location, str) else location(entry.value)
        path.write_bytes(model.SerializeToString())
    return path
