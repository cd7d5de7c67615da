"""The state of a run that is not settled: safetensors and readable JSON, so that it goes on as if never stopped.

    checkpoint.json                                 position, history, identity; names the weights and their digest
    checkpoint-00003-00000120-9f3c1a2b.safetensors  model, optimiser, average, projections, generator

The weights are written first, under a name of their own, and the JSON last: it is replaced in one step, and only
then are older weights deleted. Whatever is cut short, the last whole checkpoint is still there. Nothing is pickled.

Students of a stack go on together, to the same rounding, only if all are at the same step. So theirs are staged first,
each as weights and `checkpoint.next.json`, and then committed one by one. A kill in between leaves some that are
staged beside one that is committed, which says that all are whole: `settle_checkpoint` commits these too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from storage.digests import differences, digest
from storage.errors import CorruptObject, StaleCache
from storage.format.objects import LocalObjects
from storage.format.sealed import seal_json
from student_train.run_files.position import CheckpointFile, Position, read_position
from student_train.run_files.records import CHECKPOINT_FILE

Tensors = dict[str, Tensor]  # by name

NEXT_FILE = "checkpoint.next.json"
WEIGHTS_PATTERN = "checkpoint-*.safetensors"


def write_checkpoint(folder: Path, position: Position, tensors: Tensors, identity: dict[str, Any]) -> None:
    """Write a checkpoint, durable when this returns; the one before it is good until then."""
    _commit(folder, _put_weights(folder, position, tensors, identity))


def stage_checkpoint(folder: Path, position: Position, tensors: Tensors, identity: dict[str, Any]) -> None:
    """Write a checkpoint that does not count before it is committed, durable when this returns."""
    _put_json(folder, NEXT_FILE, _put_weights(folder, position, tensors, identity))


def commit_checkpoint(folder: Path) -> None:
    """Let the staged checkpoint count, in one step; the one before it is good until then. Without one do nothing."""
    file = read_position(folder, NEXT_FILE)
    if file is not None:
        _commit(folder, file)
        LocalObjects(folder).delete(NEXT_FILE)


def settle_checkpoint(folder: Path) -> None:
    """Commit what a kill has left staged if a student of its stack was committed already, else drop it."""
    staged = read_position(folder, NEXT_FILE)
    if staged is None:
        return
    if commit_has_begun(staged, [read_position(folder.parent / name) for name in staged.stack]):
        commit_checkpoint(folder)
    else:
        LocalObjects(folder).delete(NEXT_FILE)


def commit_has_begun(staged: Position, committed: Sequence[Position | None]) -> bool:
    """Return whether a staged checkpoint is of a stack of which one student's was committed: then all are whole.

    Args:
        staged: where the stack was.
        committed: the checkpoint that counts of each of its students, itself among them; None: it has none yet.

    Students a and b, killed after step 20 while checkpoints of step 10 counted:

        >>> def at(step):
        ...     return Position(step=step, stack=("a", "b"))
        >>> commit_has_begun(at(20), [at(20), at(10)])  # a's was committed and b's was not: now it is
        True
        >>> commit_has_begun(at(20), [at(10), at(10)])  # b's may never have been written: both go on from step 10
        False
        >>> commit_has_begun(at(20), [None, None])  # and before the first commit, both from the start
        False
    """
    where = (staged.stack, staged.epoch, staged.step)
    return any(other is not None and (other.stack, other.epoch, other.step) == where for other in committed)


def _put_weights(folder: Path, position: Position, tensors: Tensors, identity: dict[str, Any]) -> CheckpointFile:
    data = safetensors.torch.save(_on_host(tensors))
    weights_digest = digest(data)
    steps = f"{position.epoch:05d}-{position.step:08d}"
    file = CheckpointFile(
        **position.model_dump(),
        student=folder.name,
        # by its digest: no other state of this step has the name
        weights_file=f"checkpoint-{steps}-{weights_digest[:8]}.safetensors",
        weights_digest=weights_digest,
        torch_version=torch.__version__,
        identity=identity,
    )
    LocalObjects(folder).put(file.weights_file, data)
    return file


def _put_json(folder: Path, name: str, file: CheckpointFile) -> None:
    LocalObjects(folder).put(name, seal_json(file.model_dump(mode="json")))


def _commit(folder: Path, file: CheckpointFile) -> None:
    """Put a checkpoint's JSON in place of the one before, and delete all weights but its own."""
    _put_json(folder, CHECKPOINT_FILE, file)
    for path in folder.glob(WEIGHTS_PATTERN):
        if path.name != file.weights_file:
            LocalObjects(folder).delete(path.name)


