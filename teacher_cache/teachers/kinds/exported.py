"""A program that torch exported (`.pt2`), or TorchScript: code and weights in one file, so the job must trust it.

Loading either can execute what is in it, pickles and code. It is loaded where the job names its digest, from the very
bytes that were digested.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.errors import BadTeacher, BadWeights, MissingSource
from storage.language.tokenizer import read_tokenizer
from teacher_cache.teachers.spoken import check_files, classes, dimension, longest, spoken, wants_around  # noqa: F401 - of a Kind

if TYPE_CHECKING:
    from torch import nn

    from teacher_cache.teachers.options import TeacherOptions

# check_files: that the job trusts it was checked with its digest, and more would run what is in it
KEYS: tuple[str, ...] = (
    "path",
    "trust",
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
    """Return what the job itself tells: what its inputs and its answers are."""
    keys = ("mean", "std", "classes", "output", "pixels")
    return {"kind": options.kind, **{key: getattr(options, key) for key in keys}}


def digests(options: TeacherOptions) -> dict[str, Any]:
    """Return the digest of the file, and of text the tokenizer's. Raises BadWeights: the job does not trust it."""
    path = _path(options)
    try:
        with open(path, "rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise MissingSource(
            f"there is no {path}", found=error.strerror, do="paths in a job file are relative to its own folder"
        ) from None
    _check_trusted(options, digest)
    found = {"program": digest}
    return found if options.tokenizer is None else found | {"tokenizer": read_tokenizer(options.tokenizer).fingerprint}


def notes(options: TeacherOptions) -> list[str]:
    """Return that code of the file will run."""
    return [f"{_path(options)} is code too, which this job trusts by its digest"]


def import_libraries() -> None:
    """Import torch."""
    import torch  # noqa: F401


def load(options: TeacherOptions) -> nn.Module:
    """Return the program as a module on the CPU; of one that was exported, its layers have the names that they had.

    Raises:
        BadWeights: the job does not trust the file.
        BadTeacher: torch cannot load it, such as one of a later torch; or its layers cannot be tapped.
        MissingSource: there is no such file.
    """
    path = _path(options)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MissingSource(f"there is no {path}", found=error.strerror) from None
    _check_trusted(options, f"sha256:{hashlib.sha256(content).hexdigest()}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both ways warn of each other, and of their own parts
        return (_exported if options.kind == "exported" else _scripted)(path, content, options)


def _check_trusted(options: TeacherOptions, digest: str) -> None:
    if options.trust != digest:
        raise BadWeights(
            f"{_path(options)} is code as well as weights, and this job does not trust it",
            found=digest,
            expected=options.trust or "the digest of a file of which you know who made it; loading it can run anything",
            do=f'trust = "{digest}"    # or weights in safetensors and the code as a `factory`; or ONNX',
        )


def _exported(path: Path, content: bytes, options: TeacherOptions) -> nn.Module:
    """Return a program as a module whose layers can be tapped. Raises BadTeacher: this torch cannot load it."""
    import torch

    try:
        program = torch.export.load(io.BytesIO(content))
        model = torch.export.unflatten(program)  # with the layers that it had, which can be tapped
    except Exception as error:  # of any class
        raise BadTeacher(
            f"torch {torch.__version__} cannot load {path}",
            found=f"a program of torch {_saved_by(content)}\n{type(error).__name__}: {error}"[:400],
            expected="what torch.export.save of this torch, or an earlier one, writes",
            do="install that torch, or export the model again with this one",
        ) from error
    rows = _fixed_rows(program)
    if rows is None:
        return model
    if options.features:
        raise BadTeacher(
            f"layers of a program that takes {rows} rows at a time cannot be tapped: {path}",
            found=f"features {', '.join(options.features)}",
            expected="a program that takes a batch of any size; or no features",
            do='export it with dynamic_shapes=({0: torch.export.Dim("batch")},)',
        )
    from teacher_cache.teachers.runtime import FixedBatch

    return FixedBatch(model, rows)


def _fixed_rows(program: Any) -> int | None:
    """Return how many rows an exported program takes at a time; None: any number."""
    for node in program.graph_module.graph.nodes:
        value = node.meta.get("val")
        given = node.op == "placeholder" and node.name in program.graph_signature.user_inputs
        if given and getattr(value, "shape", ()) and isinstance(value.shape[0], int):
            return value.shape[0]
    return None


def _saved_by(content: bytes) -> str:
    """Return which torch saved an exported program, as far as can be told."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            (name, *_) = (each for each in archive.namelist() if each.endswith("models/model.json"))
            about = json.loads(archive.read(name))
            version = about.get("schema_version", {})
            return f"{about.get('torch_version')}, schema {version.get('major')}.{version.get('minor')}"
    except (ValueError, OSError, KeyError, AttributeError, zipfile.BadZipFile):
        return "of which nothing is known"


def _scripted(path: Path, content: bytes, options: TeacherOptions) -> nn.Module:
    import torch

    if options.features:
        raise BadTeacher(
            f"layers of TorchScript cannot be tapped: {path}",
            found=f"features {', '.join(options.features)}",
            do='save the model with torch.export.save, kind = "exported"; or ask for no features',
        )
    try:
        model: nn.Module = torch.jit.load(io.BytesIO(content), map_location="cpu")
    except Exception as error:  # of any class
        raise BadTeacher(
            f"torch {torch.__version__} cannot load {path}",
            found=f"{type(error).__name__}: {error}"[:400],
            expected="what torch.jit.save of this torch, or an earlier one, writes",
        ) from error
    return model


def _path(options: TeacherOptions) -> Path:
    assert options.path is not None
    return options.path
