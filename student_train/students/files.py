"""The files of a trained student, written and read.

`student.safetensors` has its weights; `student.json`, written last, its blueprint and the digests of all.
One of text has the `tokenizer.json` that made its rows, beside; one that was trained as an adapter, that too, which is
part of its weights.
Reading them runs no code that they name: a built-in architecture is looked up in ARCHITECTURES, and any other only runs
when the caller names it too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from storage.digests import digest
from storage.errors import BadRequest, BadWeights, CorruptObject, MissingSource
from storage.format.objects import LocalObjects
from storage.format.sealed import read_json, seal_json
from storage.options import code_fingerprint
from student_train.students.blueprint import Blueprint
from student_train.students.build import ARCHITECTURES, Student, build_student
from student_train.students.tensors import complete

WEIGHTS_FILE = "student.safetensors"
BLUEPRINT_FILE = "student.json"
TOKENIZER_FILE = "tokenizer.json"
ADAPTER_FILE = "adapter.safetensors"


class BlueprintFile(Blueprint):
    """The content of `student.json`.

    Attributes:
        made: what it was made from, or a student that it started from: which teacher, of which weights, and how.
    """

    format_version: Literal[1, 2] = 2
    weights_digest: str
    tokenizer_digest: str | None = None
    adapter_digest: str | None = None
    made: dict[str, Any] | None = None


def save_student(
    folder: Path,
    blueprint: Blueprint,
    weights: Mapping[str, Tensor],
    tokenizer: bytes | None = None,
    adapter: Mapping[str, Tensor] | None = None,
    made: dict[str, Any] | None = None,
) -> None:
    """Write a trained student's files, the blueprint last.

    Args:
        folder: of its run.
        blueprint: what it is.
        weights: by name.
        tokenizer: the `tokenizer.json` of its rows, if they are of text.
        adapter: that was merged into the weights, if it was trained as one.
        made: what it was made from, if it began as a part of a teacher.
    """
    objects = LocalObjects(folder)
    data = _bytes(weights)
    objects.put(WEIGHTS_FILE, data)
    if tokenizer is not None:
        objects.put(TOKENIZER_FILE, tokenizer)
    added = None if adapter is None else _bytes(adapter)
    if added is not None:
        objects.put(ADAPTER_FILE, added)
    file = BlueprintFile(
        **blueprint.model_dump(),
        weights_digest=digest(data),
        tokenizer_digest=None if tokenizer is None else digest(tokenizer),
        adapter_digest=None if added is None else digest(added),
        made=made,
    )
    objects.put(BLUEPRINT_FILE, seal_json(file.model_dump(mode="json")))


def _bytes(tensors: Mapping[str, Tensor]) -> bytes:
    # cloned: tied weights share memory, which safetensors refuses
    return safetensors.torch.save(
        {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    )


def load_adapter(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the adapter that a student was trained as; none: it was not.

    Raises:
        MissingSource: no trained student there.
        CorruptObject: a file is not as it was written.
    """
    file, _ = _read_files(folder)
    if file.adapter_digest is None:
        return {}
    again = f"delete {folder} and train this student again"
    return _tensors(folder / ADAPTER_FILE, _read_beside(folder / ADAPTER_FILE, file.adapter_digest, again))


def read_blueprint(folder: Path) -> BlueprintFile:
    """Return what a student's folder says that it is, without its weights. Raises as `load_student`."""
    try:
        value = read_json(folder / BLUEPRINT_FILE)
    except OSError as error:
        raise _no_student(folder, error) from None
    except ValueError as error:
        raise CorruptObject(
            f"{folder / BLUEPRINT_FILE} is not what was written",
            found=str(error),
            do=f"delete {folder} and train this student again",
        ) from None
    try:
        return BlueprintFile.model_validate_json(json.dumps(value))
    except ValueError as error:
        raise BadWeights(f"{folder / BLUEPRINT_FILE} describes no student", found=str(error)) from None


def check_written(folder: Path) -> None:
    """Raise MissingSource or CorruptObject unless a student's weights and tokenizer are as they were written."""
    file, _ = _read_files(folder)
    _read_tokenizer(folder, file)


