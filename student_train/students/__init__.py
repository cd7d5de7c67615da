"""Students: built-in architectures, a user's own, and the files of a trained one.

A student takes what `storage.views.plain` gives, tokens, or pixels with its normalisation as its first module,
so that a trained student is a valid teacher: `teacher_cache` imports this module and nothing else of this room.

A trained student is two files: `student.safetensors`, and `student.json`, written last, with its architecture and
the digest of its weights. Reading them runs no code that they name: a built-in architecture is looked up below,
and any other only runs when the caller names it too.
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from storage.digests import digest
from storage.errors import BadRequest, BadWeights, CorruptObject, MissingSource, StillroomError, UnsupportedFormat
from storage.format.objects import LocalObjects
from storage.options import Options, load_factory
from student_train.devices import is_out_of_memory
from student_train.students.cnn import cnn
from student_train.students.gpt import gpt
from student_train.students.mlp import mlp
from student_train.students.resnet import resnet

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"cnn": cnn, "gpt": gpt, "mlp": mlp, "resnet": resnet}

WEIGHTS_FILE = "student.safetensors"
BLUEPRINT_FILE = "student.json"
FORMAT_VERSION = 1

Size = Annotated[int, Field(ge=1)]
Numbers = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]


class Blueprint(Options):
    """All that is needed to build a student, weights apart.

    Attributes:
        architecture: a built-in one, or `module:factory`.
        options: of the architecture.
        num_classes: of a row, or ids of the vocabulary.
        input_shape: of one row, (L,) for tokens.
        mean, std: normalisation of inputs in [0, 1]; None for tokens, which have none.
        tokenizer: fingerprint of the tokenizer whose ids it knows, if that was known.
    """

    architecture: str
    options: dict[str, Any] = Field(default={})
    num_classes: Size
    input_shape: Annotated[tuple[Size, ...], Field(strict=False, min_length=1)]
    mean: Numbers | None
    std: Numbers | None
    tokenizer: str | None = None

    @property
    def of_tokens(self) -> bool:
        """Whether its inputs are tokens, (B, L) int64, and its logits (B, L, C)."""
        return self.mean is None


class BlueprintFile(Blueprint):
    """The content of `student.json`."""

    format_version: Literal[1] = 1
    weights_digest: str


class Normalise(nn.Module):
    """(inputs − mean) / std, with one value for all channels or one for each."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], input_shape: tuple[int, ...]):
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, input_shape[0]):
                raise BadRequest(
                    f"`{name}` does not fit the inputs",
                    found=f"{len(values)} values",
                    expected=f"1, or {input_shape[0]} for inputs of shape {tuple(input_shape)}",
                )
            self.register_buffer(name, torch.tensor(values).reshape(-1, *[1] * (len(input_shape) - 1)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return normalised inputs of the same shape."""
        return (inputs - self.mean) / self.std


class Student(nn.Module):
    """A network behind its normalisation; the network's layers are named `network.<layer>`.

    Args:
        normalise: of float inputs; of tokens None.
        network: one of tokens may be in two parts, `body` and `head`. Its logits then never exist for a whole batch.

    Attributes:
        of_tokens: whether it takes tokens.
        in_two_parts: whether its network is in those two.
    """

    def __init__(self, normalise: Normalise | None, network: nn.Module):
        super().__init__()
        self.of_tokens = normalise is None
        self.normalise = nn.Identity() if normalise is None else normalise
        self.network = network
        parts = dict(network.named_children())
        self.in_two_parts = {"body", "head"} == parts.keys()

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(iter((*self.parameters(), *self.buffers(), torch.empty(0)))).device

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, C) of float inputs (B, …) in [0, 1], or (B, L, C) of tokens (B, L) int64."""
        logits_BC: Tensor = self.network(self.normalise(inputs))
        return logits_BC

    def blank(self, rows: int, input_shape: tuple[int, ...]) -> Tensor:
        """Return inputs of nothing, to try it on."""
        return torch.zeros(
            rows, *input_shape, dtype=torch.int64 if self.of_tokens else torch.float32, device=self.device
        )

    def hidden(self, tokens_BL: Tensor) -> Tensor:
        """Return what `scores` makes logits of: hidden states (B, L, D), or of a network in one part the logits."""
        hidden: Tensor = self.network.body(tokens_BL) if self.in_two_parts else self.network(tokens_BL)  # type: ignore[operator]
        return hidden

    def scores(self, hidden_ND: Tensor) -> Tensor:
        """Return the logits (N, C) of some positions' hidden states (N, D)."""
        logits_NC: Tensor = self.network.head(hidden_ND) if self.in_two_parts else hidden_ND  # type: ignore[operator]
        return logits_NC


def build_student(spec: Blueprint) -> Student:
    """Return a student with fresh weights, drawn from torch's global generator, which the caller has seeded.

    Raises:
        BadRequest: an unknown architecture, options that it does not take, or a factory that fails.
    """
    if ":" in spec.architecture:
        factory = load_factory(spec.architecture)
    elif spec.architecture in ARCHITECTURES:
        factory = ARCHITECTURES[spec.architecture]
    else:
        raise BadRequest(
            f"there is no architecture {spec.architecture!r}", expected=f"{', '.join(ARCHITECTURES)}, or module:factory"
        )
    _check_options(factory, spec)
    try:
        network = factory(spec.num_classes, spec.input_shape, **spec.options)
    except StillroomError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's factory raises
        large = is_out_of_memory(error)
        raise BadRequest(
            f"architecture {spec.architecture!r} {'does not fit into memory' if large else 'cannot be built'}",
            found=f"{type(error).__name__}: {error}",
            expected=f"a model from options = {spec.options}",
        ) from error
    if not isinstance(network, nn.Module):
        raise BadRequest(
            f"architecture {spec.architecture!r} is no model",
            found=f"the factory returned {type(network).__name__}",
            expected="torch.nn.Module",
        )
    if spec.mean is None or spec.std is None:
        return Student(None, network)
    return Student(Normalise(spec.mean, spec.std, spec.input_shape), network)


def save_student(folder: Path, spec: Blueprint, weights: Mapping[str, Tensor]) -> None:
    """Write a trained student's two files, weights first."""
    objects = LocalObjects(folder)
    data = safetensors.torch.save(
        {name: weight.detach().cpu().clone().contiguous() for name, weight in weights.items()}
    )
    objects.put(WEIGHTS_FILE, data)
    file = BlueprintFile(**spec.model_dump(), weights_digest=digest(data))
    objects.put(BLUEPRINT_FILE, (file.model_dump_json(indent=2) + "\n").encode())


def load_student(folder: str | Path, architecture: str | None = None) -> Student:
    """Return a trained student in evaluation mode, on the CPU.

    Args:
        folder: a run's folder.
        architecture: for a student of a user's own architecture, its `module:factory` as the caller's own job
            names it. A built-in one needs none.

    Raises:
        MissingSource: no trained student there.
        BadRequest: the student's architecture is a user's own and the caller did not name the same one.
        BadWeights: weights that do not fit the architecture.
        CorruptObject: weights other than those that were written.
    """
    folder = Path(folder)
    spec, data = _read_files(folder)
    trusted = spec.architecture in ARCHITECTURES or (architecture and _same_factory(architecture, spec.architecture))
    if not trusted:
        raise BadRequest(
            f"the student in {folder} has an architecture of its own",
            found=spec.architecture,
            expected=f"{architecture or 'a built-in architecture'}  (the caller)",
            do=f'architecture = "{spec.architecture}" in the job, if you trust that code',
        )
    try:
        weights = safetensors.torch.load(data)
    except SafetensorError as error:
        raise BadWeights(f"{folder / WEIGHTS_FILE} is no safetensors file", found=str(error)) from None
    if spec.architecture in ARCHITECTURES:
        with torch.device("meta"):  # so that nothing is allocated before sizes are known to agree with the file
            student = build_student(spec)
    else:
        student = build_student(spec.model_copy(update={"architecture": architecture}))
    _check_weights(folder, student, weights)
    student.load_state_dict(weights, assign=True)
    return student.eval()


def _read_files(folder: Path) -> tuple[Blueprint, bytes]:
    try:
        text = (folder / BLUEPRINT_FILE).read_bytes()
        data = (folder / WEIGHTS_FILE).read_bytes()
    except OSError as error:
        raise MissingSource(
            f"there is no trained student in {folder}",
            found=f"{error.strerror}: {error.filename}",
            expected=f"{BLUEPRINT_FILE} and {WEIGHTS_FILE}",
            do="student train JOB.toml",
        ) from None
    try:
        version = json.loads(text).get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise UnsupportedFormat(
                f"{folder / BLUEPRINT_FILE} was written by a later Stillroom",
                found=f"format {version}",
                expected=f"format {FORMAT_VERSION}",
            )
        file = BlueprintFile.model_validate_json(text)
    except (ValueError, AttributeError, ValidationError) as error:
        raise BadWeights(f"{folder / BLUEPRINT_FILE} describes no student", found=str(error)) from None
    if digest(data) != file.weights_digest:
        raise CorruptObject(
            f"{folder / WEIGHTS_FILE} is not what was written",
            found=f"digest {digest(data)}",
            expected=f"digest {file.weights_digest}  ({BLUEPRINT_FILE})",
            do=f"delete {folder} and train this student again",
        )
    return file, data


def _check_options(factory: Callable[..., Any], spec: Blueprint) -> None:
    try:
        signature = inspect.signature(factory)
        signature.bind(spec.num_classes, spec.input_shape, **spec.options)
    except TypeError as error:
        known = list(signature.parameters)[2:]
        near = [f"{name} → {match[0]}" for name in spec.options if (match := difflib.get_close_matches(name, known, 1))]
        raise BadRequest(
            f"architecture {spec.architecture!r} does not take these options",
            found=f"options = {spec.options} ({error})",
            expected=f"some of: {', '.join(known) or 'none'}",
            do=f"rename {'; '.join(near)}" if near else None,
        ) from None


def _check_weights(folder: Path, student: nn.Module, weights: Mapping[str, Tensor]) -> None:
    expected = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in student.state_dict().items()}
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise BadWeights(
            f"{folder / WEIGHTS_FILE} does not fit its architecture ({len(wrong)} tensors)",
            found="\n".join(f"{name}: {found.get(name, 'none')}" for name in wrong[:4]),
            expected="\n".join(f"{name}: {expected.get(name, 'none')}" for name in wrong[:4]),
        )


def _same_factory(reference: str, other: str) -> bool:
    """Tell whether two references name one function; a file may have moved with its folder."""
    module, _, function = reference.rpartition(":")
    other_module, _, other_function = other.rpartition(":")
    if module.endswith(".py"):
        module, other_module = Path(module).name, Path(other_module).name
    return (module, function) == (other_module, other_function)
