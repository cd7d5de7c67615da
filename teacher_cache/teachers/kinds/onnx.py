"""A model of any framework as an ONNX graph, computed by onnxruntime: a Keras, a JAX, a scikit-learn model, or torch's.

No code comes with a graph: operators that onnxruntime does not have are refused. Its threads are the worker's share.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.datasets.table import Layout
from storage.digests import file_digest, fingerprint
from storage.errors import BadRequest
from storage.language.tokenizer import read_tokenizer
from teacher_cache.teachers.kinds.onnx_columns import check_inputs
from teacher_cache.teachers.kinds.onnx_files import chosen_inputs, chosen_output, import_onnx, read_graph
from teacher_cache.teachers.spoken import classes, dimension, longest, spoken, wants_around  # noqa: F401 - of a Kind

if TYPE_CHECKING:
    from torch import nn

    from storage.format.specs import DatasetSpec
    from teacher_cache.teachers.options import TeacherOptions

KEYS: tuple[str, ...] = (
    "path",
    "input_names",
    "output_name",
    "layout",
    "output",
    "pixels",
    "size",
    "filter",
    "mean",
    "std",
    "tokenizer",
    "classes",
    "dimension",
)


def told(options: TeacherOptions) -> dict[str, Any]:
    """Return what the job itself tells: how the graph is called, what it gives, and what its classes are named."""
    keys = ("input_names", "output_name", "layout", "output", "pixels", "mean", "std", "classes")
    return {"kind": "onnx", **{key: getattr(options, key) for key in keys}}


def digests(options: TeacherOptions) -> dict[str, Any]:
    """Return the digests of the graph and of every file of its weights, and of text the tokenizer's."""
    path = _path(options)
    graph = read_graph(path)
    found: dict[str, Any] = {"graph": file_digest(path)}
    found["weights"] = {name: file_digest(file) for name, file in sorted(graph.external.items())}
    return found if options.tokenizer is None else found | {"tokenizer": read_tokenizer(options.tokenizer).fingerprint}


def notes(options: TeacherOptions) -> list[str]:
    """Return what the graph decides by itself: that batches are padded to a size of its own."""
    first = read_graph(_path(options)).inputs[0]
    if first.shape and isinstance(first.shape[0], int):
        return [f"its graph takes {first.shape[0]} rows at a time: the last of a batch are filled up with zeros"]
    return []


def check_files(options: TeacherOptions, dataset: DatasetSpec) -> None:
    """Check that it is clear which input is which, and which tensor has the scores."""
    path = _path(options)
    graph = read_graph(path)
    check_inputs(chosen_inputs(graph, options.input_names, path), Layout.promised(dataset.source), path, options)
    if options.encoding.soft:
        chosen_output(graph, options.output_name, path)


def import_libraries() -> None:
    """Import onnx, onnxruntime and torch. Raises BadRequest: they are not installed."""
    import torch  # noqa: F401

    import_onnx()


def load(options: TeacherOptions) -> nn.Module:
    """Return the model, ready to be computed on the CPU.

    Raises:
        BadRequest: onnxruntime is not installed.
        BadTeacher: it has an operator that onnxruntime does not, or it is not clear what to give or to take.
        BadWeights, MissingSource: its files are not what they should be.
    """
    from teacher_cache.teachers.kinds.onnx_model import OnnxModel

    path = _path(options)
    return OnnxModel(path, options, fingerprint(digests(options)))


def _path(options: TeacherOptions) -> Path:
    assert options.path is not None
    if options.path.is_dir():
        raise BadRequest(
            f"{options.path} is a folder, and no ONNX file",
            found=", ".join(sorted(file.name for file in options.path.glob("*.onnx"))) or "no *.onnx in it",
            do='path = "FOLDER/model.onnx"',
        )
    return options.path
