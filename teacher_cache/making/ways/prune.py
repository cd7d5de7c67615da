"""Fewer units: which of them stay, and a network of those alone. What is written is smaller, not masked.

Every layer keeps the same share of its units, so that two scores are compared at one shape: what differs is which.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from storage.errors import BadRequest, BadTeacher
from teacher_cache.making.sizes import Target, largest_share, measured, size_like
from teacher_cache.making.subject import Subject
from teacher_cache.making.ways.blocks import prune_blocks
from teacher_cache.making.ways.coupled import Found, Units, find_heads, find_units
from teacher_cache.making.ways.perceptrons import find_neurons
from teacher_cache.making.ways.scores import By, score
from teacher_cache.making.ways.slices import check_named_once, masked, resized, sliced, with_changes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from student_train.students import Student

Of = Literal["units", "channels", "neurons", "heads", "blocks"]
ALIKE = 1e-3  # of the largest score: rounding of sums over fewer units
TRIED_ROWS = 8
HEADS = " (those of attention: --of heads)"


class PruneOptions(NamedTuple):
    """How a teacher is pruned.

    Attributes:
        target: how large the student is to be.
        by: which units stay.
        seed: of what is drawn.
        of: what is left out: channels and neurons (units), or one of both; heads of attention; whole blocks.
    """

    target: Target
    by: By
    seed: int
    of: Of = "units"


def prune(subject: Subject, options: PruneOptions) -> tuple[Student, list[str]]:
    """Return a student of fewer units or blocks, and in words what was left whole.

    Raises:
        BadRequest: no layer of it can be smaller, or the target cannot be reached.
        BadTeacher: the smaller network does not say what the larger one says without these units.
    """
    if options.of == "blocks":
        return prune_blocks(subject, options.target, options.by, options.seed)
    found = _units(subject, options.of)
    widths = _widths(subject.student, found.units, options.target)
    return _pruned(subject, found, widths, options.by, options.seed)


def narrower(subject: Subject, share: float, by: By) -> tuple[Student, list[str]]:
    """Return a student with a share of the units of each layer, as `prune` does to a target. Raises as it."""
    found = _units(subject, "units")
    return _pruned(subject, found, [max(1, int(share * each.width + 0.5)) for each in found.units], by, 0)


def _units(subject: Subject, of: Of) -> Found:
    network = subject.student.network
    check_named_once(network)
    if of == "heads":
        found = _standing(subject, find_heads(network), (), "")
    elif (of == "neurons" or (of == "units" and not _has_channels(network))) and (neurons := find_neurons(network)):
        found = _standing(subject, neurons, (), HEADS)
    else:
        found = find_units(network, _traced(subject))
        layers = dict(network.named_modules())
        linear = {each.name: getattr(layers[each.name], "kernel_size", None) is None for each in found.units}
        wanted = {"units": (True, False), "neurons": (True,), "channels": (False,)}[of]
        found = _standing(
            subject, tuple(each for each in found.units if linear[each.name] in wanted), found.left, HEADS
        )
    if not found.units:
        raise BadRequest(
            f"this teacher has no {of} that could be pruned",
            found="; ".join(found.left)
            or (
                "no attention with a layer each for queries, keys and values, or for all three as in `gpt`"
                if of == "heads"
                else "none whose answers another layer reads"
            ),
            do="another --of; or student make copy or lowrank",
        )
    return found


def _has_channels(network: nn.Module) -> bool:
    """Whether there are convolutions, whose channels are units beside any neurons."""
    return any(getattr(layer, "kernel_size", None) is not None for layer in network.modules())


def _standing(subject: Subject, units: tuple[Units, ...], left: tuple[str, ...], otherwise: str) -> Found:
    """Return the units without some of which a network says what it should, and in words those that are left whole.

    Args:
        subject: whose units they are.
        units: as they were found.
        left: what is left whole already.
        otherwise: what is said of those that are left whole here.

    Graphs of dependencies do not see that an attention parts its width into heads of one width each: what torch-pruning
    finds there is left whole here, and `--of heads` has its own.
    """

    def stands(units: Sequence[Units]) -> bool:
        try:
            smaller(subject, units, [_odd(each.width) for each in units])
        except BadTeacher:
            return False
        return True

    if not units or stands(units):
        return Found(units, left)
    standing = tuple(each for each in units if stands([each]))
    gone = ", ".join(each.name for each in units if each not in standing)
    return Found(standing, (*left, f"{gone}: the network does not bear to lose some of them{otherwise}"))


def _odd(width: int) -> Tensor:
    """Return which of so many units stay where a network is tried: two of three, an odd number, as no heads are."""
    import torch

    kept = torch.arange(width)
    kept = kept[kept % 3 != 0] if width > 1 else kept
    return kept[: len(kept) - 1 + len(kept) % 2]


def _pruned(subject: Subject, found: Found, widths: Sequence[int], by: By, seed: int) -> tuple[Student, list[str]]:
    scores = score(by, subject, found.units, seed)
    kept = [values.topk(width).indices.sort().values for values, width in zip(scores, widths, strict=True)]
    return smaller(subject, found.units, kept), [f"left whole: {why}" for why in found.left]


def smaller(subject: Subject, units: Sequence[Units], kept: Sequence[Tensor]) -> Student:
    """Return a student of the units that stay alone, which says what the whole one says without the others.

    Raises:
        BadTeacher: it does not: units depend on each other in a way that was not seen.
    """
    from student_train.students import build_student

    whole = subject.student
    changes = resized(whole.network, units, [len(stay) for stay in kept])
    blueprint = whole.blueprint.model_copy(update={"changes": with_changes(whole.blueprint.changes, changes)})
    student = build_student(blueprint).eval()
    student.network.load_state_dict(sliced(whole.network, units, kept))
    student.tokenizer = whole.tokenizer
    _check(subject, student, units, kept)
    return student


def _check(subject: Subject, student: Student, units: Sequence[Units], kept: Sequence[Tensor]) -> None:
    """Raise BadTeacher unless a smaller network says what the larger one says with zeros for all that is gone."""
    import copy

    import torch

    kind = subject.blueprint.made_of
    inputs_B = kind.arguments(kind.trimmed(subject.rows.shown_B[:TRIED_ROWS]))
    larger = copy.copy(subject.student)
    larger._modules = subject.student._modules | {"network": masked(subject.student.network, units, kept)}  # noqa: SLF001
    with torch.inference_mode():
        try:
            found, expected = student(inputs_B), larger(inputs_B)
            off = float((found - expected).abs().max())
        except RuntimeError as error:
            raise _unseen(str(error).split("\n", 1)[0]) from error
    if not off <= ALIKE * max(float(expected.abs().max()), 1e-3):
        raise _unseen(f"scores {off:.3g} apart from those of the whole network without these units")


def _unseen(found: str) -> BadTeacher:
    return BadTeacher(
        "this teacher cannot be pruned so: its units depend on each other in a way that torch-pruning does not see",
        found=found,
        expected="the same answers from the smaller network as from the whole one with zeros for what is gone",
        do="student make copy or lowrank",
    )


def _widths(student: Student, units: Sequence[Units], target: Target) -> list[int]:
    """Return how many of each units stay, the same share of all, as many as the target lets."""

    def widths_at(share: float) -> tuple[int, ...]:
        return tuple(max(1, int(share * each.width + 0.5)) for each in units)

    @cache
    def size_with(widths: tuple[int, ...]) -> float:
        return size_like(student, resized(student.network, units, widths), target.measure)

    whole = measured(student, target.measure)
    share = largest_share(lambda at: size_with(widths_at(at)), target, whole, size_with(widths_at(0.0)))
    return list(widths_at(share))


def _traced(subject: Subject) -> tuple[Tensor, ...]:
    """Return what the network is called with for a row."""
    kind = subject.blueprint.made_of
    inputs_B = subject.student.normalise(kind.arguments(kind.trimmed(subject.rows.shown_B[:1])))
    return tuple(kind.spread(inputs_B))
