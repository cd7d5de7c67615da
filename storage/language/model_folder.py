"""A model's folder as transformers' `save_pretrained` writes it: its config, and which files have its weights.

What a teacher and a student of that kind both ask of a folder: no pickle, no hub, and no code that comes with a model
but what a job trusts by name (folder_code.py).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from storage.errors import BadRequest, BadTeacher, BadWeights, MissingSource, StillroomError, missing_extra
from storage.language.folder_code import check_trusted, named_code

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
SHOWN = 5  # names, in a message
LONGEST_NAME = 255  # bytes of one, on any disk
MOST_LAYERS = 1024  # no model has as many, and each is built before weights say that it is not there
COUNTED = re.compile(r"(layers?|experts?|^num_blocks|^depths?)$")  # keys that say how many of them are built


def check_transformers(what: str) -> None:
    """Raise BadRequest if transformers is not installed, which `what` needs; it is not imported."""
    if find_spec("transformers") is None:
        raise missing_extra(what, "no transformers", "transformers")


def import_transformers(what: str) -> Any:
    """Return transformers, its bars and remarks kept off the terminal. Raises BadRequest: it is not installed."""
    try:
        import transformers
        from transformers import modeling_utils  # noqa: F401 - the most of it, which is imported when it is asked for
    except ImportError as error:
        raise missing_extra(what, str(error), "transformers") from None
    # For as long as this process lives: a forward pass has remarks of its own too.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def check_known(folder: Path, config: dict[str, Any], trusted: Sequence[str] = ()) -> None:
    """Raise BadTeacher if transformers, which is imported, has no model of a folder's kind, and no code is trusted."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    if not trusted and not (isinstance(kind, str) and kind in CONFIG_MAPPING):
        raise BadTeacher(
            f"transformers {version('transformers')} knows no model as in {folder}",
            found=f"model_type = {json.dumps(kind)}",
            expected="one of its own, such as llama, qwen3, gemma3_text, gpt2",
            do="a newer transformers; or a `factory`",
        )


def weights_files(folder: Path) -> list[str]:
    """Return the names of a folder's files of weights: one, or those of its index.

    Raises:
        BadWeights: they are pickles, an adapter, or the index cannot be read.
        MissingSource: there are none.
    """
    if (folder / WEIGHTS).exists():
        return [WEIGHTS]
    if (folder / INDEX).exists():
        named = _json(folder / INDEX, BadWeights).get("weight_map")
        files = sorted({*named.values()}) if isinstance(named, dict) and all(map(_is_plain, named.values())) else []
        if not files:
            raise BadWeights(
                f"{folder / INDEX} names no weights",
                expected="a `weight_map` from tensors to safetensors files of the same folder",
            )
        if absent := [name for name in files if not (folder / name).exists()]:
            raise MissingSource(
                f"the weights in {folder} are not whole",
                found=f"no {listed(absent)}",
                expected=f"the {len(files)} files that {INDEX} names",
                do="copy the folder again, with all of its files",
            )
        return files
    there = sorted(path.name for path in folder.iterdir())
    again = "AutoModelForCausalLM.from_pretrained(…).save_pretrained(…) writes safetensors"
    if pickles := [name for name in there if name.endswith(PICKLES)]:
        raise BadWeights(
            f"the weights in {folder} are pickles, which could execute code",
            found=listed(pickles),
            expected=f"{WEIGHTS}, or {INDEX} and the files that it names",
            do=f"where you trust them: {again}",
        )
    raise MissingSource(
        f"there are no weights in {folder}",
        found=listed(there) or "an empty folder",
        expected=f"{WEIGHTS}, or {INDEX} and the files that it names",
        do=again,
    )


def _is_plain(name: Any) -> bool:
    plain = isinstance(name, str) and name == Path(name).name and name.endswith(".safetensors")
    return plain and len(os.fsencode(name)) <= LONGEST_NAME


