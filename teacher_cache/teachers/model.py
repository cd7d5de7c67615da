"""A loaded teacher: a model in evaluation mode, what it is fed, and the layers that are tapped.

Shapes: B rows of a batch, `sites` the axes of a row's sites (storage.tasks), C classes.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from storage.errors import BadTeacher, is_out_of_memory
from storage.format.specs import DatasetSpec
from storage.inputs import inputs_of
from storage.tasks import task_of
from teacher_cache.teachers.classes import order_of
from teacher_cache.teachers.kinds import KINDS
from teacher_cache.teachers.loaded import weights_digest
from teacher_cache.teachers.options import TeacherOptions
from teacher_cache.teachers.steady import check_steady

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class TooLarge(BadTeacher):
    """A batch whose answer does not fit into memory."""


class Teacher:
    """A loaded model in evaluation mode on its device; call it with rows as a view shows them."""

    def __init__(self, options: TeacherOptions, model: nn.Module, device: torch.device):
        self.name, self.asked_batch_size = options.name, options.batch_size
        self.batch_size = options.batch_size  # lower from the first batch on that does not fit
        self.model = model.eval().requires_grad_(False)  # no dropout, no batch statistics: one answer for each row
        self._options = options
        self.weights = weights_digest(model)
        self._class_names = KINDS[options.origin].classes(options)
        self._captured: dict[str, Tensor] = {}
        self._steady: set[str] = set()  # datasets at whose first batch it had one answer for each row
        modules = dict(model.named_modules())
        for name, feature in options.features.items():
            if feature.layer not in modules:
                near = difflib.get_close_matches(feature.layer, modules, n=5, cutoff=0.3)
                raise BadTeacher(
                    f"teacher {options.name} has no layer {feature.layer}",
                    found=", ".join([*modules][1:13]),  # the first has no name: the model itself
                    expected=f"one of its layers; near: {', '.join(near)}" if near else None,
                )
            modules[feature.layer].register_forward_hook(self._capture(name))
        self.to(device)

    def to(self, device: torch.device) -> None:
        """Move the teacher to a device."""
        self.device = device
        self.model.to(device)
        self._constants: dict[object, Tensor] = {}

    def __call__(self, shown_B: Tensor, dataset: DatasetSpec) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits of a batch, (B, *sites, C) float32, and its features by name.

        Args:
            shown_B: rows, (B, …), as stored or as a view shows them.
            dataset: of the rows: what they are made of, and what is asked of them.

        Raises:
            TooLarge: there is no memory for it; what was made is given back when the error is.
            BadTeacher: the model failed on it, its output has another shape, or a feature is not one tensor (B, …);
                or, seen at the first batch of a dataset, it has no one answer for each row.
        """
        try:
            answer = self._answer(shown_B, dataset)
            if dataset.name not in self._steady and shown_B.device.type != "meta":  # there it says nothing at all
                check_steady(self.model, lambda rows_B: self._answer(rows_B, dataset)[0], shown_B, self.name)
                self._steady.add(dataset.name)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise TooLarge(
                f"teacher {self.name} does not fit on {self.device}",
                found=str(error).split("\n", 1)[0],
                do="lower batch_size",
            ) from None
        return answer

    def _answer(self, shown_B: Tensor, dataset: DatasetSpec) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits and features of a batch."""
        self._captured = {}  # a layer that is not called this time must not answer with the last batch
        inputs_B, output = self._forward(shown_B, dataset)
        logits_BC = self._logits(output, inputs_B, dataset)
        self._check_features(len(inputs_B), dataset)
        return logits_BC.float(), self._captured

    def _forward(self, shown_B: Tensor, dataset: DatasetSpec) -> tuple[Tensor, Any]:
        """Return what the model is called with, and what it returns."""
        import torch

        kind = inputs_of(dataset)
        half = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self._options.autocast]
        # Autocast, not `half()`: what needs float32, such as a softmax, stays in it.
        autocast = contextlib.nullcontext() if half is None else torch.autocast(self.device.type, half)
        with torch.inference_mode(), autocast:
            shown_B = kind.trimmed(shown_B)
            if self.device.type == "cuda" and shown_B.device.type == "cpu":
                shown_B = shown_B.pin_memory()  # else the host would wait until the device has done all before it
            # as bytes, and floats only there: a fourth of what is sent, and no work for this thread
            inputs_B = self._normalised(kind.arguments(shown_B.to(self.device, non_blocking=True)))
            try:
                return inputs_B, self.model(*kind.spread(inputs_B))
            except (Exception, SystemExit) as error:  # the user's own model
                if is_out_of_memory(error):
                    raise
                raise BadTeacher(
                    f"teacher {self.name} failed on inputs of shape {tuple(inputs_B.shape)}",
                    found=f"{type(error).__name__}: {error}",
                ) from error

    def _logits(self, output: Any, inputs_B: Tensor, dataset: DatasetSpec) -> Tensor:
        """Return the logits in a model's output, in the order of the dataset's classes."""
        import torch

        logits_BC = getattr(output, "logits", output)  # many models of transformers return an object that has them
        leading = (len(inputs_B), *task_of(dataset).sites(inputs_B.shape[1:]))
        if not isinstance(logits_BC, torch.Tensor) or tuple(logits_BC.shape[:-1]) != leading:
            raise BadTeacher(
                f"teacher {self._options.name} did not return logits",
                found=_shape(logits_BC),
                expected=f"a tensor ({', '.join(map(str, leading))}, C)",
            )
        order = order_of(self._class_names, dataset.classes)
        if order is None or logits_BC.shape[-1] != len(order):  # another number of them: `check_classes` says so
            return logits_BC
        return logits_BC[..., self._constant(dataset.name, order)]

    def _check_features(self, num_rows: int, dataset: DatasetSpec) -> None:
        own_length = inputs_of(dataset).own_length
        for name, feature in self._options.features.items():
            if not _has_rows(values := self._captured.get(name), num_rows):
                raise BadTeacher(
                    f"feature {name} of teacher {self._options.name} is not one tensor with a row for each sample",
                    found="the model never called this layer" if values is None else _shape(values),
                    expected=f"a tensor ({num_rows}, …) from layer {feature.layer}",
                    do="name another layer",
                )
            if own_length and values is not None and values.ndim != 2:  # those of a shard could not lie side by side
                raise BadTeacher(
                    f"feature {name} of teacher {self._options.name} is no vector of a row, whose length is its own",
                    found=_shape(values),
                    expected=f"a tensor ({num_rows}, D) from layer {feature.layer}",
                    do="name a layer behind the pooling",
                )

    def _capture(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # A copy: what follows may work in place, as ReLU(inplace=True) does.
            self._captured[name] = output.clone() if hasattr(output, "clone") else output

        return hook

    def _normalised(self, inputs_B: Tensor) -> Tensor:
        mean, std = self._options.mean, self._options.std
        if mean is None or std is None:
            return inputs_B
        if inputs_B.shape[1] != len(mean):
            raise BadTeacher(
                f"teacher {self._options.name} is normalised by other channels than its inputs have",
                found=f"`mean` and `std` of {len(mean)} channels",
                expected=f"{inputs_B.shape[1]}, as in inputs of shape {tuple(inputs_B.shape)}",
                do="give `mean` and `std` one number for each channel",
            )
        shape = (-1, *[1] * (inputs_B.ndim - 2))  # channels are the second axis, whatever follows
        return (inputs_B - self._constant("mean", mean).view(shape)) / self._constant("std", std).view(shape)

    def _constant(self, name: object, values: Sequence[float]) -> Tensor:
        """Return numbers as a tensor on the device, sent once: each sending would wait until the device is done."""
        import torch

        if (name, *values) not in self._constants:
            dtype = torch.float32 if isinstance(values[0], float) else torch.int64
            self._constants[name, *values] = torch.tensor(values, dtype=dtype, device=self.device)
        return self._constants[name, *values]


def _has_rows(value: Any, num_rows: int) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.shape[:1] == (num_rows,)


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if hasattr(value, "shape") else type(value).__name__
