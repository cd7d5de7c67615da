"""How much work a student is, projected before it starts. Only the balance of groups over devices depends on it."""

from __future__ import annotations

import torch

from storage.errors import BadRequest
from student_train.feed.order import count_steps
from student_train.preparing.request import PreparedRun
from student_train.students import Blueprint, build_student, size_of_student

BACKWARD = 2  # of the forward pass
# What a step costs however few rows it has, as operations of the device. On one core that does 10 GFLOP/s, a step of
# the smallest mlp took 0.5 ms, and an update 12 ns a parameter; a GPU is held up by some hundred kernel launches.
STEP_FLOPS = {"cpu": 10**7, "cuda": 10**10}
UPDATE_FLOPS = 120


def epoch_flops(student: PreparedRun, device: str) -> int:
    """Return the operations of an epoch on a kind of device, "cpu" or "cuda": its steps, and its evaluation."""
    forward, parameters = row_flops(student.blueprint)
    rows, held, batch_size = student.train.num_rows, student.held.num_rows, student.options.batch_size
    of_step = STEP_FLOPS[device] + UPDATE_FLOPS * parameters
    return forward * ((1 + BACKWARD) * rows + held) + of_step * count_steps(rows, batch_size)


def row_flops(blueprint: Blueprint) -> tuple[int, int]:
    """Return the operations of a forward pass over one row, and the number of parameters.

    Counted on the meta device; a user's architecture that cannot be built there is counted on the CPU.
    """
    try:
        return _row_flops(blueprint, torch.device("meta"))
    except (NotImplementedError, RuntimeError, BadRequest):  # it was built on the CPU once already
        return _row_flops(blueprint, torch.device("cpu"))


def _row_flops(blueprint: Blueprint, device: torch.device) -> tuple[int, int]:
    with device:
        size = size_of_student(build_student(blueprint))
    return size.flops, size.parameters
