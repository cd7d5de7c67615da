"""One student on several processes: each has its rows of every batch, and all have the same weights after every step.

Process r of N takes rows r, r + N, r + 2N, … of a batch, so that an epoch's rows are each seen once, whatever N.
A step adds up the processes' gradients, weighed by their rows: it is that of the mean over the whole batch, as
of one process. Batch norm's statistics are of a process's own rows, and averaged before students are measured.

Only the first process writes. Processes agree on when to stop through messages on the host, which wait for no GPU.

Source: synchronous data parallelism, as torch's DistributedDataParallel; by hand, since a student of tokens goes
backwards through its head once for each part of the positions.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from operator import itemgetter

import torch
import torch.distributed as dist
from torch import Tensor

from storage.errors import BadRequest
from student_train.feed.batches import Batch

TIMEOUT = timedelta(minutes=30)  # of a process that waits for the others, one of which may read or write a while


@dataclass(frozen=True, slots=True)
class Parallel:
    """This process among those that train the same students.

    Attributes:
        rank: from 0; the first one writes.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes files and tells of progress."""
        return self.rank == 0

    def part(self, batch: Batch) -> Batch:
        """Return this process's rows of a batch; there may be none of a small one."""
        if self.size == 1:
            return batch
        mine = slice(self.rank, None, self.size)
        return batch.each(itemgetter(mine))

    def average(self, tensors: Sequence[Tensor], share: float) -> None:
        """Make tensors the sum over all processes of each one's times its share, in place; in one message for all."""
        if self.size > 1 and tensors:
            flat = torch.cat([tensor.detach().flatten().float() for tensor in tensors]) * share
            dist.all_reduce(flat)
            for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.detach().copy_(values.view_as(tensor))

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of all processes' tensors."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, stop: bool) -> bool:
        """Return whether any process is to stop."""
        if self.size == 1:
            return stop
        flag = torch.tensor(int(stop))
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    def all_agree(self, flags: Sequence[bool]) -> list[bool]:
        """Return of each flag whether it is true in all processes."""
        if self.size == 1:
            return list(flags)
        everywhere = torch.tensor(flags, dtype=torch.int64)
        dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
        return [bool(flag) for flag in everywhere]

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1))


ALONE = Parallel()


@contextlib.contextmanager
def joined() -> Iterator[Parallel]:
    """Yield this process among those that `torchrun` started, or alone where it did not.

    Raises:
        BadRequest: there are fewer GPUs than processes of this machine.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Parallel()
        return
    if torch.cuda.is_available():
        here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > gpus:
            raise BadRequest(
                "there are more processes than GPUs",
                found=f"{here} processes, {gpus} GPUs",
                do=f"torchrun --nproc-per-node {gpus}",
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    try:
        yield Parallel(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
