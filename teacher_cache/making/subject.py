"""The teacher as a student as it is: the same network behind the same normalisation, from which all ways go on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from storage.errors import BadRequest, BadTeacher
from storage.format.specs import DatasetSpec
from storage.inputs import inputs_of
from storage.options import code_fingerprint
from storage.tasks import task_of
from teacher_cache.making.rows import Rows
from teacher_cache.teachers.classes import order_of
from teacher_cache.teachers.fed import WHITE
from teacher_cache.teachers.kinds import transformers
from teacher_cache.teachers.model import Teacher
from teacher_cache.teachers.options import TeacherOptions, num_scores

if TYPE_CHECKING:
    import torch
    from torch import nn

    from student_train.students import Blueprint, Student

ALIKE = 1e-3  # of the largest score, by which the student may differ from its teacher: rounding


class Subject(NamedTuple):
    """A student in evaluation mode, with its teacher's weights in float32, and on which rows it says what it says."""

    student: Student
    rows: Rows

    @property
    def blueprint(self) -> Blueprint:
        """Of the student."""
        return self.student.blueprint


def as_student(options: TeacherOptions, model: nn.Module, dataset: DatasetSpec, rows: Rows) -> Subject:
    """Return a teacher as a student that says the same.

    Args:
        options: of the teacher.
        model: as its kind loads it.
        dataset: that students will be trained on.
        rows: of it, on which both are asked.

    Raises:
        BadRequest: a teacher of this kind is no torch module that a blueprint could describe.
        BadTeacher: the student says something else: the model does more than it shows.
    """
    import torch

    _check_describable(options, dataset)
    teacher = Teacher(options, copy.deepcopy(model).float(), torch.device("cpu"))
    student = BLUEPRINTS[options.origin](options, model, dataset).eval()
    order = order_of(student.blueprint.classes or None, dataset.classes)
    if order is not None:
        _reorder(student, order, dataset, rows)
    subject = Subject(student, rows)
    if teacher.is_scored:
        _check_alike(subject, teacher, dataset)
    return subject


def _check_describable(options: TeacherOptions, dataset: DatasetSpec) -> None:
    """Raise BadRequest unless a student's blueprint can describe a teacher, by what the job says of it."""
    if options.origin not in BLUEPRINTS:
        raise BadRequest(
            f"students cannot be made from teacher {options.name}",
            found=f"a teacher of kind {options.origin}",
            expected=f"a torch module that can be built again: {', '.join(BLUEPRINTS)}",
            do="train a student on its cached answers instead",
        )
    if options.output == "probabilities":
        raise BadRequest(
            f"students cannot be made from teacher {options.name}, which gives probabilities",
            found='output = "probabilities"',
            expected="a network that ends in scores, as students are trained",
            do="a factory that leaves the softmax out",
        )
    if options.size is not None:
        raise BadRequest(
            f"students cannot be made from teacher {options.name}, which takes pictures of a size of its own",
            found=f"size = {options.size}",
            do="train a student on its cached answers instead; or give the dataset that size",
        )
    if not options.encoding.soft and not task_of(dataset).has_classes:
        raise BadRequest(
            f"students cannot be made from teacher {options.name}, which is asked for features alone",
            found=f"no vectors of it over dataset {dataset.name}, so nobody knows how wide they are",
            do='encoding = { kind = "vectors" } and dimension = … in its [[teacher]]',
        )


def _check_alike(subject: Subject, teacher: Teacher, dataset: DatasetSpec) -> None:
    """Raise BadTeacher unless a student gives the scores of the teacher that it was built like, on a few rows."""
    shown_B = subject.rows.shown_B[:8]
    expected, _ = teacher(shown_B, dataset)
    found = subject.student(dataset_arguments(dataset, shown_B)).detach()
    off, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not off <= ALIKE * max(largest, 1e-6):
        raise BadTeacher(
            f"a student built like teacher {teacher.name} does not say what it says",
            found=f"scores {off:.3g} apart, of {largest:.3g}",
            expected=f"at most {ALIKE * largest:.2g}",
            do='autocast = "fp32" in its section; a factory that gives the same model each time',
        )


