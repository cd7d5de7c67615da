"""An objective: a weighted sum of losses, checked against what the cache holds before anything starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from storage.cache import Cache
from storage.encodings import Encoding
from storage.errors import BadRequest, MissingCapability, NotInCache
from student_train.feed.batches import ArrayKey, Needs, Outputs, Shapes, Supervision
from student_train.feed.residency import feature_shape
from student_train.losses import LOSSES
from student_train.losses.together import Together
from student_train.options.terms import FeatureTerm, ObjectiveTerm
from student_train.students import Student

TRIED_POSITIONS = 8  # of a student of tokens, which takes rows of any length up to its own


class Losses(NamedTuple):
    """What an objective gives for a batch, scalars.

    Attributes:
        total: the weighted sum.
        values: each term before its weight, without gradient.
        parts: each term after its weight.
    """

    total: Tensor
    values: list[Tensor]
    parts: list[Tensor]


class Terms(nn.ModuleList):
    """The losses of an objective, as one module: what a stack of students runs for all of them at once."""

    def __init__(self, terms: Sequence[ObjectiveTerm], shapes: Shapes):
        super().__init__([LOSSES[term.loss].term(term, shapes) for term in terms])
        self._together = Together.of(terms)

    def forward(self, outputs: Outputs, given: Supervision, *, apart: bool = False) -> list[Tensor]:
        """Return each term before its weight, scalars; `apart` if each is to have a gradient of its own."""
        shared = {} if apart or self._together is None else self._together.values(outputs, given)
        return [shared[place] if place in shared else term(outputs, given) for place, term in enumerate(self)]


class Objective(nn.Module):
    """A weighted sum of losses; what they learn themselves (projections) is trained with the student and dropped.

    Args:
        terms: of the job.
        shapes: of the layers and targets that they use.
    """

    def __init__(self, terms: Sequence[ObjectiveTerm], shapes: Shapes):
        super().__init__()
        self.names = term_names(terms)
        self.weights = [term.weight for term in terms]
        self.terms = Terms(terms, shapes)

    def forward(self, outputs: Outputs, given: Supervision, *, apart: bool = False) -> Losses:
        """Return the weighted sum, and each term before and after its weight.

        Args:
            outputs: of the student.
            given: what it learns from.
            apart: whether a gradient of each term is wanted, not of their sum alone.
        """
        values = self.terms(outputs, given, apart=apart)
        # A weight of 1 is no operation: of small students' steps it would be some percent, there and back.
        parts = [v if weight == 1 else weight * v for weight, v in zip(self.weights, values, strict=True)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return Losses(total, [value.detach() for value in values], parts)


def term_names(terms: Sequence[ObjectiveTerm]) -> list[str]:
    """Return a name for each term, all different: "labels", "kd:cnn", "kd:cnn#2", "hint:cnn/stage2"."""
    seen: Counter[str] = Counter()
    names = []
    for term in terms:
        seen[term.name] += 1
        names.append(term.name if seen[term.name] == 1 else f"{term.name}#{seen[term.name]}")
    return names


def objective_needs(terms: Sequence[ObjectiveTerm]) -> Needs:
    """Return what all terms together need of the cache."""
    needs = Needs()
    for term in terms:
        needs |= LOSSES[term.loss].needs(term)
    return needs


def student_layers(terms: Sequence[ObjectiveTerm]) -> tuple[str, ...]:
    """Return the layers of the student that the terms look at, sorted."""
    return tuple(sorted({term.student_layer for term in terms if isinstance(term, FeatureTerm)}))


def count_classes(cache: Cache, dataset: str, needs: Needs) -> int:
    """Return the number of logits that a student must give: the dataset's classes, or its teachers' if it has none.

    Raises:
        BadRequest: there are neither classes nor logits.
        MissingCapability: two teachers' logits, or a teacher's and the dataset's classes, are of different numbers.
        NotInCache: no such teacher.
    """
    classes = cache.dataset(dataset).num_classes
    counts = {f"dataset {dataset}": classes} if classes else {}
    for name in needs.teachers:
        teacher = cache.teacher(dataset, name)
        if needs.of(name):
            counts[f"teacher {name}"] = teacher.num_classes
    if len(set(counts.values())) > 1:
        raise MissingCapability(
            f"the logits for {dataset} do not agree on the number of classes",
            found=", ".join(f"{name}: {count}" for name, count in counts.items()),
            expected="one number of classes",
            do="use that teacher for a hint only, or another teacher",
        )
    if not counts:
        raise BadRequest(
            f"{dataset} has no classes and the objective no teacher's logits",
            expected="a number of classes for the student",
            do='add a "kd" term, or label the dataset',
        )
    return next(iter(counts.values()))


def check_served(cache: Cache, dataset: str, terms: Sequence[ObjectiveTerm]) -> None:
    """Check that what losses want of soft targets is there; nothing is approximated in silence (invariant 9).

    Raises:
        NotInCache: no such teacher; what there is, is named.
        MissingCapability: a teacher's encoding does not serve a term, which is named with all that it lacks, and with
            the changes to the cache job that would help.
    """
    for term in terms:
        soft = sorted(LOSSES[term.loss].needs(term).soft)
        for teacher in dict.fromkeys(need.teacher for need in soft):
            encoding = cache.teacher(dataset, teacher).encoding
            remedies = {need.capability: encoding.lacks(need.capability) for need in soft if need.teacher == teacher}
            lacking = {capability: remedy for capability, remedy in remedies.items() if remedy is not None}
            if lacking:
                changes = "; ".join(dict.fromkeys(lacking.values()))
                allowed = "".join(f"; or {field} = true in the term" for field in _switches(term, encoding, teacher))
                raise MissingCapability(
                    f"{term.name} needs what the soft targets of teacher {teacher} for {dataset} do not serve",
                    found="; ".join(encoding.serves),
                    expected="; ".join(map(str, lacking)),
                    do=f"in the cache job: {changes}; then cache build JOB.toml --as NAME{allowed}",
                )


def _switches(term: ObjectiveTerm, encoding: Encoding, teacher: str) -> list[str]:
    """Return the options of a term that allow an approximation by name, and that would be enough with an encoding."""
    switches = [field for field in type(term).model_fields if field.startswith("allow_") and not getattr(term, field)]

    def enough(switch: str) -> bool:
        needs = LOSSES[term.loss].needs(term.model_copy(update={switch: True}))
        return not any(encoding.lacks(capability) for capability in needs.of(teacher))

    return [switch for switch in switches if enough(switch)]


def feature_shapes(cache: Cache, dataset: str, needs: Needs) -> dict[ArrayKey, tuple[int, ...]]:
    """Return the shape of one row of each feature, after checking that the cache holds it.

    Raises:
        NotInCache: no such teacher, or no such feature of it; what there is, is named.
    """
    shapes: dict[ArrayKey, tuple[int, ...]] = {}
    for key in sorted(needs.features):
        teacher = cache.teacher(dataset, key.teacher)
        feature = key.array.removeprefix("feature/")
        if feature not in teacher.features:
            near = get_close_matches(feature, teacher.features, 1)
            raise NotInCache(
                f"teacher {key.teacher} has no feature {feature!r} for {dataset}",
                found=", ".join(sorted(teacher.features)) or "no features",
                do=f'feature = "{near[0]}"' if near else "add it to the teacher in the cache job, then build --as NAME",
            )
        if cache.view_names(dataset, key.teacher):  # else no row has it, which selecting rows will tell
            shapes[key] = feature_shape(cache, dataset, key)
    return shapes


def check_student(
    student: Student, layers: Sequence[str], input_shape: tuple[int, ...], num_classes: int
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each of a student's layers for one row, after a forward pass that checks its output.

    Raises:
        BadRequest: no such layer, or the output is not (B, C), of tokens (B, L, C).
    """
    modules = dict(student.named_modules())
    for layer in layers:
        if layer not in modules:
            near = get_close_matches(layer, modules, 3, cutoff=0.4)
            raise BadRequest(
                f"the student has no layer {layer!r}",
                found=", ".join(name for name in modules if name)[:400],
                do=f'student_layer = "{near[0]}"' if near else None,
            )
    _check_head(student)
    training = student.training
    tapped = Tapped(student, layers)
    short = tuple(min(length, TRIED_POSITIONS) for length in input_shape)  # of tokens: all their logits might not fit
    try:
        with torch.no_grad():
            outputs = tapped.eval()(student.blank(2, input_shape))
            tried = student.blank(2, short)
            logits = student(tried) if student.of_tokens else outputs.logits_BC
            scores = student.scores(student.hidden(tried)) if student.of_tokens else logits
    except LayerNotRun as error:
        raise BadRequest(
            f"the student's forward pass does not run its layer {error.layer!r} as a module of its own",
            expected="a layer that is called, and gives a tensor; of tokens one below the network's body",
            do="choose another student_layer",
        ) from None
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise BadRequest(
            f"the student cannot take inputs of shape {input_shape}", found=f"{type(error).__name__}: {error}"
        ) from error
    finally:
        tapped.release()
        student.train(training)
    expected = (2, *short, num_classes) if student.of_tokens else (2, num_classes)
    if not isinstance(logits, Tensor) or logits.shape != expected:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits)
        raise BadRequest(
            "the student does not return one logit per class",
            found=f"{found} for a batch of 2",
            expected=f"a tensor of shape {expected}",
        )
    if student.of_tokens:
        _check_parts(scores, logits)
    return {layer: tuple(output.shape[1:]) for layer, output in outputs.layers.items()}


