"""Batches of nothing, of the right shapes and types: to measure what a step takes without reading a row."""

from __future__ import annotations

import math

import torch

from storage.encodings import Encoded
from student_train.feed.batches import Batch
from student_train.feed.order import largest_batch
from student_train.preparing.request import PreparedRun
from student_train.students import Student


def blank_batch(student: Student, prepared: PreparedRun) -> Batch:
    """Return the largest batch on the student's device, the meta device too: every input 0, every label class 0.

    Args:
        student: that it is for.
        prepared: what it is, and what it needs of each row.
    """
    rows = largest_batch(prepared.train.num_rows, prepared.options.batch_size)
    device, classes = student.device, prepared.blueprint.num_classes
    inputs = student.blank(rows, prepared.blueprint.input_shape)
    shape = (rows, *prepared.blueprint.asked.sites(prepared.blueprint.input_shape))
    num_sites = math.prod(shape)  # each has a label
    features = {
        key: torch.zeros(num_sites, *of_row[len(shape) - 1 :], device=device)
        for key, of_row in prepared.feature_shapes.items()
    }
    targets = {
        name: Encoded.blank(encoding, classes, num_sites, device) for name, encoding in prepared.encodings.items()
    }
    if prepared.blueprint.asked.numbers:  # each row has as many as it is to tell
        labels_B = torch.zeros(*shape, classes, device=device)
    else:
        labels_B = torch.zeros(shape, dtype=torch.int64, device=device)
    return Batch(inputs, labels_B, targets, features)
