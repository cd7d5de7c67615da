"""Whole blocks: which there are, how much each changes what goes through it, and a network without some.

A block is a member of a Sequential or a ModuleList, within no other, whose answer has the shape of what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from storage.errors import BadRequest
from teacher_cache.making.asking import batches, watch
from teacher_cache.making.sizes import UNITS, Target, measured, size_like
from teacher_cache.making.subject import Subject
from teacher_cache.making.ways.scores import By, moved
from teacher_cache.making.ways.slices import with_changes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from student_train.students import Student


def find_blocks(subject: Subject) -> list[str]:
    """Return the names of a network's blocks, in their order. Raises BadRequest: it has none."""
    import torch
    from torch import nn

    network = subject.student.network
    members = [
        f"{name}.{child}" if name else child
        for name, module in network.named_modules()
        if isinstance(module, nn.Sequential | nn.ModuleList)
        for child, each in module.named_children()
        if next(each.parameters(), None) is not None
    ]
    alike: list[str] = []

    def telling(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Any, ...], answer: Any) -> None:
            if given and isinstance(answer, torch.Tensor) and getattr(given[0], "shape", None) == answer.shape:
                alike.append(name)

        return hook

    layers = dict(network.named_modules())
    hooks = [layers[name].register_forward_hook(telling(name)) for name in members]
    try:
        with torch.inference_mode():
            subject.student(next(iter(batches(subject)))[0][:2])
    finally:
        for hook in hooks:
            hook.remove()
    inside = [name for name in members if any(name.startswith(f"{other}.") for other in alike)]
    blocks = [name for name in members if name in alike and name not in inside and list(layers[name].children())]
    if not blocks:
        raise BadRequest(
            "this teacher has no blocks that could be left out",
            found=", ".join(members[:8]) or "no Sequential, no ModuleList",
            expected="members of one whose answer has the shape of what they are given",
            do="student make prune --of units",
        )
    return blocks


def without(subject: Subject, dropped: Sequence[str]) -> Student:
    """Return a student without some blocks, all else as it is."""
    from student_train.students import Dropped, build_student

    whole = subject.student
    changes = with_changes(whole.blueprint.changes, [Dropped(layer=name) for name in dropped])
    gone = tuple(f"{name}." for name in dropped)
    kept = tuple(change for change in changes if not change.layer.startswith(gone))
    student = build_student(whole.blueprint.model_copy(update={"changes": kept})).eval()
    student.network.load_state_dict(
        {name: value for name, value in whole.network.state_dict().items() if not name.startswith(gone)}
    )
    student.tokenizer = whole.tokenizer
    return student


def prune_blocks(subject: Subject, target: Target, by: By, seed: int) -> tuple[Student, list[str]]:
    """Return a student without the blocks that matter least, as few as its target lets, and in words which.

    Raises:
        BadRequest: it has no blocks, or without all of them it would still be larger.
    """
    from student_train.students import Dropped

    blocks = find_blocks(subject)
    scores = SCORES[by](subject, blocks, seed)
    order = sorted(blocks, key=lambda name: scores[name])
    whole = measured(subject.student, target.measure)
    size = whole
    for count in range(1, len(order) + 1):
        size = size_like(subject.student, [Dropped(layer=name) for name in order[:count]], target.measure)
        if size <= target.share * whole:
            gone = [name for name in blocks if name in order[:count]]
            return without(subject, gone), [f"left out: {', '.join(gone)}, of {len(blocks)} blocks"]
    raise BadRequest(
        f"a student of {target.share:g} of its teacher's {target.measure} cannot be made so",
        found=f"{size:.4g} {UNITS[target.measure]} without any of its {len(blocks)} blocks, {size / whole:.3g} "
        "of the teacher's",
        expected=f"{target.share * whole:.4g} or less",
        do="--of units",
    )


def _by_change(subject: Subject, blocks: Sequence[str], seed: int) -> dict[str, float]:
    """Score by how much a block turns what goes through it: 1 less the cosine, mean over rows.

    Source: Men et al. 2024 (ShortGPT), arXiv 2403.03853, eq. 1; as Minitron's block importance.
    """
    from torch.nn import functional

    sums = dict.fromkeys(blocks, 0.0)
    layers = dict(subject.student.network.named_modules())

    def watching(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
            cosine_B = functional.cosine_similarity(given[0].flatten(1), answer.flatten(1))
            sums[name] += float((1 - cosine_B).sum())

        return hook

    watch(subject, behind={layers[name]: watching(name) for name in blocks})
    return sums


def _by_weights(subject: Subject, blocks: Sequence[str], seed: int) -> dict[str, float]:
    """Score by the mean square of a block's weights, so that a wide block is no better for that."""
    layers = dict(subject.student.network.named_modules())
    weights = {name: [p.detach() for p in layers[name].parameters() if p.ndim > 1] for name in blocks}
    return {
        name: float(sum(p.square().sum() for p in each)) / max(1, sum(p.numel() for p in each))
        for name, each in weights.items()
    }


def _by_taylor(subject: Subject, blocks: Sequence[str], seed: int) -> dict[str, float]:
    far = moved(subject)
    return {
        name: sum(float(value.sum()) for key, value in far.items() if key.startswith(f"{name}.")) for name in blocks
    }


def _by_place(subject: Subject, blocks: Sequence[str], seed: int) -> dict[str, float]:
    return {name: -float(place) for place, name in enumerate(blocks)}


def _at_random(subject: Subject, blocks: Sequence[str], seed: int) -> dict[str, float]:
    import torch

    draw = torch.Generator().manual_seed(seed)
    return dict(zip(blocks, torch.rand(len(blocks), generator=draw).tolist(), strict=True))


SCORES: dict[By, Callable[[Subject, Sequence[str], int], dict[str, float]]] = {
    "magnitude": _by_weights,
    "taylor": _by_taylor,
    "activation": _by_change,
    "first": _by_place,
    "random": _at_random,
}
