"""A model of timm or torchvision by its name there, with a file of weights: what it was trained on is taken over.

Mean, deviation and, of torchvision, the names of its classes are those that the library has for the name; what the job
says itself takes their place. Nothing is fetched. Both libraries are imported where one is used: beside some builds of
torch they do not load at all.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from storage.digests import file_digest
from storage.errors import BadRequest, BadTeacher, is_out_of_memory
from teacher_cache.teachers.loaded import tapped_layers
from teacher_cache.teachers.spoken import Spoken, dimension, longest, wants_around  # noqa: F401 - of a Kind
from teacher_cache.teachers.weights import check_fit, load_weights, passed_over

if TYPE_CHECKING:
    from torch import Tensor, nn

    from storage.format.specs import DatasetSpec
    from teacher_cache.teachers.options import TeacherOptions

KEYS: tuple[str, ...] = ("model", "weights", "arguments", "mean", "std", "classes", "dimension", "size", "filter")


class Trained(NamedTuple):
    """How a model of a library was trained, as the library says of its name.

    Attributes:
        mean, std: of each channel, in [0, 1].
        size: height and width of its pictures.
        resized: in words, how they became so.
        classes: names of its scores, in their order; None: the library has none.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, ...]
    resized: str
    classes: list[str] | None


def told(options: TeacherOptions) -> dict[str, Any]:
    """Return what the job itself tells of the model."""
    keys = ("model", "arguments", "mean", "std", "classes")
    return {"kind": options.kind, **{key: getattr(options, key) for key in keys}}


def digests(options: TeacherOptions) -> dict[str, Any]:
    """Return the digest of the weights, and the normalisation that the library has for the model."""
    assert options.weights is not None
    trained = _trained(options)
    return {
        "weights": file_digest(options.weights),
        "normalised": {"mean": list(trained.mean), "std": list(trained.std)},
    }


def spoken(options: TeacherOptions) -> Spoken:
    """Return that it has no tokenizer."""
    return Spoken(None, "a model of pictures has none")


def classes(options: TeacherOptions) -> list[str] | None:
    """Return the names of its scores: the job's, or the library's where the job changes nothing of the model."""
    return options.classes or (None if options.arguments else _trained(options).classes)


def notes(options: TeacherOptions) -> list[str]:
    """Return how it is fed, how it was trained, and which weights of its file are passed over."""
    trained = _trained(options)
    mean, std = options.mean or trained.mean, options.std or trained.std
    whose = "the job's" if options.mean is not None else f"{options.kind}'s for {options.model}"
    sides = "×".join(map(str, trained.size))
    return [
        f"pixels are normalised by mean {_numbers(mean)} and deviation {_numbers(std)}, {whose}",
        f"{options.model} was trained on pictures of {sides}, {trained.resized}; it is shown "
        + ("the dataset's size" if options.size is None else f"size = {options.size}, {options.filter}"),
        *([] if options.weights is None else passed_over(options.weights)),
    ]


def check_files(options: TeacherOptions, dataset: DatasetSpec) -> None:
    """Check that its weights and the layers that are tapped are those of the model of that name."""
    assert options.weights is not None
    model = check_fit(options.weights, partial(_create, options))
    if model is not None:
        tapped_layers(options, model)


def import_libraries() -> None:
    """Import torch; the library is imported by what asks for the model."""
    import torch  # noqa: F401


def load(options: TeacherOptions) -> nn.Module:
    """Return the model with its weights, which normalises what it is given.

    Raises:
        BadRequest: the library is not installed, or does not load beside this torch.
        BadTeacher: it has no such model, or does not take the arguments.
        BadWeights: the weights cannot be read, or do not fit.
    """
    trained = _trained(options)
    assert options.weights is not None
    try:
        model = _create(options)
    except Exception as error:  # the library's own, of any class
        if is_out_of_memory(error):
            raise
        raise BadTeacher(
            f"{options.kind} makes no {options.model}", found=f"{type(error).__name__}: {error}"[:300]
        ) from error
    load_weights(model, options.weights)
    if options.mean is None:  # else the teacher does it itself
        _normalise(model, trained)
    return model


def _create(options: TeacherOptions) -> nn.Module:
    library = _library(str(options.kind))
    if options.kind == "timm":
        made: nn.Module = library.create_model(options.model, pretrained=False, **options.arguments)
        return made
    built: nn.Module = library.models.get_model(options.model, weights=None, **options.arguments)
    return built


def _normalise(model: nn.Module, trained: Trained) -> None:
    """Have a model normalise what it is called with; its layers keep their names."""
    import torch

    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (trained.mean, trained.std))
    model.register_buffer("stillroom_mean", mean, persistent=False)
    model.register_buffer("stillroom_std", std, persistent=False)

    def normalised(module: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return ((arguments[0] - module.stillroom_mean) / module.stillroom_std, *arguments[1:])

    model.register_forward_pre_hook(normalised)


def _trained(options: TeacherOptions) -> Trained:
    assert options.model is not None
    return _looked_up(str(options.kind), options.model)


@lru_cache
def _looked_up(kind: str, name: str) -> Trained:
    """Return what a library says of a model's name. Raises BadRequest, BadTeacher."""
    library = _library(kind)
    if kind == "timm":
        found = library.models.get_pretrained_cfg(name)
        if found is None:
            near = library.list_models(f"*{name[:6]}*")[:8]
            raise BadTeacher(f"timm has no model {name}", found=f"near: {', '.join(near)}" if near else None)
        resized = f"{found.interpolation}, the middle {100 * found.crop_pct:.4g} % of each"
        return Trained(tuple(found.mean), tuple(found.std), tuple(found.input_size[1:]), resized, None)
    try:
        weights = library.models.get_model_weights(name).DEFAULT
    except (ValueError, KeyError) as error:
        raise BadTeacher(f"torchvision has no model {name}", found=str(error)) from None
    shown = weights.transforms()
    resized = f"{shown.interpolation.value}, the middle of {shown.resize_size[0]}"
    size = (shown.crop_size[0], shown.crop_size[-1])
    return Trained(tuple(shown.mean), tuple(shown.std), size, resized, list(weights.meta["categories"]))


def _library(kind: str) -> Any:
    try:
        if kind == "timm":
            import timm
            import timm.models

            return timm
        import torchvision
        import torchvision.models

        return torchvision
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another build than torch
        raise BadRequest(
            f'kind = "{kind}" needs a package that cannot be imported here',
            found=f"{type(error).__name__}: {error}".split("\n", 1)[0],
            expected="timm or torchvision, of the very build that torch is: for CPUs, or for one version of CUDA",
            do=f"pip install {kind} from where torch came from; or export the model to ONNX there",
        ) from None


def _numbers(values: Any) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
