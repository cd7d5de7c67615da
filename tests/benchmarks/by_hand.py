"""A training step written out, on one batch of random tensors: what a student's own arithmetic takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from student_train.students import Blueprint, build_student

TEMPERATURE = 4.0


def step_by_hand(student: Mapping[str, Any], device: torch.device, *, capturable: bool = False) -> Callable[[], None]:
    """Return a step on labels and soft targets of 3×32×32 images in 10 classes.

    Args:
        student: `architecture`, `options` and `batch_size` of a student's section.
        device: where the tensors lie.
        capturable: whether the step is to be recorded.
    """
    torch.manual_seed(0)
    spec = Blueprint(
        architecture=student["architecture"],
        options=student["options"],
        num_classes=10,
        input_shape=(3, 32, 32),
        mean=(0.5,),
        std=(0.5,),
    )
    model = build_student(spec).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=5e-4, fused=True, capturable=capturable)
    size = student["batch_size"]
    inputs_B, labels_B = torch.rand(size, 3, 32, 32, device=device), torch.randint(10, (size,), device=device)
    teacher_BC = torch.randn(size, 10, device=device)

    def step() -> None:
        student_BC = model(inputs_B)
        p_BC = (teacher_BC / TEMPERATURE).log_softmax(dim=1)
        q_BC = (student_BC / TEMPERATURE).log_softmax(dim=1)
        kd = functional.kl_div(q_BC, p_BC, reduction="batchmean", log_target=True)
        loss = 0.1 * functional.cross_entropy(student_BC, labels_B) + 0.9 * TEMPERATURE**2 * kd
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def recorded_by_hand(student: Mapping[str, Any], device: torch.device) -> Callable[[], None]:
    """Return the same step as a CUDA graph."""
    step = step_by_hand(student, device, capturable=True)
    beside = torch.cuda.Stream(device)
    with torch.cuda.stream(beside):
        for _ in range(3):  # compiles kernels, and makes what is made once
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay(kept: Callable[[], None] = step) -> None:  # with the step, its tensors
        graph.replay()

    return replay