def _check_head(student: Student) -> None:
    """Check that a head treats each position by itself, since it is given a part of them at a time."""
    coupling = [name for name, module in student.network.named_modules() if isinstance(module, _BatchNorm)]
    in_head = [name for name in coupling if name.partition(".")[0] == "head"]
    if student.of_tokens and student.in_two_parts and in_head:
        raise BadRequest(
            "the student's head compares positions with each other",
            found=f"batch norm: {', '.join(in_head)}",
            expected="one that treats each position by itself, since it is given a part of them at a time",
            do="move it into the body, or use LayerNorm",
        )


def _check_parts(scores_BLC: Tensor, logits_BLC: Tensor) -> None:
    """Check that a network in two parts is no more than both: training never runs its own forward.

    Args:
        scores_BLC: what its head makes of what its body gives.
        logits_BLC: what it gives itself.
    """
    same = scores_BLC.shape == logits_BLC.shape
    if same and scores_BLC.device.type != "meta":
        same = torch.allclose(scores_BLC.float(), logits_BLC.float(), rtol=1e-3, atol=1e-4)
    if not same:
        raise BadRequest(
            "the student's network is more than its `body` and its `head`",
            found="its forward gives other logits than head(body(tokens))",
            expected="the same, since losses are computed a part of the positions at a time",
            do="move what is between or after them into one of them; or name them otherwise",
        )