def read_config(folder: Path, wrong: type[BadRequest], trusted: Sequence[str] | None = None) -> dict[str, Any]:
    """Return a folder's config.

    Args:
        folder: of the model.
        wrong: error of whoever asks.
        trusted: names of the folder's code that may run; None: who asks has no way to trust any.

    Raises:
        MissingSource: there is none, or a file of trusted code is not there.
        wrong: it is damaged, or wants what is not done here: code that is not trusted, quantised weights.
    """
    if not (folder / CONFIG).exists():
        adapter = (folder / "adapter_config.json").exists()
        raise MissingSource(
            f"there is no model in {folder}",
            found="an adapter without its base" if adapter else f"no {CONFIG}" if folder.is_dir() else "no folder",
            expected="a folder as save_pretrained writes it",
            do="merge_and_unload() and save_pretrained(…) make a model of an adapter"
            if adapter
            else "paths in a job file are relative to its own folder; nothing is fetched: of a name on a hub, save the "
            "model there first",
        )
    config = _json(folder / CONFIG, wrong)
    if trusted:
        check_trusted(folder, config.get("auto_map"), trusted, wrong)
    named = config.get("architectures")
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise wrong(f"{folder / CONFIG} is damaged", found=f"architectures = {str(named)[:100]}", expected="names")
    check_config(config, str(folder), wrong, trusted)
    return config


def check_config(
    config: dict[str, Any], where: str, wrong: type[BadRequest], trusted: Sequence[str] | None = None
) -> None:
    """Raise `wrong` if a config wants code that is not trusted, quantised weights, or layers without end."""
    own = {key: value for key, value in config.items() if not (trusted and key == "auto_map")}
    if code := _first(own, _foreign):
        trust = "" if trusted is None or "auto_map" not in config else _how_to_trust(config["auto_map"])
        raise wrong(
            f"the model in {where} wants code from elsewhere",
            found=code,
            expected="a model that transformers itself has",
            do=f"take the key out of {CONFIG} if transformers has this model; else {trust}write a `factory`",
        )
    if "quantization_config" in config:
        raise wrong(
            f"the model in {where} is quantised",
            found=str(config["quantization_config"])[:200],
            expected="weights in fp32, bf16 or fp16",
            do="save it dequantised",
        )
    if deep := _first(config, _deep):
        raise wrong(
            f"the model in {where} has more layers than any",
            found=deep,
            expected=f"{MOST_LAYERS:,} at most",
            do=f"look at {CONFIG}: it is damaged, or no model's",
        )


def _how_to_trust(auto_map: Any) -> str:
    return f"read the code and, where you trust it, trust_code = {json.dumps(named_code(auto_map))}; or "


def _foreign(key: str, value: Any) -> str | None:
    """Return an entry of a config by which code of others would run: of the model's folder, or of kernels on a hub."""
    if key == "auto_map" or (key.endswith("_implementation") and "/" in str(value)):
        return f"{key} = {json.dumps(value)}"[:200]
    return None


def _deep(key: str, value: Any) -> str | None:
    """Return a count of a config that would be built before anything says that it cannot be."""
    counts = value if isinstance(value, list) else [value]
    if COUNTED.search(key) and any(isinstance(count, int) and count > MOST_LAYERS for count in counts):
        return f"{key} = {value}"[:200]
    return None


def _first(config: Any, told: Callable[[str, Any], str | None]) -> str | None:
    """Return the first that is told of an entry of a config, however deep it lies in it."""
    if isinstance(config, list):
        return next(filter(None, (_first(each, told) for each in config)), None)
    if not isinstance(config, dict):
        return None
    return next(filter(None, (told(key, value) or _first(value, told) for key, value in config.items())), None)


def _json(path: Path, wrong: type[StillroomError]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise MissingSource(f"{path} cannot be read", found=error.strerror) from None
    except (ValueError, RecursionError) as error:
        raise wrong(f"{path} is not JSON", found=str(error)[:200]) from None
    if not isinstance(value, dict):
        raise wrong(f"{path} is no JSON object", found=type(value).__name__)
    return value


def listed(names: list[str]) -> str:
    """Return the first of some names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f", and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
