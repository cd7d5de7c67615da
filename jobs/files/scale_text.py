"""What `--scale` says, which is one line of a command: `rows=14_200_000,views=90`."""

from __future__ import annotations

import tomllib
from typing import Any

from pydantic import ValidationError

from jobs.files.mistakes import mistakes
from jobs.files.sweep import Expanded
from storage.errors import BadRequest
from teacher_cache.pilot.scale import ScaleOptions

EXPECTED = "KEY=VALUE,…, such as rows=14_200_000,views=90,workers=64"


def read_scale(text: str) -> ScaleOptions:
    """Return what `--scale` says. Values are TOML's; 1e12 is a whole number too.

    >>> read_scale("rows=1e6, views=90").rows
    1000000

    Raises:
        BadRequest: it makes no sense; all mistakes are told at once.
    """
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            read = tomllib.loads(f"value = {value.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            raise BadRequest(
                f"--scale {text} cannot be read", found=part.strip() or "nothing", expected=EXPECTED
            ) from None
        if (name := name.strip()) in values:
            raise BadRequest(f"--scale {text} says {name} twice", expected=EXPECTED)
        values[name] = int(read) if isinstance(read, float) and read.is_integer() else read
    try:
        return ScaleOptions.model_validate(values)
    except ValidationError as error:
        told = mistakes(ScaleOptions, error, Expanded(values))
        raise BadRequest(f"--scale {text} makes no sense", found="\n".join(told), expected=EXPECTED) from None
