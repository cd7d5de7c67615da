"""A teacher that a function of the user's returns; its weights come from a file beside, or from the function itself."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from storage.digests import file_digest
from storage.errors import BadRequest, BadTeacher
from storage.language.tokenizer import read_tokenizer
from storage.options import beside, code_fingerprint, load_factory
from teacher_cache.teachers.loaded import build_twice, tapped_layers
from teacher_cache.teachers.spoken import classes, dimension, longest, spoken, wants_around  # noqa: F401 - of a Kind
from teacher_cache.teachers.weights import check_fit, load_weights, passed_over

if TYPE_CHECKING:
    from torch import nn

    from storage.format.specs import DatasetSpec
    from teacher_cache.teachers.options import TeacherOptions

KEYS: tuple[str, ...] = (
    "arguments",
    "weights",
    "mean",
    "std",
    "tokenizer",
    "classes",
    "dimension",
    "output",
    "pixels",
    "size",
    "filter",
)


def told(options: TeacherOptions) -> dict[str, Any]:
    """Return what the job itself tells of the model: the function, without the file that it is in."""
    assert options.factory is not None
    said = {
        "function": options.factory.rpartition(":")[2],  # without its file, which may move
        "arguments": options.arguments,
        "mean": options.mean,
        "std": options.std,
    }
    # Left out where they say nothing: caches that were built before there were such keys do not have them.
    more = {"classes": options.classes, "output": options.output, "pixels": options.pixels}
    return said | {key: value for key, value in more.items() if value not in (None, "logits", "unit")}


def digests(options: TeacherOptions) -> dict[str, Any]:
    """Return the digests of code and weights, and of text the tokenizer's."""
    assert options.factory is not None
    found = {
        "code": code_fingerprint(options.factory),
        "weights": None if options.weights is None else file_digest(options.weights),
    }
    # Left out where there is none: caches that were built before there was text do not have the key.
    return found if options.tokenizer is None else found | {"tokenizer": read_tokenizer(options.tokenizer).fingerprint}


def notes(options: TeacherOptions) -> list[str]:
    """Return which weights of its file are passed over."""
    return [] if options.weights is None else passed_over(options.weights)


def check_files(options: TeacherOptions, dataset: DatasetSpec) -> None:
    """Check that its weights, if they are in a file, and the layers that are tapped are those of what is built."""
    if options.weights is not None:  # else what the function returns is read only where it is needed
        model = check_fit(options.weights, partial(_build, options))
        if model is not None:
            tapped_layers(options, model)


def import_libraries() -> None:
    """Import torch; what a function imports, its code alone knows."""
    import torch  # noqa: F401


def load(options: TeacherOptions) -> nn.Module:
    """Return the model that the function makes, with its weights.

    Raises:
        BadTeacher: the function failed, returned no model, or another one each time.
        BadWeights: the weights cannot be read, or do not fit.
    """
    assert options.factory is not None
    if options.weights is None:
        return build_twice(partial(_build, options), options.factory)
    model = _build(options)
    load_weights(model, options.weights)
    return model


def _build(options: TeacherOptions) -> nn.Module:
    from torch import nn

    assert options.factory is not None
    try:
        model = load_factory(options.factory)(**options.arguments)
    except BadRequest:
        raise
    except (Exception, SystemExit) as error:  # the user's own code
        found = f"{type(error).__name__}: {error}"
        raise BadTeacher(f"{options.factory} failed", found, do=beside(options.factory, error)) from error
    if not isinstance(model, nn.Module):
        raise BadTeacher(f"{options.factory} did not return a model", found=type(model).__name__, expected="nn.Module")
    return model
