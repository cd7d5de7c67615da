"""A model that another library computes, such as onnxruntime: to all others a torch module, with no tensors in it.

What can be tapped are children without weights, by the names that the library has for them: what passes through one,
its hooks hear, as of any module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from storage.format.specs import DatasetSpec


FEW = 2**20  # numbers: of more a second thread is worth the wait for it


class Runtime(nn.Module):
    """A model whose weights torch does not hold.

    Args:
        digest: of all files that it was made of; there is no `state_dict` that could tell.
        weights_bytes: that it holds in memory.
        layers: names of what can be tapped.
    """

    def __init__(self, digest: str, weights_bytes: int, layers: Iterable[str] = ()):
        super().__init__()
        self.digest, self.weights_bytes = digest, weights_bytes
        # not by add_module: names of tensors have dots and slashes
        self._modules.update({name: nn.Identity() for name in layers})

    def asked_about(self, dataset: DatasetSpec) -> None:
        """Take note of which dataset the next rows are, for one that goes by names of columns. Raises BadTeacher."""

    def heard(self, features: Mapping[str, Tensor]) -> None:
        """Pass values of layers through them, where hooks hear them."""
        for name, values in features.items():
            module: Any = self._modules[name]
            module(values)


@contextlib.contextmanager
def fed_alone(model: nn.Module, values_B: Tensor) -> Iterator[None]:
    """Within the block, compute what another library is fed, if it is little, on one thread.

    Its own threads wait awake for a while for the next batch: torch's beside them would wait for a processor.
    """
    threads = torch.get_num_threads()
    alone = isinstance(model, Runtime) and values_B.numel() <= FEW and threads > 1
    if alone:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if alone:
            torch.set_num_threads(threads)


class FixedBatch(nn.Module):
    """A program that takes a number of rows at a time and no other: the last of a batch are filled up with zeros.

    Args:
        program: it.
        rows: how many it takes.
    """

    def __init__(self, program: nn.Module, rows: int):
        super().__init__()
        self.program, self.rows = program, rows

    def forward(self, *inputs: Tensor) -> Any:
        """Return what it says of a batch of any size."""
        num_rows = len(inputs[0])
        short = -num_rows % self.rows
        filled = [torch.cat([each, each.new_zeros(short, *each.shape[1:])]) for each in inputs]
        parts = [self.program(*piece) for piece in zip(*(each.split(self.rows) for each in filled), strict=True)]
        return tree_map(lambda *said: torch.cat(said)[:num_rows], *parts)


def host_array(values_B: Tensor) -> Any:
    """Return a batch as a NumPy array on the host. Raises ValueError: it has no values, as on the meta device."""
    if values_B.device.type == "meta":
        raise ValueError("another library computes this model; it needs values")
    return values_B.detach().cpu().contiguous().numpy()


def as_tensor(values: Any, device: torch.device) -> Tensor:
    """Return what a library answered as a tensor on a device. Raises TypeError: it is no array."""
    if not hasattr(values, "dtype") or values.dtype.kind not in "fiub":
        found = f"an array of {values.dtype}" if hasattr(values, "dtype") else type(values).__name__
        raise TypeError(f"{found}, and no array of numbers")
    return torch.from_numpy(values).to(device)
