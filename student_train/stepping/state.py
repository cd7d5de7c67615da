"""A state: one student with its objective, optimiser, average and random numbers: all that a step changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from student_train.feed.batches import ArrayKey
from student_train.losses.objective import Objective, student_layers
from student_train.losses.outputs import Shapes
from student_train.options.sections import StudentOptions
from student_train.run_files.checkpoint import Tensors
from student_train.stepping.average import WeightAverage
from student_train.stepping.forward import check_student
from student_train.stepping.recompute import recompute_blocks
from student_train.students import Blueprint, Student, build_student
from student_train.students.starting.adapter import adapt
from student_train.students.starting.start import start_student
from student_train.students.tensors import load_own, own_tensors


class Randomness:
    """A student's own state of torch's global generators, so that it draws the same numbers in any company.

    Used as a context: inside it, the generators are the student's.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._host: Tensor
        self._cuda: Tensor | None
        self._capture()

    def __enter__(self) -> None:
        torch.set_rng_state(self._host)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:  # else whoever tries again draws the same numbers
            self._capture()

    def tensors(self) -> Tensors:
        """Return the states, for a checkpoint."""
        return {"generator.cpu": self._host} | ({} if self._cuda is None else {"generator.cuda": self._cuda})

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `tensors()`; a state of a GPU's generator is of no use on a CPU."""
        self._host = tensors["generator.cpu"]
        if self._cuda is not None:
            self._cuda = tensors.get("generator.cuda", self._cuda)

    def _capture(self) -> None:
        self._host = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None


@dataclass
class TrainState:
    """What a step changes.

    Attributes:
        options: of the student's section of the job.
        blueprint: what the student is.
        layers: of the student, that its objective looks at.
        student: in training mode.
        objective: its losses, with what they learn themselves.
        optimizer: of the parameters of both.
        average: of the student's weights, if the job asks for one.
        randomness: of dropout and the like.
    """

    options: StudentOptions
    blueprint: Blueprint
    layers: tuple[str, ...]
    student: Student
    objective: Objective
    optimizer: Optimizer
    average: WeightAverage | None
    randomness: Randomness

    @classmethod
    def fresh(
        cls,
        options: StudentOptions,
        blueprint: Blueprint,
        feature_shapes: dict[ArrayKey, tuple[int, ...]],
        device: torch.device,
    ) -> TrainState:
        """Return a state before its first step: a function of the job alone, drawn from its own seed.

        Raises:
            BadRequest: the student cannot be built, or does not fit the inputs, the classes or the objective; or the
                weights that it starts from are not there, or not its own.
        """
        torch.manual_seed(options.seed)
        # on the CPU, so that a seed gives the same weights whatever the device
        student = build_student(blueprint)
        if options.start is not None and options.starts_from is not None:
            start_student(student, options.start, options.starts_from)
        if options.adapter is not None:
            adapt(student, options.adapter)
        layers = student_layers(options.objective)
        shapes = Shapes(check_student(student, layers, blueprint.input_shape, blueprint.num_classes), feature_shapes)
        objective = Objective(options.objective, shapes).to(device)
        student = student.to(device).train()
        average = WeightAverage(student, options.ema_decay) if options.ema_decay is not None else None
        if options.recompute:
            recompute_blocks(student)
        optimizer = make_optimizer(options, trained_of(student, objective), [student, objective])
        return cls(options, blueprint, layers, student, objective, optimizer, average, Randomness(device))

    @property
    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that are trained, the student's first."""
        return trained_of(self.student, self.objective)

    @property
    def exported(self) -> Student:
        """Return the student that is evaluated and written: the average if there is one."""
        return self.student if self.average is None else self.average.student

    @property
    def num_parameters(self) -> int:
        """Return the number of the student's parameters."""
        return sum(parameter.numel() for parameter in self.student.parameters())

    def copy(self) -> TrainState:
        """Return a state of the same weights without an optimiser's state, for a trial."""
        student, objective = copy.deepcopy(self.student), copy.deepcopy(self.objective)
        average = None if self.average is None else WeightAverage(student, self.average.decay)
        optimizer = make_optimizer(self.options, trained_of(student, objective), [student, objective])
        randomness = Randomness(self.student.device)
        return TrainState(self.options, self.blueprint, self.layers, student, objective, optimizer, average, randomness)

    def tensors(self) -> Tensors:
        """Return every tensor that a step changes, by name; they share memory with the state."""
        tensors = {f"student.{name}": tensor for name, tensor in own_tensors(self.student).items()}
        tensors |= {f"objective.{name}": tensor for name, tensor in self.objective.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in own_tensors(self.average.student).items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{number}.{key}": value for key, value in moments.items() if isinstance(value, Tensor)
            }
        return tensors | self.randomness.tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors from `tensors()` back in place."""
        load_own(self.student, below("student.", tensors))
        self.objective.load_state_dict(below("objective.", tensors))
        if self.average is not None:
            load_own(self.average.student, below("average.", tensors))
        moments: dict[int, Tensors] = {}
        for name, tensor in below("optimizer.", tensors).items():
            number, _, key = name.partition(".")
            moments.setdefault(int(number), {})[key] = tensor
        # the groups stay as made: the job decides them, not a checkpoint
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.randomness.restore(tensors)


def trained_of(student: Student, objective: Objective) -> list[nn.Parameter]:
    """Return the parameters that are trained, the student's first; under an adapter its own alone."""
    return [
        parameter for module in (student, objective) for parameter in module.parameters() if parameter.requires_grad
    ]


def below(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def make_optimizer(options: StudentOptions, parameters: list[nn.Parameter], modules: Sequence[nn.Module]) -> Optimizer:
    """Return the optimiser of a job, in torch's fused form where the device has one.

    Args:
        options: of the student.
        parameters: that are trained.
        modules: that they are of, which tell what is a norm.
    """
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if not options.decay_norms_and_biases:
        spared = {id(parameter) for parameter in norms_and_biases(modules)}
        decayed = {"params": [p for p in parameters if id(p) not in spared]}
        groups = [decayed, {"params": [p for p in parameters if id(p) in spared], "weight_decay": 0.0}]
    fused = parameters[0].device.type in ("cpu", "cuda")
    if options.optimizer == "sgd":
        return SGD(
            groups,
            lr=options.peak_learning_rate,
            momentum=options.momentum,
            nesterov=options.momentum > 0,
            weight_decay=options.weight_decay,
            fused=fused,
        )
    return AdamW(
        groups,
        lr=options.peak_learning_rate,
        betas=options.adamw_betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=fused,
    )


def norms_and_biases(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters of norms, and those of one number or one axis, as are biases and scales of channels."""
    return [
        parameter
        for module in modules
        for each in module.modules()
        for parameter in each.parameters(recurse=False)
        if parameter.ndim <= 1 or "norm" in type(each).__name__.lower()  # nn's, and LlamaRMSNorm
    ]