def check_trusted(folder: Path, blueprint: Blueprint, architecture: str | None) -> None:
    """Raise BadRequest unless a caller trusts the code that a student is built by.

    Args:
        folder: of the student, for messages.
        blueprint: of it; a built-in architecture runs nobody's code.
        architecture: `module:factory` as the caller's own job names it, or None.
    """
    if blueprint.architecture in ARCHITECTURES:
        return
    if architecture is None or not _same_factory(architecture, blueprint.architecture):
        raise BadRequest(
            f"the student in {folder} has an architecture of its own",
            found=blueprint.architecture,
            expected=f"{architecture or 'a built-in architecture'}  (the caller)",
            do=f'architecture = "{blueprint.architecture}" in the job, if you trust that code',
        )
    if blueprint.teacher_code is not None and (found := code_fingerprint(architecture)) != blueprint.teacher_code:
        raise BadRequest(
            f"the student in {folder} was made by other code",
            found=f"code {found}  ({architecture})",
            expected=f"code {blueprint.teacher_code}  ({BLUEPRINT_FILE})",
            do="the file as it was; or student make, anew",
        )


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
        CorruptObject: a file is not as it was written.
    """
    folder = Path(folder)
    file, data = _read_files(folder)
    blueprint = Blueprint(**file.model_dump(include=set(Blueprint.model_fields)))
    check_trusted(folder, blueprint, architecture)
    weights = _tensors(folder / WEIGHTS_FILE, data)
    if blueprint.architecture in ARCHITECTURES:
        with torch.device("meta"):  # so that nothing is allocated before sizes are known to agree with the file
            student = build_student(blueprint)
    else:
        student = build_student(blueprint.model_copy(update={"architecture": architecture}))
    weights = complete(student, weights)
    _check_weights(folder, student, weights)
    if student.device.type == "meta" and _computes_buffers(student):
        student = build_student(blueprint)
        student.load_state_dict(weights)
    else:
        student.load_state_dict(weights, assign=True)  # what is on the meta device has no memory to copy into
    student.tokenizer = _read_tokenizer(folder, file)
    return student.eval()


def _tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError, ValueError) as error:  # the last two of types and shapes that torch has not
        raise BadWeights(f"{path} is no safetensors file", found=str(error)[:200]) from None


def _computes_buffers(student: nn.Module) -> bool:
    """Return whether a model has buffers that no file holds, since it computes them when it is built."""
    return bool(dict(student.named_buffers()).keys() - student.state_dict().keys())


def _read_files(folder: Path) -> tuple[BlueprintFile, bytes]:
    file = read_blueprint(folder)
    try:
        data = (folder / WEIGHTS_FILE).read_bytes()
    except OSError as error:
        raise _no_student(folder, error) from None
    if digest(data) != file.weights_digest:
        raise CorruptObject(
            f"{folder / WEIGHTS_FILE} is not what was written",
            found=f"digest {digest(data)}",
            expected=f"digest {file.weights_digest}  ({BLUEPRINT_FILE})",
            do=f"delete {folder} and train this student again",
        )
    return file, data


def _no_student(folder: Path, error: OSError) -> MissingSource:
    return MissingSource(
        f"there is no trained student in {folder}",
        found=f"{error.strerror}: {error.filename}",
        expected=f"{BLUEPRINT_FILE} and {WEIGHTS_FILE}",
        do="student train JOB.toml",
    )


def _read_tokenizer(folder: Path, file: BlueprintFile) -> bytes | None:
    """Return the `tokenizer.json` of a student of text; None where there is none: it has been trained without."""
    if file.tokenizer_digest is None:
        return None
    again = f"copy it from the dataset in the cache; or delete {folder} and train this student again"
    return _read_beside(folder / TOKENIZER_FILE, file.tokenizer_digest, again)


def _read_beside(path: Path, expected: str, do: str) -> bytes:
    """Return a file of which BLUEPRINT_FILE has the digest. Raises CorruptObject: it is another, or gone."""
    data = path.read_bytes() if path.exists() else b""
    if digest(data) != expected:
        raise CorruptObject(
            f"{path} is not what was written",
            found=f"digest {digest(data)}" if path.exists() else "no such file",
            expected=f"digest {expected}  ({BLUEPRINT_FILE})",
            do=do,
        )
    return data


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
