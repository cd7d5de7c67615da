"""Which weights a teacher has once it is loaded, wherever they came from: what all its shards must share (invariant 4).

Files' digests say what was to be loaded. A function that draws its weights, or opens a file of its own, loads something
else on another worker or another day, and no file that is known here changes.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from storage.errors import BadTeacher

if TYPE_CHECKING:
    from torch import Tensor, nn

    from teacher_cache.teachers.options import TeacherOptions

SEEDS = (0, 1)  # of the two times that a function without `weights` is called


def weights_digest(model: nn.Module) -> str:
    """Return the digest over names, types, shapes and bytes of a model's parameters and persistent buffers, by name.

    Of no others: tables that a model computes as it loads, such as those of rotary positions, may differ in a last bit
    between processors. A model that another library computes was made of the files that it digested.
    """
    import torch

    from teacher_cache.teachers.runtime import Runtime

    if isinstance(model, Runtime):
        return model.digest
    return tensors_digest(
        {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    )


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest over names, types, shapes and bytes of tensors. Raises BadTeacher: one holds no values."""
    import torch

    hasher = xxhash.xxh3_128()
    for name in sorted(tensors):
        try:
            tensor = tensors[name].detach()
            tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
            tensor = tensor.resolve_conj().resolve_neg().cpu().contiguous()
        except (RuntimeError, NotImplementedError, ValueError) as error:  # of a meta or a lazy tensor
            raise BadTeacher(
                f"the teacher's {name} holds no values", found=str(error).split("\n", 1)[0], expected="a loaded model"
            ) from None
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # its bytes, whatever the type
    return hasher.hexdigest()


def build_twice(build: Callable[[], nn.Module], name: str) -> nn.Module:
    """Return what a function without `weights` makes, called under two seeds of all generators.

    Raises:
        BadTeacher: it makes other weights each time, so that every worker would ask another teacher.
    """
    with _seeded(SEEDS[0]):
        digests = [weights_digest(build())]  # and no more of it: two might not fit into memory
    with _seeded(SEEDS[1]):
        model = build()
    digests.append(weights_digest(model))
    if len(set(digests)) > 1:
        raise BadTeacher(
            f"{name} draws its weights anew each time that it is called",
            found=f"weights {' and '.join(digests)} under two seeds",
            expected="the same teacher on every worker, today and tomorrow",
            do='save them once, safetensors.torch.save_file(model.state_dict(), "big.safetensors"), and name the file: '
            'weights = "big.safetensors"',
        )
    return model


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch, and leave them as they were."""
    import torch

    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - what users' code draws from
    # GPUs only where some are in use: asking for their generators would start CUDA in a process that plans.
    with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def tapped_layers(options: TeacherOptions, model: nn.Module) -> dict[str, nn.Module]:
    """Return the layer of each feature that a job asks for, by the feature's name. Raises BadTeacher: there is none."""
    modules = dict(model.named_modules())
    for feature in options.features.values():
        if feature.layer not in modules:
            near = difflib.get_close_matches(feature.layer, modules, n=5, cutoff=0.3)
            raise BadTeacher(
                f"teacher {options.name} has no layer {feature.layer}",
                found=", ".join([*modules][1:13]),  # the first has no name: the model itself
                expected=f"one of its layers; near: {', '.join(near)}" if near else None,
            )
    return {name: modules[feature.layer] for name, feature in options.features.items()}
