"""Files of weights: the digest of their bytes, and their tensors, read without executing anything."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

from storage.errors import BadWeights, MissingSource

if TYPE_CHECKING:
    from torch import Tensor, nn

MOST_KEYS = 8  # of a checkpoint, told where they are not weights


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model from a file. Raises BadWeights: they do not fit, told tensor by tensor."""
    weights = read_weights(path)
    _check_fit(path, {name: tuple(tensor.shape) for name, tensor in weights.items()}, model.state_dict())
    model.load_state_dict(weights)  # into the model's own precision, so that half-precision files fill any model


def check_fit(path: Path, build: Callable[[], nn.Module]) -> nn.Module | None:
    """Check that the tensors of a file are those of a model, by names and shapes; no value is read or made.

    Args:
        path: of the file.
        build: makes the model, here on the meta device.

    Returns:
        The model, without values; None of one that cannot be made so: what is wrong with it, loading tells.

    Raises:
        BadWeights: the file cannot be read, or they do not fit, told tensor by tensor.
        MissingSource: there is no such file.
    """
    import torch

    shapes = read_shapes(path)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = build()
    except Exception:  # of a user's own code, or of a library, which may need values
        return None
    _check_fit(path, shapes, model.state_dict())
    return model


def _check_fit(path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, Tensor]) -> None:
    absent, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    shapes = [
        f"{name}: {found[name]} in the file, {tuple(expected[name].shape)} in the model"
        for name in sorted(expected.keys() & found.keys())
        if found[name] != tuple(expected[name].shape)
    ]
    faults = (
        [f"missing {', '.join(absent[:5])}"] * bool(absent)
        + [f"unknown {', '.join(extra[:5])}"] * bool(extra)
        + shapes[:5]
    )
    if faults:
        raise BadWeights(
            f"{path} does not fit the model",
            found="\n".join(faults),
            expected=f"{len(expected)} tensors",
            do=_without_prefix(found, expected),
        )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of a checkpoint that torch can read without executing anything.

    Raises:
        BadWeights: it is neither.
        MissingSource: there is no such file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise _damaged(path, error) from None
        except FileNotFoundError as error:
            raise MissingSource(f"there is no {path}", found=str(error.args[0])) from None
    return _tensors(path, _loaded(path))


def _damaged(path: Path, error: Exception) -> BadWeights:
    return BadWeights(
        f"{path} is not a safetensors file",
        found=str(error),
        expected="a whole one",
        do="copy or save it again: it may have been cut off",
    )


def _tensors(path: Path, loaded: Any) -> dict[str, Tensor]:
    """Return the weights in what torch saved. Raises BadWeights: it is something else."""
    from torch import Tensor

    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise BadWeights(f"{path} holds something other than weights", **_instead_of_weights(loaded))
    return loaded


def passed_over(path: Path) -> list[str]:
    """Return in words which other weights of the same names a checkpoint has besides those that are read.

    Raises:
        BadWeights: it cannot be read.
    """
    loaded = None if path.suffix == ".safetensors" else _loaded(path)
    taken = loaded.get("state_dict") if isinstance(loaded, dict) else None
    if not isinstance(loaded, dict) or not isinstance(taken, dict):
        return []
    alike = [
        key
        for key, value in loaded.items()
        if value is not taken and _is_weights(value) and value.keys() == taken.keys()
    ]
    return [
        f"its weights are 'state_dict' of {path.name}, and {key!r}, which has others of the same names, is not read; "
        f"if that is meant: torch.save(torch.load(…)[{key!r}], …)"
        for key in alike
    ]


def _loaded(path: Path, device: str = "cpu", *, mapped: bool = False) -> Any:
    """Return what torch saved, on a device; `mapped`: tensors are not read before they are looked at.

    Raises:
        BadWeights: it cannot be read without executing something.
        MissingSource: there is no such file.
    """
    import torch

    try:
        # a pickle of anything else could execute code
        return torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        raise MissingSource(f"there is no {path}", found=error.strerror) from None
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError and more
        raise BadWeights(
            f"{path} cannot be read as weights",
            found=f"{type(error).__name__}, read with weights_only",
            expected="safetensors, or a checkpoint of tensors only; a pickle could execute code",
            do="save it again with safetensors.torch.save_file(model.state_dict(), …)",
        ) from None


def _without_prefix(weights: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Return how weights are saved that a wrapper of the model gave other names, as DataParallel and compile do."""
    prefix = next(iter(weights), "").partition(".")[0] + "."
    if {name.removeprefix(prefix) for name in weights} != set(expected):
        return None
    return f"all names in it begin with {prefix!r}: save them without, {{name.removeprefix({prefix!r}): …}}"


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a file that `read_weights` reads, without these. Raises as that does."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        loaded = _loaded(path, "meta", mapped=is_zipfile(path))  # of before torch 1.6: no zip
        return {name: tuple(tensor.shape) for name, tensor in _tensors(path, loaded).items()}
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
    except SafetensorError as error:
        raise _damaged(path, error) from None
    except FileNotFoundError as error:
        raise MissingSource(f"there is no {path}", found=str(error.args[0])) from None


def _instead_of_weights(loaded: Any) -> dict[str, str]:
    """Return what a checkpoint holds that is no dict of tensors, and how to keep the part of it that is one."""
    told = {"found": type(loaded).__name__, "expected": 'a dict of tensors, or one under "state_dict"'}
    if isinstance(loaded, dict):
        told["found"] = f"a dict of {', '.join(map(str, list(loaded)[:MOST_KEYS]))}"
        parts = [key for key, value in loaded.items() if _is_weights(value)]
        told["do"] = f"keep the weights alone: torch.save(torch.load(…)[{parts[0]!r}], …)" if len(parts) == 1 else ""
    return {name: text for name, text in told.items() if text}


def _is_weights(value: Any) -> bool:
    from torch import Tensor

    return isinstance(value, dict) and bool(value) and all(isinstance(each, Tensor) for each in value.values())
