"""Teachers: what a job says of them, what the cache is promised, and how one is loaded.

A teacher is a function that a job names (`factory`) with weights from a file, or the folder of a trained student.
Reading options and promises costs no torch, so that a build with nothing to do ends in under a second.

Shapes: B rows of a batch, C classes.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import socket
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import xxhash
from pydantic import Field, FiniteFloat, model_validator

from storage.digests import fingerprint
from storage.encodings import AnyEncoding, DenseEncoding, FeatureEncoding
from storage.errors import BadRequest, BadTeacher, BadWeights, MissingSource, StaleCache
from storage.format.specs import DatasetSpec, TeacherSpec
from storage.options import Factory, JobPath, Name, Options, code_fingerprint, load_factory
from storage.tokenizer import read_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

READ_BYTES = 2**24


class TeacherOptions(Options):
    """One `[[teacher]]` of a cache job.

    Attributes:
        name: its folder in the cache.
        factory: `module:function` that returns the model; its weights come from `weights`.
        arguments: keyword arguments of the factory.
        weights: safetensors, or a checkpoint that torch reads with `weights_only`.
        student: instead of a factory, the folder of a trained student.
        architecture: the student's own `module:function`, needed if it was not a built-in.
        mean, std: per channel, of inputs in [0, 1]; applied before the model. A student carries its own.
        autocast: precision of the forward pass.
        encoding: how soft targets are stored.
        features: name → layer, pooling and precision of an intermediate tensor to store beside.
        batch_size: rows of one forward pass.
        tokenizer: the `tokenizer.json` that a factory's model speaks, over text. A student carries its own.
        datasets: which of the job's datasets it is run over; by default all.
    """

    name: Name
    factory: Factory | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: JobPath | None = None
    student: JobPath | None = None
    architecture: Factory | None = None
    mean: Annotated[list[FiniteFloat], Field(min_length=1)] | None = None
    std: list[Annotated[FiniteFloat, Field(gt=0)]] | None = None
    autocast: Literal["fp32", "bf16", "fp16"] = "fp32"
    encoding: AnyEncoding = DenseEncoding()
    features: dict[Name, FeatureEncoding] = Field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=1)] = 256
    tokenizer: JobPath | None = None
    datasets: list[Name] | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.factory is None) == (self.student is None):
            raise ValueError("give either `factory` (with `weights`) or `student`")
        if self.student is not None:
            for key in ("arguments", "weights", "mean", "std", "tokenizer"):
                if getattr(self, key):
                    raise ValueError(f"`{key}` belongs to a `factory`; a student's folder already holds it")
        elif self.architecture is not None:
            raise ValueError("`architecture` belongs to a `student`")
        try:
            fingerprint(self.arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`arguments` may hold what JSON can: no dates, no nan, no inf ({error})") from None
        if (self.mean is None) != (self.std is None) or len(self.mean or []) != len(self.std or []):
            raise ValueError("give `mean` and `std` together, one number per channel each")
        return self

    def told(self) -> dict[str, Any]:
        """Return what the job itself tells of the model, without any of its files."""
        if self.factory is None:
            return {"autocast": self.autocast}
        function = self.factory.rpartition(":")[2]
        return {
            "autocast": self.autocast,
            "function": function,
            "arguments": self.arguments,
            "mean": self.mean,
            "std": self.std,
        }

    def promise(self, num_classes: int) -> TeacherSpec:
        """Return what the cache is promised of this teacher, from its files' digests, without loading it.

        Raises:
            MissingSource: the weights or the student's folder are not there.
            BadRequest: the encoding wants more classes than there are.
        """
        self.encoding.check(num_classes)
        model = self.told()
        if self.factory is not None:
            model |= {
                "code": code_fingerprint(self.factory),
                "weights": None if self.weights is None else file_digest(self.weights),
            }
            if self.tokenizer is not None:
                model |= {"tokenizer": read_tokenizer(self.tokenizer).fingerprint}
        else:
            assert self.student is not None
            model |= {
                "student": file_digest(self.student / "student.json"),
                "weights": file_digest(self.student / "student.safetensors"),
            }
            if self.architecture is not None:
                model |= {"code": code_fingerprint(self.architecture)}
        return TeacherSpec(
            name=self.name, model=model, num_classes=num_classes, encoding=self.encoding, features=self.features
        )


def check_tokens(teacher: TeacherOptions, dataset: DatasetSpec, unbuilt: str | None = None) -> None:
    """Check that a teacher and a dataset of tokens mean the same by an id; reads files, and loads no teacher.

    Args:
        teacher: of a job.
        dataset: likewise.
        unbuilt: where the first build will put the dataset's tokenizer, learned or not; None once it has.

    Raises:
        BadRequest: they do not, or one of them does not say; or the teacher has options that are of images.
        MissingSource: the teacher's tokenizer or folder is not there.
    """
    if dataset.vocabulary is None:
        return
    if teacher.student is not None:
        spoken, said = _student_tokenizer(teacher.student), f"{teacher.student}/student.json"
    else:
        spoken = None if teacher.tokenizer is None else read_tokenizer(teacher.tokenizer).fingerprint
        said = str(teacher.tokenizer or "the job names none")
    if spoken != dataset.tokenizer:
        do = "tokenizer = …, the teacher's own tokenizer.json, in [[dataset]] and, for a factory, in [[teacher]]"
        if unbuilt is not None and teacher.factory is not None and dataset.tokenizer is not None:
            do += f'; of one that is learned here, cache build without the teacher first, then tokenizer = "{unbuilt}"'
        raise BadRequest(
            f"teacher {teacher.name} has another tokenizer than dataset {dataset.name}",
            found=f"{spoken and f'fingerprint {spoken}'}  ({said})",
            expected=f"{dataset.tokenizer and f'fingerprint {dataset.tokenizer}'}  "
            + ("(this job)" if unbuilt is not None else f"({dataset.name}/dataset.json)"),
            do=do,
        )

    pooled = [name for name, feature in teacher.features.items() if feature.pool != "none"]
    if teacher.mean is not None or pooled:
        raise BadRequest(
            f"teacher {teacher.name} cannot be asked so about {dataset.name}, which is tokens",
            found=f"a pool of {', '.join(pooled)}" if pooled else "mean and std",
            expected='features with pool = "none", a vector for each position; and no normalisation',
        )


def _student_tokenizer(folder: Path) -> str | None:
    """Return the fingerprint that a trained student carries, without loading it."""
    path = folder / "student.json"
    try:
        value = json.loads(path.read_bytes())
        spoken = value.get("tokenizer")
    except OSError as error:
        raise MissingSource(
            f"there is no trained student in {folder}", found=error.strerror, expected=path.name
        ) from None
    except (ValueError, AttributeError, RecursionError) as error:
        raise BadWeights(f"{path} describes no student", found=str(error)) from None
    return spoken if isinstance(spoken, str) else None


class Teacher:
    """A loaded model in evaluation mode on its device; call it with plain views (B, …) in [0, 1]."""

    def __init__(self, options: TeacherOptions, model: nn.Module, device: torch.device):
        self.batch_size = options.batch_size
        self.model = model.eval().requires_grad_(False)
        self._options = options
        self._captured: dict[str, Tensor] = {}
        modules = dict(model.named_modules())
        for name, feature in options.features.items():
            if feature.layer not in modules:
                near = difflib.get_close_matches(feature.layer, modules, n=5, cutoff=0.3)
                raise BadTeacher(
                    f"teacher {options.name} has no layer {feature.layer}",
                    found=", ".join([*modules][1:13]),
                    expected=f"one of its layers; near: {', '.join(near)}" if near else None,
                )
            modules[feature.layer].register_forward_hook(self._capture(name))
        self.to(device)

    def to(self, device: torch.device) -> None:
        """Move the teacher to a device."""
        self._device = device
        self.model.to(device)

    def __call__(self, inputs_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits of a batch, (B, C) float32, of token ids (B, L, C), and its features by name.

        Raises:
            BadTeacher: the model failed on it, its output has another shape, or a feature is not one tensor (B, …).
        """
        import torch

        options = self._options
        half = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[options.autocast]
        autocast = contextlib.nullcontext() if half is None else torch.autocast(self._device.type, half)
        self._captured = {}
        with torch.inference_mode(), autocast:
            inputs_B = self._normalised(inputs_B.to(self._device, non_blocking=True))
            try:
                output = self.model(inputs_B)
            except torch.OutOfMemoryError as error:
                raise BadTeacher(
                    f"teacher {options.name} does not fit on {self._device}", found=str(error), do="lower batch_size"
                ) from None
            except (Exception, SystemExit) as error:  # the user's own model
                raise BadTeacher(
                    f"teacher {options.name} failed on inputs of shape {tuple(inputs_B.shape)}",
                    found=f"{type(error).__name__}: {error}",
                ) from error
        logits_BC = getattr(output, "logits", output)
        leading = inputs_B.shape[:1] if inputs_B.is_floating_point() else inputs_B.shape
        if _shape(logits_BC[..., :0] if isinstance(logits_BC, torch.Tensor) else logits_BC) != str((*leading, 0)):
            raise BadTeacher(
                f"teacher {options.name} did not return logits",
                found=_shape(logits_BC),
                expected=f"a tensor ({', '.join(map(str, leading))}, C)",
            )
        for name, feature in options.features.items():
            if not _has_rows(values := self._captured.get(name), len(inputs_B)):
                raise BadTeacher(
                    f"feature {name} of teacher {options.name} is not one tensor with a row for each sample",
                    found="the model never called this layer" if values is None else _shape(values),
                    expected=f"a tensor ({len(inputs_B)}, …) from layer {feature.layer}",
                    do="name another layer",
                )
        return logits_BC.float(), self._captured

    def _capture(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # A copy: what follows may work in place, as ReLU(inplace=True) does.
            self._captured[name] = output.clone() if hasattr(output, "clone") else output

        return hook

    def _normalised(self, inputs_B: Tensor) -> Tensor:
        mean, std = self._options.mean, self._options.std
        if mean is None or std is None:
            return inputs_B
        if inputs_B.shape[1] != len(mean):
            raise BadTeacher(
                f"teacher {self._options.name} is normalised by other channels than its inputs have",
                found=f"`mean` and `std` of {len(mean)} channels",
                expected=f"{inputs_B.shape[1]}, as in inputs of shape {tuple(inputs_B.shape)}",
                do="give `mean` and `std` one number for each channel",
            )
        shape = (-1, *[1] * (inputs_B.ndim - 2))
        return (inputs_B - inputs_B.new_tensor(mean).view(shape)) / inputs_B.new_tensor(std).view(shape)


def _has_rows(value: Any, num_rows: int) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.shape[:1] == (num_rows,)


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if hasattr(value, "shape") else type(value).__name__


def load_teacher(options: TeacherOptions, device: torch.device) -> Teacher:
    """Return a teacher ready to run.

    Raises:
        BadWeights: the weights cannot be read, or do not fit the model.
        BadTeacher: the factory failed, or a named layer does not exist.
    """
    from torch import nn

    if options.student is not None:
        from student_train.students import load_student  # the one door: a trained student is a valid teacher

        return Teacher(options, load_student(options.student, architecture=options.architecture), device)
    assert options.factory is not None
    try:
        model = load_factory(options.factory)(**options.arguments)
    except BadRequest:
        raise
    except (Exception, SystemExit) as error:  # the user's own code
        raise BadTeacher(f"{options.factory} failed", found=f"{type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise BadTeacher(f"{options.factory} did not return a model", found=type(model).__name__, expected="nn.Module")
    if options.weights is not None:
        _load_weights(model, options.weights)
    return Teacher(options, model, device)


def _load_weights(model: nn.Module, path: Path) -> None:
    weights = read_weights(path)
    expected = model.state_dict()
    absent, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    shapes = [
        f"{name}: {tuple(weights[name].shape)} in the file, {tuple(expected[name].shape)} in the model"
        for name in sorted(expected.keys() & weights.keys())
        if weights[name].shape != expected[name].shape
    ]
    faults = (
        [f"missing {', '.join(absent[:5])}"] * bool(absent)
        + [f"unknown {', '.join(extra[:5])}"] * bool(extra)
        + shapes[:5]
    )
    if faults:
        raise BadWeights(f"{path} does not fit the model", found="\n".join(faults), expected=f"{len(expected)} tensors")
    model.load_state_dict(weights)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of a checkpoint that torch can read without executing anything.

    Raises:
        BadWeights: it is neither.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise BadWeights(f"{path} is not a safetensors file", found=str(error)) from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError and more
        raise BadWeights(
            f"{path} cannot be read as weights",
            found=f"{type(error).__name__}, read with weights_only",
            expected="safetensors, or a checkpoint of tensors only; a pickle could execute code",
            do="save it again with safetensors.torch.save_file(model.state_dict(), …)",
        ) from None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise BadWeights(f"{path} holds something other than weights", expected="a dict of tensors")
    return loaded


def file_digest(path: Path) -> str:
    """Return the digest of a file's bytes. Raises MissingSource."""
    hasher = xxhash.xxh3_128()
    try:
        with open(path, "rb") as file:
            while block := file.read(READ_BYTES):
                hasher.update(block)
    except OSError as error:
        raise MissingSource(
            f"there is no {path}", found=error.strerror, do="paths in a job file are relative to its own folder"
        ) from None
    return hasher.hexdigest()


@lru_cache(maxsize=1)  # one worker, one teacher: the next one takes its place
def cached_teacher(options_json: str, promise: str, num_classes: int, device: str) -> Teacher:
    """Return the teacher of a task, loaded in the first one of each process.

    Args:
        options_json: TeacherOptions as JSON.
        promise: fingerprint of its TeacherSpec in the cache.
        num_classes: of that spec.
        device: a torch device.

    Raises:
        StaleCache: its code or weights, as this process sees them, are not those of the promise.
    """
    import torch

    options = TeacherOptions.model_validate(json.loads(options_json))
    teacher = load_teacher(options, torch.device(device))
    found = options.promise(num_classes).fingerprint  # after loading: what was read is what is compared
    if found != promise:
        raise StaleCache(
            f"teacher {options.name} is not the one that the cache was promised",
            found=f"fingerprint {found}, from its files as {socket.gethostname()} sees them",
            expected=f"fingerprint {promise}",
            do="leave a teacher's files alone while it runs; keep them on a disk that every worker sees",
        )
    return teacher
