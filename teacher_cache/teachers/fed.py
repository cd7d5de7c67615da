"""What a model is fed of a batch: pictures of its own size, in the range and normalised as it was trained.

The picture is the one that the student sees, a view's too, resized on the device by a filter that is promised.

Shapes: B rows of a batch; channels are the second axis, whatever follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from storage.errors import BadTeacher
from storage.format.specs import DatasetSpec
from storage.inputs import inputs_of
from storage.inputs.pixels import resized, sides_of
from teacher_cache.teachers.options import TeacherOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

WHITE = 255.0  # of a pixel that is a byte

Constant = Callable[[object, Sequence[float]], "Tensor"]
"""Numbers, by a name, as a tensor on the device of the teacher."""


def fed(
    inputs_B: Tensor, model: nn.Module, options: TeacherOptions, dataset: DatasetSpec, constant: Constant
) -> Tensor:
    """Return what a model is called with, of what the kind of inputs gives, (B, …).

    Raises:
        BadTeacher: it wants pixels, pictures, other channels or columns, and the dataset has none of these.
    """
    from teacher_cache.teachers.runtime import Runtime

    if isinstance(model, Runtime):
        model.asked_about(dataset)
    if options.size is not None:
        inputs_B = _resized(inputs_B, options, dataset)
    if options.pixels == "bytes":
        if not inputs_of(dataset).scaled:
            raise BadTeacher(
                f"teacher {options.name} takes pixels as bytes, and dataset {dataset.name} has no pixels",
                found=f"inputs of {dataset.input_dtype}",
                do="leave `pixels` out: values are given as they are",
            )
        return inputs_B * WHITE  # to the last bit what was stored: x / 255 * 255 is x for every byte
    return _normalised(inputs_B, options, constant)


def _resized(inputs_BCHW: Tensor, options: TeacherOptions, dataset: DatasetSpec) -> Tensor:
    """Return pictures of a teacher's own size, (B, C, H, W) in [0, 1]; those that are decoded for it have it."""
    if not inputs_of(dataset).has_views(dataset.input_shape):
        raise BadTeacher(
            f"teacher {options.name} has a size of its own, and dataset {dataset.name} has no pictures",
            found=f"inputs of {dataset.input_dtype}, {tuple(dataset.input_shape)}",
            expected="pixels (channels, height, width)",
        )
    assert options.size is not None
    return resized(inputs_BCHW, sides_of(options.size), options.filter)


def _normalised(inputs_B: Tensor, options: TeacherOptions, constant: Constant) -> Tensor:
    mean, std = options.mean, options.std
    if mean is None or std is None:
        return inputs_B
    if inputs_B.shape[1] != len(mean):
        raise BadTeacher(
            f"teacher {options.name} is normalised by other channels than its inputs have",
            found=f"`mean` and `std` of {len(mean)} channels",
            expected=f"{inputs_B.shape[1]}, as in inputs of shape {tuple(inputs_B.shape)}",
            do="give `mean` and `std` one number for each channel",
        )
    shape = (-1, *[1] * (inputs_B.ndim - 2))
    # in place from here on: new memory for a batch of photographs takes as long as what is computed there
    return (inputs_B - constant("mean", mean).view(shape)).div_(constant("std", std).view(shape))
