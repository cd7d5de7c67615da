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

import torch
import torch.distributed as dist
from torch import Tensor, nn

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

    def part(self, batch: Batch, *, least: int = 1) -> Batch:
        """Return this process's rows of a batch; there may be none of a small one.

        Args:
            batch: of all processes.
            least: rows that a process has where it has any; those of a batch of so few or fewer are one's.

        Five rows on two processes; and three, of which one process would have a single one:

            >>> batch = Batch(torch.tensor([10, 11, 12, 13, 14]))
            >>> [Parallel(rank, size=2).part(batch, least=2).shown.tolist() for rank in (0, 1)]
            [[10, 12, 14], [11, 13]]
            >>> batch = Batch(torch.tensor([10, 11, 12]))
            >>> [Parallel(rank, size=2).part(batch, least=2).shown.tolist() for rank in (0, 1)]
            [[10, 11, 12], []]
        """
        if self.size == 1:
            return batch
        shared_by = min(self.size, max(1, len(batch.shown) // least))
        mine = slice(self.rank, None, shared_by) if self.rank < shared_by else slice(0)
        return batch.rows(mine)

    def average(self, tensors: Sequence[Tensor], share: float) -> None:
        """Make tensors the sum over all processes of each one's times its share, in place; in one message for all.

        Args:
            tensors: means over this process's rows.
            share: of these rows in the batch. Of 5 rows on two processes 3/5 and 2/5: where the means are 10 and 20,
                the sum is 3/5 · 10 + 2/5 · 20 = 14, the mean over all 5.
        """
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
        flag = torch.tensor(int(stop))  # on the host: no GPU is waited for
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
            dist.all_reduce(torch.zeros(1))  # it ends when all are in it


ALONE = Parallel()


def fill_missing(trained: Sequence[nn.Parameter]) -> Tensor:
    """Give parameters that no loss of this process's rows reaches a gradient of 0, so that all processes have as many.

    Returns:
        Of each of the P parameters 1 where a loss reaches it and 0 where none does, float32.

    Of three parameters, the second is missing:

        >>> trained = [nn.Parameter(torch.tensor([value])) for value in (1.0, 2.0, 3.0)]
        >>> (trained[0] + 5 * trained[2]).sum().backward()
        >>> fill_missing(trained).tolist()
        [1.0, 0.0, 1.0]
        >>> [parameter.grad.item() for parameter in trained]
        [1.0, 0.0, 5.0]
    """
    reached_P = torch.tensor([float(parameter.grad is not None) for parameter in trained], device=trained[0].device)
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return reached_P


def forget_unreached(trained: Sequence[nn.Parameter], reached_P: Tensor) -> None:
    """Take their gradients from parameters that no loss reaches in any process: they are not to decay.

    Args:
        trained: P parameters, each with a gradient.
        reached_P: what `fill_missing` has returned, averaged over all processes.

    The first is reached in both of two processes, the second in the one that has 2 of 5 rows, the third in none:

        >>> trained = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
        >>> for parameter in trained:
        ...     parameter.grad = torch.ones(1)
        >>> forget_unreached(trained, torch.tensor([1.0, 0.4, 0.0]))
        >>> [parameter.grad is None for parameter in trained]
        [False, False, True]
    """
    for parameter, weight in zip(trained, reached_P.tolist(), strict=True):
        if weight == 0:
            parameter.grad = None


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
                do=f"torchrun --no-python --nproc-per-node {gpus} student train JOB.toml",
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # gloo for messages on the host, NCCL for gradients
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    try:
        yield Parallel(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
