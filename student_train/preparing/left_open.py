"""What a job leaves open and its task or its cache decides, before it becomes part of what a run is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from storage.errors import BadRequest
from student_train.feed.batches import ArrayKey
from student_train.losses.objective import student_layers
from student_train.losses.on_features.features import channels, feature_key, learns_projection
from student_train.options.sections import StudentOptions
from student_train.options.terms import SOFTENED, ObjectiveTerm, ProjectedTerm, SoftenedTerm
from student_train.preparing.request import Request
from student_train.stepping.forward import check_student
from student_train.students import Blueprint, build_student
from student_train.tasks import StudentTask

Shape = tuple[int, ...]


def decide_temperatures(request: Request, task: StudentTask) -> Request:
    """Return a request whose terms all have a temperature: where the job leaves it out, the task's."""

    def decided(term: ObjectiveTerm) -> ObjectiveTerm:
        if not isinstance(term, SoftenedTerm) or term.temperature is not None:
            return term
        return term.model_copy(update={"temperature": task.temperature})

    return replace(
        request, students=tuple(_with(each, [decided(t) for t in each.objective]) for each in request.students)
    )


def told_of_temperatures(options: StudentOptions, task: StudentTask) -> list[str]:
    """Return which temperatures the task decides otherwise than is usual, in words."""
    open_to_it = (t for t in options.objective if isinstance(t, SoftenedTerm) and t.temperature is None)
    usual = task.temperature == SOFTENED
    return (
        [] if usual else [f"{t.name}: temperature {task.temperature:g}, which the job leaves out" for t in open_to_it]
    )


def decide_projections(
    options: StudentOptions, blueprint: Blueprint, features: dict[ArrayKey, Shape]
) -> tuple[StudentOptions, list[str]]:
    """Return options whose terms all say whether they learn a projection; and in words where they need none.

    Args:
        options: of a student.
        blueprint: what it is; it is built where a term leaves it open.
        features: shape of one row of each that it needs, as far as the cache has them.

    Raises:
        BadRequest: it cannot be built, or has no such layer.
    """
    left_open = [t for t in options.objective if isinstance(t, ProjectedTerm) and t.projection is None]
    if not left_open:
        return options, []
    layers = _layer_shapes(blueprint, student_layers(left_open))
    terms, told = [], []
    for term in options.objective:
        decided = term
        if isinstance(term, ProjectedTerm) and term.projection is None and feature_key(term) in features:
            shapes = layers[term.student_layer], features[feature_key(term)]
            learned = learns_projection(term, *shapes)
            decided = term.model_copy(update={"projection": learned})
            if not learned:
                width = channels(shapes[0])
                told.append(f"{term.name}: projection = false, for layer and feature are both {width} wide")
        terms.append(decided)
    return _with(options, terms), told


def _layer_shapes(blueprint: Blueprint, layers: Sequence[str]) -> dict[str, Shape]:
    """Return the shape of each layer of a student for one row, without memory where it can be built so."""
    shape, classes = blueprint.input_shape, blueprint.num_classes
    try:
        with torch.device("meta"):
            return check_student(build_student(blueprint), layers, shape, classes)
    except (NotImplementedError, RuntimeError, BadRequest):  # a user's own may not be built so
        return check_student(build_student(blueprint), layers, shape, classes)


def _with(options: StudentOptions, terms: Sequence[ObjectiveTerm]) -> StudentOptions:
    return options.model_copy(update={"objective": tuple(terms)})
