"""Reading an ONNX graph without computing it: its files, all of which lie in its folder, its names and shapes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from storage.errors import BadTeacher, BadWeights, MissingSource, missing_extra

EXTRA = "onnx"
WHAT = 'kind = "onnx"'
SHOWN = 12  # names, in a message


class Port(NamedTuple):
    """An input or output of a graph; of its shape, names are of axes that may be of any size, and None is any."""

    name: str
    shape: tuple[int | str, ...] | None

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.shape or ['…']))})"


class Graph(NamedTuple):
    """What is known of an ONNX file before it is computed.

    Attributes:
        proto: of onnx, without its external data.
        inputs, outputs: that are to be given, and that are asked for.
        inner: names of tensors within, in order.
        external: files of weights beside it, by the names that it has for them.
    """

    proto: Any
    inputs: list[Port]
    outputs: list[Port]
    inner: list[str]
    external: dict[str, Path]


def import_onnx() -> Any:
    """Return the module onnx. Raises BadRequest: it is not installed."""
    try:
        import onnx
        import onnxruntime  # noqa: F401 - one is of no use without the other
    except ImportError:
        raise missing_extra(WHAT, "no onnx and onnxruntime", EXTRA) from None
    return onnx


def read_graph(path: Path) -> Graph:
    """Return what an ONNX file says of itself; weights in other files are found, not read.

    Raises:
        MissingSource: there is no such file, or a file of its weights is missing.
        BadWeights: it is no ONNX file, takes nothing, or its weights lead out of its folder or are cut off.
    """
    onnx = import_onnx()
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise MissingSource(
            f"there is no {path}", found=error.strerror, do="paths in a job file are relative to its own folder"
        ) from None
    except Exception as error:  # google.protobuf's DecodeError, and others
        raise BadWeights(f"{path} is not an ONNX file", found=f"{type(error).__name__}: {error}"[:200]) from None
    if not proto.graph.node:
        raise BadWeights(f"{path} is not an ONNX file", found="a graph without any node")
    graph = proto.graph
    stored = {each.name for each in graph.initializer} | {each.values.name for each in graph.sparse_initializer}
    inputs = [_port(each) for each in graph.input if each.name not in stored]  # of old, weights were inputs too
    if not inputs:
        raise BadWeights(f"{path} is no model of rows", found="a graph without any input")
    inner = [name for node in graph.node for name in node.output if name]
    if odd := [name for name in (*inner, *stored, *(each.name for each in inputs)) if not isinstance(name, str)]:
        raise BadWeights(f"{path} is not an ONNX file", found=f"a name that is no UTF-8: {odd[0]!r}"[:200])
    return Graph(
        proto,
        inputs,
        [_port(each) for each in graph.output],
        list(dict.fromkeys(inner)),
        _external(proto, path, onnx.TensorProto),
    )


def _port(value: Any) -> Port:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return Port(value.name, None)
    return Port(value.name, tuple(_axis(each) for each in tensor.shape.dim))


def _axis(dimension: Any) -> int | str:
    # some write −1 where they mean any
    return dimension.dim_value if dimension.dim_value > 0 else dimension.dim_param or "any"


def _external(proto: Any, path: Path, tensor_type: Any) -> dict[str, Path]:
    """Return the files of a graph's weights, by the names that it has for them, each of which was looked at."""
    found: dict[str, Path] = {}
    folder = path.parent.resolve()
    for tensor in _tensors(proto, tensor_type.DESCRIPTOR.full_name):
        if tensor.data_location != tensor_type.EXTERNAL:
            continue
        about = {each.key: each.value for each in tensor.external_data}
        where: Any = about.get("location", "")
        where = where if isinstance(where, str) else ""  # protobuf gives bytes that are no text as they are
        file = folder / where
        # what a link leads to, others may change; and a graph could so read any file of this machine
        if not where or PurePosixPath(where).is_absolute() or ".." in Path(where).parts or file.resolve() != file:
            raise BadWeights(
                f"the weights of {path} lead out of its folder",
                found=f"tensor {tensor.name} in {where or 'no file'}"
                + (f", a link to {os.path.realpath(file)}" if where and ".." not in Path(where).parts else ""),
                expected=f"a file in {path.parent}, and no link",
                do=f"copy the graph with its weights into a folder of their own, cp -L, and name {path.name} there",
            )
        if not file.is_file():
            raise MissingSource(
                f"weights of {path} are missing",
                found=f"no {file}, where tensor {tensor.name} is",
                expected="the files of its external data beside it, as they were written",
            )
        _check_long_enough(path, file, about, tensor.name)
        found[where] = file
    return found


def _check_long_enough(path: Path, file: Path, about: dict[str, str], name: str) -> None:
    size = file.stat().st_size
    try:
        offset, length = int(about.get("offset", 0)), int(about.get("length", 0))
    except ValueError:
        offset = length = -1
    if offset < 0 or length < 0 or offset + length > size:
        raise BadWeights(
            f"weights of {path} are cut off",
            found=f"{size:,} bytes in {file}",
            expected=f"bytes {about.get('offset', 0)} to {offset + length:,} of it, where tensor {name} is",
        )


def _tensors(message: Any, tensor_name: str) -> Iterator[Any]:
    """Yield every tensor within a message of onnx, wherever it is: of graphs, of nodes within, of functions."""
    if message.DESCRIPTOR.full_name == tensor_name:
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if hasattr(value, "__len__") and not hasattr(value, "DESCRIPTOR") else [value]:
                yield from _tensors(each, tensor_name)


def chosen_output(graph: Graph, name: str | None, path: Path) -> str:
    """Return the name of the tensor that has the scores. Raises BadTeacher: it is not clear which, or not there."""
    if name is None:
        if len(graph.outputs) == 1:
            return graph.outputs[0].name
        raise BadTeacher(
            f"{path} has several outputs",
            found=listed([str(each) for each in graph.outputs]),
            expected="one, or a word on which of them has the scores",
            do=f'output_name = "{graph.outputs[-1].name}"',
        )
    known = [*(each.name for each in graph.outputs), *graph.inner]
    if name not in known:
        raise BadTeacher(f"{path} has no tensor {name}", found=listed([str(each) for each in graph.outputs]))
    return name


def chosen_inputs(graph: Graph, names: list[str] | None, path: Path) -> list[Port]:
    """Return the inputs in the order of a model's arguments; of a table they are found by their names.

    Raises:
        BadTeacher: they are others than the job names.
    """
    by_name = {each.name: each for each in graph.inputs}
    if names is None:
        return graph.inputs
    if sorted(names) != sorted(by_name):
        raise BadTeacher(
            f"{path} has other inputs than the job names",
            found=listed([str(each) for each in graph.inputs]),
            expected=listed(names),
            do=f"input_names = {[*by_name]}".replace("'", '"'),
        )
    return [by_name[name] for name in names]


def listed(names: list[str]) -> str:
    """Return names as a message shows them."""
    return ", ".join(names[:SHOWN]) + (f", and {len(names) - SHOWN} more" if len(names) > SHOWN else "") or "none"