def _reorder(student: Student, order: Sequence[int], dataset: DatasetSpec, rows: Rows) -> None:
    """Have a student's last layer score the classes in a dataset's order, as its teacher's answers are stored.

    Raises:
        BadRequest: it does not end in a layer of its own whose outputs are the scores.
    """
    import torch

    from student_train.students import products_of

    layers = dict(student.network.named_modules())
    said: dict[str, torch.Tensor] = {}

    def hearing(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: object, answer: torch.Tensor) -> None:
            said[name] = answer

        return hook

    hooks = [layers[name].register_forward_hook(hearing(name)) for name in products_of(student.network)]
    try:
        with torch.inference_mode():
            scores_BC = student(dataset_arguments(dataset, rows.shown_B[:2]))
    finally:
        for hook in hooks:
            hook.remove()
    last = next((layers[name] for name, answer in reversed(said.items()) if torch.equal(answer, scores_BC)), None)
    if last is None:
        raise BadRequest(
            f"the student's classes are in another order than those of dataset {dataset.name}",
            found=", ".join(student.blueprint.classes[:12]),
            expected=", ".join(dataset.classes[:12]) + "; or a network that ends in a linear layer",
            do="give the dataset's `classes` in the teacher's order",
        )
    with torch.no_grad():
        for values in last.parameters(recurse=False):
            values.copy_(values[list(order)].clone())
    student.blueprint = student.blueprint.model_copy(update={"classes": tuple(dataset.classes)})


def dataset_arguments(dataset: DatasetSpec, shown_B: torch.Tensor) -> torch.Tensor:
    """Return rows as a student is given them."""
    kind = inputs_of(dataset)
    return kind.arguments(kind.trimmed(shown_B))


def _of_factory(options: TeacherOptions, model: nn.Module, dataset: DatasetSpec) -> Student:
    """Return the student that a user's own model is, with that model's weights."""
    from student_train.students import Blueprint, build_student

    assert options.factory is not None
    normalised = inputs_of(dataset).normalised
    blueprint = Blueprint(
        architecture=options.factory,
        options=options.arguments,
        num_classes=num_scores(options, dataset),
        input_shape=dataset.input_shape,
        mean=tuple(options.mean or (0.0,)) if normalised else None,
        std=tuple(options.std or ((1.0,) if options.pixels == "unit" else (1 / WHITE,))) if normalised else None,
        tokenizer=dataset.tokenizer,
        classes=tuple(options.classes or dataset.classes),
        vocabulary=None if dataset.vocabulary == dataset.num_classes else dataset.vocabulary,
        inputs=inputs_of(dataset).name,
        task=task_of(dataset).name,
        source=dataset.source,
        teacher_code=code_fingerprint(options.factory),
    )
    student = build_student(blueprint)
    student.network.load_state_dict(model.state_dict())
    return student


def _of_student(options: TeacherOptions, model: nn.Module, dataset: DatasetSpec) -> Student:
    from student_train.students import Student

    assert isinstance(model, Student)
    if options.architecture is not None:  # as this job names it: the file may have moved
        moved = model.blueprint.model_copy(update={"architecture": options.architecture})
        model.blueprint = moved
    return model


def _of_transformers(options: TeacherOptions, model: nn.Module, dataset: DatasetSpec) -> Student:
    """Return the student that a model of transformers is. Raises BadRequest: its code or its task is none of ours."""
    from student_train.students import Blueprint, build_student, embedded

    assert options.path is not None
    if options.trust_code:
        raise BadRequest(
            f"students cannot be made from teacher {options.name}, whose code lies in its folder",
            found=f"trust_code = {list(options.trust_code)}",
            expected="a model that transformers itself has",
            do="train a student on its cached answers instead",
        )
    answers = transformers.digests(options).get("answers")
    mean = std = None
    if answers is not None and answers["kind"] == "image_classes":  # its normalisation is the student's own
        mean, std, answers = tuple(answers["mean"]), tuple(answers["std"]), {"kind": answers["kind"]}
    blueprint = Blueprint(
        architecture=options.origin,
        options=embedded(options.path, {}, answers),
        num_classes=num_scores(options, dataset),
        input_shape=dataset.input_shape,
        mean=mean,
        std=std,
        tokenizer=dataset.tokenizer,
        classes=tuple(transformers.classes(options) or dataset.classes),
        vocabulary=None if dataset.vocabulary == dataset.num_classes else dataset.vocabulary,
        inputs=inputs_of(dataset).name,
        task=task_of(dataset).name,
        source=dataset.source,
    )
    student = build_student(blueprint)
    student.network.load_state_dict(model.state_dict())
    return student


BLUEPRINTS: dict[str, Callable[[TeacherOptions, nn.Module, DatasetSpec], Student]] = {
    "factory": _of_factory,
    "student": _of_student,
    "transformers": _of_transformers,
}
"""How a teacher of each kind is a student."""
