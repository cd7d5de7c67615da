"""How large a student is: its parameters, its bytes, and the operations of its forward pass over one row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from student_train.students.remade.int8 import Codes
from student_train.students.tensors import own_tensors

if TYPE_CHECKING:
    from student_train.students.build import Student


class Size(NamedTuple):
    """Operations of a forward pass over one row; parameters, int8 codes among them; bytes of all tensors."""

    flops: int
    parameters: int
    bytes: int


def size_of_student(student: Student) -> Size:
    """Return the size of a student, which is run on a row of nothing; on the meta device that takes no memory."""
    counter = FlopCounterMode(display=False)
    _count(student, counter)
    of_codes = [layer for layer in student.modules() if isinstance(layer, Codes)]
    parameters = [*student.parameters(), *(tensor for layer in of_codes for tensor in layer.learned)]
    return Size(
        counter.get_total_flops(),
        sum(tensor.numel() for tensor in parameters),
        sum(tensor.nbytes for tensor in own_tensors(student).values()),
    )


def flops_of_layers(student: Student, names: Sequence[str]) -> dict[str, int]:
    """Return the operations of layers of a student's network in a forward pass over one row, by name; 0: not called."""
    layers = dict(student.network.named_modules())
    spent = dict.fromkeys(names, 0)

    def counting(name: str, sign: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            spent[name] += sign * counter.get_total_flops()

        return hook

    counter = FlopCounterMode(display=False)
    hooks: list[Any] = [layers[name].register_forward_pre_hook(counting(name, -1)) for name in names]
    hooks += [layers[name].register_forward_hook(counting(name, 1)) for name in names]
    try:
        _count(student, counter)
    finally:
        for hook in hooks:
            hook.remove()
    return spent


def _count(student: Student, counter: FlopCounterMode) -> None:
    student.eval()
    with torch.no_grad(), counter:
        inputs = student.blank(1, student.blueprint.input_shape)
        student.scores(student.hidden(inputs))
