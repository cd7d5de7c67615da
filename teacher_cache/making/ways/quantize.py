"""Int8 after training: weights as codes and steps, inputs of layers within the range that rows of the cache show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from storage.errors import BadRequest
from teacher_cache.making.asking import read_otherwise, watch
from teacher_cache.making.subject import Subject
from teacher_cache.making.ways.slices import check_named_once, with_changes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from student_train.students import Student


class QuantizeOptions(NamedTuple):
    """How a teacher is quantised.

    Attributes:
        per: whether each output of a layer has a step of its own, or all have one: the weakest scheme.
    """

    per: Literal["channel", "tensor"]


def quantize(subject: Subject, options: QuantizeOptions) -> tuple[Student, list[str]]:
    """Return a student whose linear layers and convolutions are int8, and in words which are not.

    Raises:
        BadRequest: it has none.

    Source: Jacob et al. 2018, arXiv 1712.05877, section 2; ranges are the least and the greatest that were seen.
    """
    from student_train.students import Int8, build_student, codes_of, in_floats, products_of, step_of

    whole = subject.student
    check_named_once(whole.network)
    layers: dict[str, Any] = dict(whole.network.named_modules())
    products = products_of(whole.network)
    read = read_otherwise(subject, products)
    names = [name for name in products if name not in read]
    if not names:
        raise BadRequest(
            "this teacher has no layer that could be int8",
            found=", ".join(sorted({type(layer).__name__ for layer in layers.values()}))[:300],
            expected="linear layers or convolutions, with weights of their own",
        )
    ranges = _ranges(subject, names)
    unseen = [name for name in names if name not in ranges]
    changes = [Int8(layer=name, per=options.per) for name in names if name in ranges]
    tensors = dict(whole.network.state_dict())
    for change in changes:
        weight = tensors.pop(f"{change.layer}.weight")
        step = step_of(weight, options.per)
        low, high = ranges[change.layer]
        own = {"codes": codes_of(weight, step), "step": step, "low": low, "high": high}
        tensors |= {f"{change.layer}.{name}": value for name, value in own.items()}
    blueprint = whole.blueprint.model_copy(update={"changes": with_changes(whole.blueprint.changes, changes)})
    student = build_student(blueprint).eval()
    student.network.load_state_dict(tensors)
    student.tokenizer = whole.tokenizer
    others = [*in_floats(whole.network), *(f"{n}, which no row reached" for n in unseen)]
    others += [f"{name}, whose weights are read without calling it" for name in read]
    return student, [f"left in floats: {each}" for each in others]


def _ranges(subject: Subject, names: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the least and the greatest input of each layer over the rows at hand; both hold 0."""
    import torch

    layers = dict(subject.student.network.named_modules())
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def watching(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            low, high = found.get(name, (torch.zeros(()), torch.zeros(())))
            found[name] = (low.minimum(given[0].amin()), high.maximum(given[0].amax()))

        return hook

    watch(subject, before={layers[name]: watching(name) for name in names})
    return found
