"""Logits of a part of the sites at a time: those of all sites of a batch might not fit. N sites, D width, C classes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from student_train.students.build import Student

# Of one float32 copy of a part's logits: large enough that a GPU is busy, small beside what the body keeps.
PART_BYTES = {"cpu": 2**24, "cuda": 2**28}


def part_size(num_classes: int, device: torch.device) -> int:
    """Return how many sites' logits are computed at a time."""
    return max(1, PART_BYTES.get(device.type, 2**24) // (4 * num_classes))


def logits_in_parts(student: Student, hidden_ND: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the logits of sites' hidden states, a part of them at a time, each with where it is among the N."""
    if not len(hidden_ND):
        return
    # the logits of one site tell C
    size = part_size(student.scores(hidden_ND[:1]).shape[-1], hidden_ND.device)
    for start in range(0, len(hidden_ND), size):
        at = slice(start, start + size)
        yield at, student.scores(hidden_ND[at])
