"""Which students go to which worker of a cluster, and whether that fits, before anything starts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch

from jobs.cluster.heaps import HEAPS, VARIABLE
from jobs.cluster.pools import visible_gpus
from jobs.files.cluster_options import ClusterOptions
from storage.errors import BadRequest, gib
from student_train.feed.devices import find_device, free_bytes
from student_train.preparing.request import PreparedRun, Request
from student_train.preparing.weighing.flops import epoch_flops
from student_train.preparing.weighing.projection import MemoryProjection, choose_for, fit
from student_train.stepping.stack.stack import stack_key

WORKER_BYTES = 96 * 2**20  # of a worker that has begun, above this process with the same libraries: 85 MB on Linux


@dataclass(frozen=True)
class Group:
    """Students that share a worker.

    Attributes:
        number: from 1.
        students: in the job's order.
        share: of the work of all groups.
    """

    number: int
    students: tuple[PreparedRun, ...]
    share: float

    @property
    def name(self) -> str:
        return f"group {self.number}"

    @property
    def left(self) -> list[PreparedRun]:
        """Return the students that are not settled."""
        return [student for student in self.students if student.settled is None]


def make_groups(request: Request, students: Sequence[PreparedRun], workers: int, device: str) -> list[Group]:
    """Return what is left of a job in groups of about the same work, one a worker at most.

    With [halving] the groups are those of all students, settled ones among them: whoever is compared with each other
    is then the same, however often the job is interrupted.

    Args:
        request: what is asked for.
        students: all of the job.
        workers: how many there are.
        device: what they most likely have, "cpu" or "cuda".
    """
    halving = request.fleet.halving is not None
    grouped = [student for student in students if halving or student.settled is None]
    works = [
        max(1, epoch_flops(student, device) * _steps_left(student, halving) // student.steps_an_epoch)
        for student in grouped
    ]
    groups: list[Group] = []
    for places in share_out([stack_key(student.options, student.blueprint) for student in grouped], works, workers):
        share = sum(works[place] for place in places) / sum(works)
        groups.append(Group(len(groups) + 1, tuple(grouped[place] for place in places), share))
    return [group for group in groups if group.left]


def share_out(kinds: Sequence[Hashable], works: Sequence[int], workers: int) -> list[list[int]]:
    """Return the places of students in groups of about the same work, one group a worker at most.

    Students of one kind could be stacked as one program, so they are kept together; only a kind that is more than a
    worker's share of all the work is cut into parts.

    Args:
        kinds: of each student.
        works: of each student, in any unit, above 0.
        workers: how many there are.

    Two kinds of as much work, each of which is as much as one of two workers is to have; then one kind that is more:

        >>> share_out(["mlp", "cnn", "mlp"], [3, 6, 3], workers=2)
        [[0, 2], [1]]
        >>> share_out(["mlp", "mlp", "mlp", "cnn"], [4, 4, 4, 2], workers=2)
        [[0, 2], [1, 3]]
        >>> share_out(["mlp", "cnn"], [5, 1], workers=3)  # no student is cut, so the third worker has none
        [[0], [1]]
    """
    total = sum(works)
    parts: list[list[int]] = []
    for kind in dict.fromkeys(kinds):
        alike = [place for place, other in enumerate(kinds) if other == kind]
        shares = -(-sum(works[place] for place in alike) * workers // total)
        parts += [[alike[i] for i in part] for part in _pack([works[place] for place in alike], shares)]
    packed = _pack([sum(works[place] for place in part) for part in parts], workers)
    return sorted(sorted(place for i in group for place in parts[i]) for group in packed)


def _pack(works: Sequence[int], bins: int) -> list[list[int]]:
    """Return the places of works in so many bins, or fewer: the largest first, each to the bin that has least."""
    packed: list[list[int]] = [[] for _ in range(bins)]
    loads = [0] * bins
    for place in sorted(range(len(works)), key=lambda place: -works[place]):
        least = loads.index(min(loads))
        packed[least].append(place)
        loads[least] += works[place]
    return [group for group in packed if group]


def _steps_left(student: PreparedRun, from_the_first: bool) -> int:
    position = None if from_the_first else student.position
    done = 0 if position is None else position.epoch * student.steps_an_epoch + position.step
    return max(1, student.total_steps - done)


def local_workers(options: ClusterOptions, request: Request) -> list[dict[str, str]]:
    """Return the environment of each worker on this machine: one for each CUDA device, or processor.

    Raises:
        BadRequest: more workers are asked for than there are devices.
    """
    if find_device(request.device).type == "cpu":
        return [{VARIABLE: str(HEAPS)}] * options.num_workers
    gpus = visible_gpus(request.device)
    if (options.workers or 1) > len(gpus):
        raise BadRequest(
            "there are more workers than CUDA devices, and each has one of its own",
            found=f"workers = {options.workers}",
            expected=f"at most {len(gpus)}",
            do="lower `workers`, or drop it",
        )
    return [{VARIABLE: str(HEAPS), "CUDA_VISIBLE_DEVICES": name} for name in gpus[: options.workers]]


def project_groups(request: Request, groups: Sequence[Group]) -> list[MemoryProjection]:
    """Return the bound on the memory of each worker on this machine.

    Raises:
        BadRequest: one of them does not fit on its device, or all of them together not into this machine's memory.
    """
    import distributed  # noqa: F401 - a worker holds it, so the baseline must

    device, projected = find_device(request.device), []
    for group in groups:
        residency = choose_for(request, group.left, device)
        window_shards = request.data.window_shards
        memory = fit(group.left, residency, window_shards, device, request.fleet)[1]
        parts = memory.parts | {"a Dask worker": WORKER_BYTES}
        projected.append(replace(memory, host_bytes=memory.host_bytes + WORKER_BYTES, parts=parts))
    needed, free = sum(memory.host_bytes for memory in projected), free_bytes(torch.device("cpu"))
    if needed > free:
        raise BadRequest(
            f"{len(groups)} workers do not fit into this machine's memory",
            found=f"{gib(needed)} projected for all, {gib(free)} free",
            expected="fewer workers, each of which holds the libraries, its rows and its students",
            do=f'workers = {max(1, len(groups) * free // needed)}, or residency = "stream"',
        )
    return projected
