"""How pictures become the inputs of a classifier of transformers, as its folder's image processor or a job says it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from storage.errors import BadRequest
from storage.language.pooling import read_json

PREPROCESSOR = "preprocessor_config.json"


class Preprocessing(NamedTuple):
    """What a classifier of images expects: pixels in [0, 1], less `mean` and over `std` of each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def preprocessing_as(
    folder: Path, mean: Sequence[float] | None, std: Sequence[float] | None, *, wrong: type[BadRequest], where: str
) -> Preprocessing:
    """Return how images are normalised, as a job says it, else as the folder's image processor does.

    Args:
        folder: of the model.
        mean, std: what the job says; None: nothing.
        wrong: error of whoever asks.
        where: in the job they are said.

    Raises:
        wrong: nobody says it; or pixels are scaled otherwise than to [0, 1].
    """
    if mean is not None and std is not None:
        return Preprocessing(tuple(mean), tuple(std))
    path = folder / PREPROCESSOR
    if not path.exists():
        raise wrong(
            f"nobody says how the images of {folder} are normalised",
            found=f"no {PREPROCESSOR}",
            do=f"mean = [...] and std = [...] in {where}, of pixels in [0, 1]; AutoImageProcessor's "
            "save_pretrained(…) writes the file too",
        )
    said = read_json(path, wrong)
    factor = said.get("rescale_factor", 1 / 255)
    if said.get("do_rescale", True) is not True or abs(float(factor) - 1 / 255) > 1e-6:
        raise wrong(
            f"the images of {folder} are scaled in a way that is not done here",
            found=f"do_rescale = {said.get('do_rescale')}, rescale_factor = {factor}  ({path})",
            expected="a factor of 1/255",
            do=f"mean = [...] and std = [...] in {where}, of pixels in [0, 1]",
        )
    if not said.get("do_normalize", True):
        return Preprocessing((0.0,), (1.0,))
    return Preprocessing(*(_numbers(path, said, key, wrong, where) for key in ("image_mean", "image_std")))


def _numbers(path: Path, said: dict[str, Any], key: str, wrong: type[BadRequest], where: str) -> tuple[float, ...]:
    value = said.get(key)
    if not isinstance(value, Sequence) or not value or not all(isinstance(each, int | float) for each in value):
        raise wrong(f"{path} says no {key}", found=repr(value), do=f"mean = [...] and std = [...] in {where}")
    return tuple(map(float, value))
