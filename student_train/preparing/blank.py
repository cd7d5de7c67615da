"""Batches of nothing, of the right shapes and types: to measure what a step takes without reading a row."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from storage.encodings import Encoded, Encoding
from student_train.feed.batches import ArrayKey, Batch
from student_train.students import Blueprint, Student


def blank_batch(
    student: Student,
    blueprint: Blueprint,
    encodings: Mapping[str, Encoding],
    feature_shapes: Mapping[ArrayKey, tuple[int, ...]],
    batch_size: int,
) -> Batch:
    """Return a batch on the student's device, the meta device too: every input 0, every label class 0.

    Args:
        student: that it is for.
        blueprint: what the student is.
        encodings: of each teacher whose soft targets its objective needs.
        feature_shapes: of one row of each feature that it needs.
        batch_size: rows.
    """
    device, classes = student.device, blueprint.num_classes
    features = {key: torch.zeros(batch_size, *shape, device=device) for key, shape in feature_shapes.items()}
    inputs = student.blank(batch_size, blueprint.input_shape)
    shape = inputs.shape if student.of_tokens else inputs.shape[:1]  # of what has targets: positions, or rows
    targets = {}
    for name, encoding in encodings.items():
        arrays = Encoded.blank(encoding, classes, math.prod(shape), device).arrays
        shaped = {key: values.unflatten(0, shape) for key, values in arrays.items()}
        targets[name] = Encoded(encoding, classes, shaped)
    return Batch(inputs, torch.zeros(shape, dtype=torch.int64, device=device), targets, features)