def read_checkpoint(folder: Path, identity: dict[str, Any]) -> tuple[Position, Tensors] | None:
    """Return a run's last whole checkpoint, or None if it never wrote one.

    Raises:
        StaleCache: it is another student's, or was made from something else than `identity`: each field is named.
        CorruptObject: its bytes are not those that were written.
        UnsupportedFormat: it was written by a later format.
    """
    file = read_position(folder)
    if file is None:
        return None
    check_name(folder, file.student)
    check_identity(folder, file.identity, identity)
    data = LocalObjects(folder).get(Path(file.weights_file).name)  # a name, never a path to somewhere else
    if digest(data) != file.weights_digest:
        raise CorruptObject(
            f"{folder / file.weights_file} is not what was written",
            found=f"{len(data)} bytes, digest {digest(data)}",
            expected=f"digest {file.weights_digest}  ({CHECKPOINT_FILE})",
            do=f"rm -r {folder}    # this student then starts again",
        )
    try:
        return file, safetensors.torch.load(data)
    except (SafetensorError, KeyError, ValueError) as error:  # whoever wrote them can have written the digest too
        raise CorruptObject(
            f"{folder / file.weights_file} is no safetensors file",
            found=str(error)[:200],
            do=f"rm -r {folder}    # this student then starts again",
        ) from None


def check_checkpoint(folder: Path, identity: dict[str, Any]) -> None:
    """Refuse a folder whose checkpoint was made from something else; reads the JSON only. Raises StaleCache."""
    file = read_position(folder)
    if file is not None:
        check_name(folder, file.student)
        check_identity(folder, file.identity, identity)


def position_of(folder: Path, identity: dict[str, Any]) -> Position | None:
    """Return where an interrupted run of this identity is, or None where there is none; reads the JSON only."""
    file = read_position(folder)
    return file if file is not None and file.identity == identity else None


def check_name(folder: Path, student: str | None) -> None:
    """Refuse a folder that is not named after the student whose run it holds; None: nobody wrote whose.

    Raises:
        StaleCache: it was renamed, or is a copy.
    """
    if student not in (None, folder.name):
        own = folder.parent / str(student)
        back = "" if own.exists() else f"mv {folder} {own}; or, "
        raise StaleCache(
            f"{folder} holds the run of another student: it was renamed, or is a copy",
            found=f"student {student}",
            expected=f"student {folder.name}",
            do=f"{back}to train {folder.name} from its first step: rm -r {folder}",
        )


def check_identity(folder: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse a run that was made from something else.

    Raises:
        StaleCache: each field that differs is named, with both values.
    """
    fields = differences(found, expected)
    if fields:
        names = ", ".join(name for name, _, _ in fields)
        grown = {name for name, _, _ in fields} <= {"train_rows", "validation_rows"}
        raise StaleCache(
            f"{folder} was trained on other rows: the cache has grown since, or lost some"
            if grown
            else f"{folder} holds a run of another job: {names} changed",
            found="\n".join(f"{name} = {json.dumps(was)}" for name, was, _ in fields),
            expected="\n".join(f"{name} = {json.dumps(now)}" for name, _, now in fields),
            do=f"put it back to go on; or give the student another name, or: rm -r {folder}",
        )


def delete_checkpoint(folder: Path) -> None:
    """Delete a run's checkpoint, its JSON first."""
    objects = LocalObjects(folder)
    objects.delete(NEXT_FILE)
    objects.delete(CHECKPOINT_FILE)
    for path in folder.glob(WEIGHTS_PATTERN):
        objects.delete(path.name)


def _on_host(tensors: Tensors) -> Tensors:
    """Return contiguous tensors, each with memory of its own, as safetensors asks; tied weights are written twice."""
    seen: set[int] = set()
    found: Tensors = {}
    for name, tensor in tensors.items():
        host = tensor.detach().cpu().contiguous()
        storage = host.untyped_storage()
        # or a view of something larger
        shared = storage.data_ptr() in seen or storage.nbytes() != host.nbytes
        found[name] = host.clone() if shared else host
        seen.add(storage.data_ptr())
    return found
