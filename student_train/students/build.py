"""A student is built from its blueprint: a built-in architecture or a user's own, behind its normalisation."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from storage.errors import BadRequest, StillroomError, is_out_of_memory
from storage.inputs.pixels import OwnFilter, resized
from storage.options import load_factory
from student_train.students.blueprint import Blueprint
from student_train.students.calling import AsOne, BodyAndHead, Calling
from student_train.students.cnn import cnn
from student_train.students.encoder import encoder
from student_train.students.gpt import gpt
from student_train.students.mlp import mlp
from student_train.students.remade.rebuild import rebuild
from student_train.students.resnet import resnet
from student_train.students.transformers import ARCHITECTURE as TRANSFORMERS
from student_train.students.transformers import OfTransformers, transformers

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "encoder": encoder,
    "gpt": gpt,
    "mlp": mlp,
    "resnet": resnet,
    TRANSFORMERS: transformers,
}


class Normalise(nn.Module):
    """(inputs − mean) / std, with one value for all channels or one for each; pictures at the size of the network.

    Args:
        mean, std: those values.
        input_shape: of one row.
        resize: height and width, and the filter, of a network that has a size of its own.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        input_shape: tuple[int, ...],
        resize: tuple[tuple[int, int], OwnFilter] | None = None,
    ):
        super().__init__()
        self._resize = resize
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, input_shape[0]):
                raise BadRequest(
                    f"`{name}` does not fit the inputs",
                    found=f"{len(values)} values",
                    expected=f"1, or {input_shape[0]} for inputs of shape {tuple(input_shape)}",
                )
            # (C or 1, 1, 1): one value for each channel, or for all
            self.register_buffer(name, torch.tensor(values).reshape(-1, *[1] * (len(input_shape) - 1)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return normalised inputs, of the same shape but for a size of the network's own."""
        if self._resize is not None:
            inputs = resized(inputs, *self._resize)
        return (inputs - self.mean) / self.std


class Scale(nn.Module):
    """Numbers of mean 0 and deviation 1 as numbers of a unit: answers · std + mean, one of each for each number."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, answers: Tensor) -> Tensor:
        """Return answers of the same shape."""
        return answers * self.std + self.mean


class Student(nn.Module):
    """A network behind its normalisation; the network's layers are named `network.<layer>`.

    Args:
        blueprint: what it is.
        network: one that answers at several sites of a row may be in two parts, `body` and `head`. Its logits then
            never exist for a whole batch.
        calling: how the network is called; None: as it has those two parts, or has not.

    Attributes:
        blueprint: what it is.
        tokenizer: the `tokenizer.json` that makes its rows of text, of one that was loaded; else None.
        frozen: names of the weights under an adapter, which stay as they began and are in no checkpoint.
    """

    def __init__(self, blueprint: Blueprint, network: nn.Module, calling: Calling | None = None):
        super().__init__()
        self.blueprint = blueprint
        self.normalise: nn.Module = nn.Identity()
        if blueprint.mean is not None and blueprint.std is not None:
            resize = None if blueprint.size is None or blueprint.filter is None else (blueprint.size, blueprint.filter)
            self.normalise = Normalise(blueprint.mean, blueprint.std, blueprint.input_shape, resize)
        self.network = network
        self.scale: nn.Module = nn.Identity()
        if blueprint.answer_mean is not None and blueprint.answer_std is not None:
            self.scale = Scale(blueprint.answer_mean, blueprint.answer_std)
        self.tokenizer: bytes | None = None
        self.frozen: frozenset[str] = frozenset()
        parts = dict(network.named_children())
        in_two = {"body", "head"} == parts.keys() and blueprint.asked.sites(blueprint.input_shape) != ()
        self._calling = calling or (BodyAndHead() if in_two else AsOne())

    @property
    def in_two_parts(self) -> bool:
        """Whether it is used in two parts, so that its logits need not exist for a whole batch."""
        return self._calling.in_two_parts

    @property
    def device(self) -> torch.device:
        """Where it is."""
        # one without any tensor is on the CPU
        return next(iter((*self.parameters(), *self.buffers(), torch.empty(0)))).device

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of its classes, in the order of its scores."""
        return self.blueprint.classes

    def prepare(self, samples: Sequence[Any]) -> Tensor:
        """Return samples of one's own as it is given rows when it is measured: inputs for a call of it, (B, …).

        Args:
            samples: of a student of images, as Pillow opened them, or the bytes of their files; of text, texts; of
                anything else, arrays as the dataset had them. Each becomes a row by the dataset's own policy.

        Raises:
            BadRequest: they are no samples of such a dataset, or it is not known what it did with them.
        """
        from storage.datasets.samples import rows_of  # Pillow, NumPy: nobody else here asks for them

        spec = self.blueprint
        return spec.made_of.arguments(rows_of(samples, spec.source, spec.made_of, spec.input_shape, self.tokenizer)).to(
            self.device
        )

    def forward(self, inputs: Tensor, *others: Tensor) -> Tensor:
        """Return logits (B, *sites, C) of inputs (B, …), as `storage.inputs` gives them, in one tensor or spread."""
        normalised = self.normalise(inputs)
        given = (normalised, *others) if others else self.blueprint.made_of.spread(normalised)
        logits: Tensor = self.scale(self._calling.logits(self.network, *given))
        return logits

    def blank(self, rows: int, input_shape: tuple[int, ...]) -> Tensor:
        """Return inputs of nothing, to try it on."""
        return self.blueprint.made_of.blank(rows, input_shape, self.device)

    def hidden(self, inputs: Tensor) -> Tensor:
        """Return what `scores` makes logits of: hidden states (B, *sites, D); of a network in one part the logits."""
        # of one part they are its answers, of which `scores` makes no others; one that tells numbers has no other part
        hidden: Tensor = self.scale(
            self._calling.hidden(self.network, *self.blueprint.made_of.spread(self.normalise(inputs)))
        )
        return hidden

    def scores(self, hidden_ND: Tensor) -> Tensor:
        """Return the logits (N, C) of some sites' hidden states (N, D)."""
        return self._calling.scores(self.network, hidden_ND)


def build_student(blueprint: Blueprint) -> Student:
    """Return a student with fresh weights, drawn from torch's global generator, which the caller has seeded.

    Raises:
        BadRequest: an unknown architecture, options that it does not take, or a factory that fails.
    """
    if ":" in blueprint.architecture:
        factory = load_factory(blueprint.architecture)
    elif blueprint.architecture in ARCHITECTURES:
        factory = ARCHITECTURES[blueprint.architecture]
    else:
        raise BadRequest(
            f"there is no architecture {blueprint.architecture!r}",
            expected=f"{', '.join(ARCHITECTURES)}, or module:factory",
        )
    given = _given(blueprint)
    _check_options(factory, given, blueprint)
    try:
        network = factory(*given, **_keywords(blueprint))
    except StillroomError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's factory raises
        large = is_out_of_memory(error)
        raise BadRequest(
            f"architecture {blueprint.architecture!r} {'does not fit into memory' if large else 'cannot be built'}",
            found=f"{type(error).__name__}: {error}",
            expected=f"a model from options = {blueprint.options}",
        ) from error
    if not isinstance(network, nn.Module):
        raise BadRequest(
            f"architecture {blueprint.architecture!r} is no model",
            found=f"the factory returned {type(network).__name__}",
            expected="torch.nn.Module",
        )
    network = rebuild(network, blueprint.changes)
    calling = None
    if blueprint.architecture == TRANSFORMERS and "answers" not in blueprint.options:
        calling = OfTransformers(network, blueprint.num_classes, blueprint.options["config"])
    return Student(blueprint, network, calling)


def _given(blueprint: Blueprint) -> tuple[Any, ...]:
    """Return what a factory is called with before its options: a teacher's is called with those alone."""
    return () if blueprint.teacher_code is not None else (blueprint.num_classes, blueprint.network_shape)


def _keywords(blueprint: Blueprint) -> dict[str, Any]:
    return (blueprint.of_inputs if blueprint.teacher_code is None else {}) | blueprint.options


def _check_options(factory: Callable[..., Any], given: tuple[Any, ...], blueprint: Blueprint) -> None:
    try:
        # before it is called: a TypeError of its own is no wrong option
        signature = inspect.signature(factory)
        signature.bind(*given, **_keywords(blueprint))
    except TypeError as error:
        known = list(signature.parameters)[len(given) :]  # behind num_classes and input_shape
        near = [
            f"{name} → {match[0]}" for name in blueprint.options if (match := difflib.get_close_matches(name, known, 1))
        ]
        raise BadRequest(
            f"architecture {blueprint.architecture!r} does not take these options",
            found=f"options = {blueprint.options} ({error})",
            expected=f"some of: {', '.join(known) or 'none'}",
            do=f"rename {'; '.join(near)}" if near else None,
        ) from None
    if blueprint.architecture in ARCHITECTURES:  # whose types are known; of a user's own, nobody but they themselves
        _check_types(factory, blueprint)


def _check_types(factory: Callable[..., Any], blueprint: Blueprint) -> None:
    """Raise BadRequest if an option of a built-in architecture is of another type than it takes: `widths = "8"`."""
    takes = get_type_hints(factory)
    for name, value in blueprint.options.items():
        try:
            TypeAdapter(takes.get(name, Any)).validate_python(value, strict=True)
        except ValidationError as error:
            raise BadRequest(
                f"architecture {blueprint.architecture!r} does not take this option",
                found=f"{name} = {value!r}",
                expected=error.errors()[0]["msg"].removeprefix("Input should be "),
                do="numbers without quotes, lists in brackets: widths = [8, 16]" if isinstance(value, str) else None,
            ) from None
