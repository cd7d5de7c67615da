"""An ONNX graph as a torch module: what it is given and what it answers are tensors, onnxruntime is between.

Shapes: B rows of a batch, N rows that a graph with a fixed batch takes at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from storage.datasets.table import Layout
from storage.errors import BadRequest, BadTeacher
from storage.format.specs import DatasetSpec
from teacher_cache.teachers.kinds.onnx_columns import TEXT, PortsByName, check_inputs, goes_by_name
from teacher_cache.teachers.kinds.onnx_files import (
    Port,
    chosen_inputs,
    chosen_output,
    import_onnx,
    listed,
    read_graph,
)
from teacher_cache.teachers.runtime import Runtime, as_tensor, host_array

if TYPE_CHECKING:
    from teacher_cache.teachers.options import TeacherOptions

IMAGE_AXES = 4  # rows, channels, height, width
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
OUT_OF_MEMORY = ("Failed to allocate memory", "out of memory", "bad_alloc")  # as onnxruntime says it


class OnnxModel(Runtime):
    """A graph that onnxruntime computes; call it with a batch as the dataset's inputs give it.

    Args:
        path: of the file.
        options: of the teacher.
        digest: of its files.
    """

    def __init__(self, path: Path, options: TeacherOptions, digest: str):
        graph = read_graph(path)
        self._inputs = chosen_inputs(graph, options.input_names, path)
        outputs = [each.name for each in graph.outputs]
        weights = path.stat().st_size + sum(file.stat().st_size for file in graph.external.values())
        super().__init__(digest, weights, dict.fromkeys([*graph.inner, *outputs]))
        self._path, self._options, self._layout = path, options, options.layout or "nchw"
        scored = [chosen_output(graph, options.output_name, path)] if options.encoding.soft else []
        self._scores = scored[0] if scored else None
        tapped = [feature.layer for feature in options.features.values()]
        self._asked = [name for name in dict.fromkeys([*scored, *tapped]) if name in (*outputs, *graph.inner)]
        onnx = import_onnx()
        for name in self._asked:
            if name not in outputs:
                graph.proto.graph.output.append(onnx.ValueInfoProto(name=name))
        self._graph, self._folder = graph.proto.SerializeToString(), path.parent.resolve()
        self._device, self._session = "cpu", self._opened("cpu")
        dtypes = {each.name: _numpy_type(each, path) for each in self._session.get_inputs()}
        self._dtypes = [dtypes[port.name] for port in self._inputs]
        self._by_name: PortsByName | None = None

    def to(self, device: torch.device) -> OnnxModel:  # type: ignore[override]
        """Make it ready on a device. Raises BadRequest: onnxruntime cannot use it; BadTeacher: nor the graph."""
        if device.type != self._device:
            self._session = None if device.type == "meta" else self._opened(device.type)
            self._device = device.type
        return self

    def asked_about(self, dataset: DatasetSpec) -> None:
        """Find its inputs among a table's columns by their names. Raises BadTeacher: they are none of these."""
        layout = Layout.promised(dataset.source)
        check_inputs(self._inputs, layout, self._path, self._options)
        if layout is None or not goes_by_name(layout, self._inputs):
            self._by_name = None
        elif self._by_name is None or self._by_name.layout.promise() != layout.promise():
            self._by_name = PortsByName(layout, self._inputs, self._dtypes, str(self._path))

    def forward(self, *arguments: Tensor) -> Tensor | None:
        """Return the scores of a batch, (B, …, C), or None where it is asked for features alone."""
        if self._by_name is not None:
            return self._answers(self._by_name.arrays(host_array(arguments[0])), arguments[0].device)
        if len(arguments) != len(self._inputs):
            raise BadTeacher(
                f"{self._path} takes {len(self._inputs)} inputs, and a row has {len(arguments)}",
                found=listed([str(port) for port in self._inputs]),
                expected="an input for each; or of a table one for each column, by its name",
            )
        arrays = [
            self._as_declared(host_array(value), port, dtype)
            for value, port, dtype in zip(arguments, self._inputs, self._dtypes, strict=True)
        ]
        return self._answers(arrays, arguments[0].device)

    def _answers(self, arrays: list[np.ndarray], device: torch.device) -> Tensor | None:
        """Return the scores of a batch whose arrays are in the order of the inputs."""
        pieces = self._pieces(arrays)
        parts, filled = [self._run(each) for each in pieces], sum(len(each[0]) for each in pieces)
        rows = len(arrays[0])
        answers = {
            name: _without_filling(torch.cat([as_tensor(part[at], device) for part in parts]), rows, filled)
            for at, name in enumerate(self._asked)
        }
        self.heard(answers)
        return None if self._scores is None else answers[self._scores]

    def _pieces(self, arrays: list[np.ndarray]) -> list[list[np.ndarray]]:
        """Return a batch in pieces of the size that the graph takes, the last filled up with zeros; else as it is."""
        size = self._inputs[0].shape[0] if self._inputs[0].shape else None
        if not isinstance(size, int):
            return [arrays]
        short = -len(arrays[0]) % size
        filled = [
            np.concatenate([each, np.full((short, *each.shape[1:]), "" if each.dtype == TEXT else 0, each.dtype)])
            for each in arrays
        ]
        return [[each[start : start + size] for each in filled] for start in range(0, len(filled[0]), size)]

    def _run(self, arrays: list[np.ndarray]) -> list[Any]:
        feed = {port.name: values for port, values in zip(self._inputs, arrays, strict=True)}
        try:
            return list(self._session.run(self._asked, feed))
        except Exception as error:  # of classes that onnxruntime does not export
            if any(words in str(error) for words in OUT_OF_MEMORY):
                raise MemoryError(str(error).split("\n", 1)[0]) from error
            raise

    def _as_declared(self, values_B: np.ndarray, port: Port, dtype: Any) -> np.ndarray:
        """Return an argument in the layout and type that the graph declares. Raises BadTeacher: it does not fit."""
        if self._layout == "nhwc" and values_B.ndim == IMAGE_AXES:
            values_B = np.ascontiguousarray(values_B.transpose(0, 2, 3, 1))
        self._check_shape(values_B.shape, port)
        if np.dtype(dtype).kind in "iu" and values_B.dtype.kind == "f":
            limits = np.iinfo(dtype)
            if not ((values_B == np.rint(values_B)) & (values_B >= limits.min) & (values_B <= limits.max)).all():
                raise BadTeacher(
                    f"{self._path} takes whole numbers, and is given others",
                    found=f"{values_B.min():g} to {values_B.max():g}, of which some are none of {np.dtype(dtype)}",
                    do='pixels = "bytes" gives pixels from 0 to 255, as they are stored',
                )
        return values_B.astype(dtype, copy=False)

    def _check_shape(self, shape: tuple[int, ...], port: Port) -> None:
        if port.shape is None:
            return
        wanted = port.shape[1:]
        if len(port.shape) == len(shape) and all(
            not isinstance(each, int) or each == size for each, size in zip(wanted, shape[1:], strict=True)
        ):
            return
        turned = len(shape) == IMAGE_AXES and (shape[2], shape[3], shape[1]) == wanted and self._layout == "nchw"
        raise BadTeacher(
            f"{self._path} takes inputs of another shape than the dataset has",
            found=f"rows of shape {shape[1:]}",
            expected=str(port),
            do='layout = "nhwc" gives the channels last'
            if turned
            else "the dataset's `size`, as the model was trained",
        )

    def _opened(self, device: str) -> Any:
        import onnxruntime as ort

        if PROVIDERS[device] not in ort.get_available_providers():
            raise BadRequest(
                f"onnxruntime cannot use {device} here",
                found=", ".join(ort.get_available_providers()),
                expected=PROVIDERS[device],
                do="pip install onnxruntime-gpu in place of onnxruntime; or --device cpu",
            )
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()  # by default it would take every core there is
        settings.inter_op_num_threads = 1
        # Its threads wait awake for the next operator and the next batch, for a while, as is onnxruntime's default: of
        # two, one that sleeps hardly ever comes in time.
        settings.log_severity_level = 4  # what is wrong with a graph, the error says
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self._folder))
        try:
            # without a fallback: it would go on, on the CPU, and print that it does
            return ort.InferenceSession(self._graph, settings, providers=[PROVIDERS[device]], enable_fallback=0)
        except Exception as error:  # of classes that onnxruntime does not export
            raise BadTeacher(
                f"onnxruntime {ort.__version__} does not take {self._path}",
                found=str(error).split("\n", 1)[0][:400],
                expected="operators of ONNX itself, of an opset that it knows; no code is loaded for others",
            ) from error


def _without_filling(values: Tensor, rows: int, filled: int) -> Tensor:
    """Return what was answered of `rows` of the `filled` that were given; of what has another length, all, unread.

    A tensor within a graph may have a row for each token: its first ones would be those of the first text.
    """
    return values[:rows] if len(values) == filled else values


def _numpy_type(value: Any, path: Path) -> Any:
    """Return the NumPy type of an input of a session. Raises BadTeacher: it is no tensor of numbers."""
    names = {
        "tensor(float)": "float32", "tensor(double)": "float64", "tensor(bool)": "bool", "tensor(string)": "object"
    }  # fmt: skip
    name = names.get(value.type, value.type.removeprefix("tensor(").removesuffix(")"))
    try:
        return np.dtype(name)
    except TypeError:
        raise BadTeacher(f"{path} takes something other than numbers", found=f"{value.name}: {value.type}") from None