class LayerNotRun(Exception):
    """A layer was not called by the forward pass that was to tap it."""

    def __init__(self, layer: str):
        super().__init__(f"the forward pass does not run {layer}")
        self.layer = layer


class Tapped(nn.Module):
    """A student that also returns what some of its layers gave; of tokens, hidden states in place of logits."""

    def __init__(self, student: Student, layers: Sequence[str]):
        super().__init__()
        self.student = student
        self.layers = tuple(layers)
        self._seen: dict[str, Tensor] = {}
        self._hooks = [student.get_submodule(layer).register_forward_hook(self._tap(layer)) for layer in layers]

    def forward(self, inputs: Tensor) -> Outputs:
        """Return logits (B, C), or of tokens hidden states (B, L, D), and the layers' outputs.

        Raises:
            LayerNotRun: a layer is none that is called.
        """
        logits_BC = self.student.hidden(inputs) if self.student.of_tokens else self.student(inputs)
        for layer in self.layers:
            if layer not in self._seen:
                raise LayerNotRun(layer)
        layers = {layer: self._seen[layer] for layer in self.layers}
        self._seen.clear()  # or a graph would live until the next step
        return Outputs(logits_BC, layers)

    def release(self) -> None:
        """Leave the student as it was."""
        for hook in self._hooks:
            hook.remove()

    def _tap(self, layer: str) -> Callable[[nn.Module, object, Tensor], None]:
        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            self._seen[layer] = output

        return keep
