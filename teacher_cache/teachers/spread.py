"""Layers of one model on several devices, in memory or on the disk: a teacher that is too large for a GPU."""

from __future__ import annotations

import difflib
import logging
import shutil
import tempfile
import weakref
from typing import TYPE_CHECKING, Any, Literal

from storage.errors import BadRequest
from storage.language.model_folder import listed

if TYPE_CHECKING:
    import torch
    from torch import nn

FOR_WEIGHTS = 0.9  # of a GPU's free memory, where it says itself which layers it has: a batch needs some too


def spread(model: Any, device_map: Literal["auto"] | dict[str, str], device: torch.device) -> None:
    """Put the layers of a model on several devices; what is on the disk is in a folder that goes with the model.

    What is in memory or on the disk is sent to the first GPU that is named, each time it is computed; where none is,
    it is computed on the CPU.

    Args:
        model: as `load` returns it, on the CPU, of which nothing is needed but answers: tensors may lie elsewhere.
        device_map: name of a module → "cpu", "disk" or "cuda:0"; "auto": the GPUs that are visible, from the first on,
            about evenly, what does not fit in memory, and then the disk.
        device: "cpu" or "cuda"; with "cpu" no GPU is used.

    Raises:
        BadRequest: a module, or a GPU, is not there, or a module with tensors has no place.
    """
    import torch
    from accelerate import disk_offload, dispatch_model

    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it remarks on what was asked for
    places = _inferred(model, device) if device_map == "auto" else device_map
    _check_places(model, places, torch.cuda.device_count() if device.type == "cuda" else 0)
    folder = None
    if "disk" in places.values():
        folder = tempfile.mkdtemp(prefix="stillroom-weights-")
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)  # at the end of the process at the latest
    gpus = [place for place in places.values() if place.startswith("cuda")]
    first: Any = gpus[0] if gpus else "cpu"  # as text: accelerate compares it with "cpu"
    if folder is not None and {*places.values()} == {"disk"}:
        disk_offload(model, folder, execution_device=torch.device(first))
    else:
        dispatch_model(model, places, main_device=first, offload_dir=folder)


def _inferred(model: Any, device: torch.device) -> dict[str, str]:
    """Return a place for each part of a model, by the memory that is free."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    if device.type == "cpu":
        return {"": "cpu"}
    whole = [*(model._no_split_modules or [])]  # noqa: SLF001 - no other name for it
    memory = get_balanced_memory(model, no_split_module_classes=whole)
    for gpu, free_bytes in memory.items():
        if gpu not in ("cpu", "disk"):
            memory[gpu] = int(FOR_WEIGHTS * free_bytes)
    places = infer_auto_device_map(model, memory, no_split_module_classes=whole)
    return {name: f"cuda:{place}" if isinstance(place, int) else str(place) for name, place in places.items()}


def _check_places(model: nn.Module, places: dict[str, str], num_gpus: int) -> None:
    """Raise BadRequest if a place, or the module that is to be there, does not exist, or a tensor has none."""
    modules = dict(model.named_modules())
    if unknown := sorted(name for name in places if name not in modules):
        near = [match for name in unknown for match in difflib.get_close_matches(name, modules, n=2, cutoff=0.3)]
        raise BadRequest(
            "device_map names modules that the model does not have",
            found=listed(unknown),
            expected=f"modules of a {type(model).__name__}; near: {listed(near)}" if near else None,
        )
    wanted = sorted({place for place in places.values() if place.startswith("cuda")})
    if absent := [place for place in wanted if int(place.partition(":")[2]) >= num_gpus]:
        raise BadRequest(
            "device_map names a GPU that cannot be used here",
            found=f"{', '.join(absent)}, of {num_gpus} that this process may use",
            expected="GPUs that are visible to the worker, counted from cuda:0",
            do='[cluster] kind = "inline", or "address" with workers started as CUDA_VISIBLE_DEVICES=0,1 dask worker',
        )
    within = tuple(f"{name}." if name else "" for name in places)
    # accelerate would first put all of the outer one where the inner one is not to be
    if twice := sorted(name for name in places for other in within if name and name.startswith(other)):
        raise BadRequest(
            "device_map says of some modules twice where they are",
            found=f"{listed(twice)}, and a module around it",
            expected="modules of which none is within another",
        )
    if homeless := sorted(name for name in model.state_dict() if not name.startswith(within)):
        raise BadRequest(
            "device_map says of some tensors not where they are",
            found=listed(homeless),
            expected='each module with tensors, or a module around it; "" is the whole model',
        )
