"""What a student is: its blueprint, from its section of the job, its rows, and the student that it starts from."""

from __future__ import annotations

from typing import Any

import torch

from storage.errors import BadRequest
from storage.format.specs import DatasetSpec
from storage.inputs import inputs_of
from storage.inputs.columns import answers_of, normalisation_of
from storage.inputs.encoded import OwnSize
from storage.inputs.pixels import sides_of
from storage.language.preprocessing import PREPROCESSOR, Preprocessing, preprocessing_as
from storage.tasks import task_of
from student_train.options.sections import StudentOptions
from student_train.preparing.beginning import check_begins
from student_train.students import Blueprint, Int8, build_student, in_floats, products_of
from student_train.students.blueprint import keeps_whole
from student_train.students.files import BlueprintFile
from student_train.students.transformers import embedded_for

HALF = (0.5,)  # by which inputs in [0, 1] are normalised


def blueprint_of(
    options: StudentOptions, dataset: DatasetSpec, num_classes: int, began: BlueprintFile | None
) -> Blueprint:
    """Return what a student is.

    Args:
        options: its section of the job.
        dataset: of its rows.
        num_classes: that it tells apart, or the width of its vectors.
        began: the student that it starts from as it is; None: its architecture is the job's.

    Raises:
        BadRequest: rows of the dataset are not what it can take.
    """
    inputs, own = inputs_of(dataset), at_own_size(options, dataset)
    if began is not None:
        check_begins(options, began, dataset, num_classes, own)
        return Blueprint(
            **began.model_dump(
                include=set(Blueprint.model_fields) - {"architecture", "classes", "source", "tokenizer"}
            ),
            classes=tuple(dataset.classes),
            architecture=options.architecture or began.architecture,
            source=own["source"],
            tokenizer=dataset.tokenizer,
        )
    assert options.architecture is not None  # or it would start from a student's folder
    mean, std = normalisation_of(dataset.source) or _of_folder(options, dataset) or (HALF, HALF)
    answers = answers_of(dataset.source) or (None, None)
    own_options = options.options
    if options.path is not None:
        layers = None if options.start is None else options.start.layers
        own_options = embedded_for(dataset, options.path, options.options, layers)
    return Blueprint(
        architecture=options.architecture,
        options=own_options,
        num_classes=num_classes,
        mean=(options.mean or mean) if inputs.normalised else None,
        std=(options.std or std) if inputs.normalised else None,
        tokenizer=dataset.tokenizer,
        classes=tuple(dataset.classes),
        # said only where classes are not the ids themselves
        vocabulary=None if dataset.vocabulary == num_classes else dataset.vocabulary,
        inputs=inputs.name,
        task=task_of(dataset).name,
        answer_mean=answers[0],
        answer_std=answers[1],
        **own,
    )


def _of_folder(options: StudentOptions, dataset: DatasetSpec) -> Preprocessing | None:
    """Return how the folder of a student of transformers has pictures normalised; None: nobody there says it.

    Raises:
        BadRequest: as `preprocessing_as`.
    """
    has = options.path is not None and inputs_of(dataset).scaled and (options.path / PREPROCESSOR).exists()
    if not has or options.path is None:
        return None
    where = f"the section of student {options.name}"
    return preprocessing_as(options.path, options.mean, options.std, wrong=BadRequest, where=where)


def taken_over(options: StudentOptions, dataset: DatasetSpec) -> list[str]:
    """Return what a student has of its folder that its job does not say, in words."""
    found = None if options.mean is not None else _of_folder(options, dataset)
    if found is None:
        return []
    return [f"mean = {list(found.mean)}, std = {list(found.std)}, as {PREPROCESSOR} says"]


def at_own_size(options: StudentOptions, dataset: DatasetSpec) -> dict[str, Any]:
    """Return what a blueprint says of rows and of a size of the student's own: pictures are decoded at it, or resized.

    Raises:
        BadRequest: the dataset has no pictures.
    """
    as_they_are = {"input_shape": tuple(dataset.input_shape), "source": dataset.source}
    if options.size is None:
        return as_they_are
    if not inputs_of(dataset).has_views(dataset.input_shape):
        raise BadRequest(
            f"student {options.name} has a size of its own, and dataset {dataset.name} has no pictures",
            found=f"inputs of {dataset.input_dtype}, {tuple(dataset.input_shape)}",
            expected="pixels (channels, height, width)",
            do="leave `size` out",
        )
    channels, *sides = dataset.input_shape
    size = sides_of(options.size)
    if size == tuple(sides):
        return as_they_are
    own = {"size": size, "filter": options.filter}
    if not keeps_whole(dataset):
        return as_they_are | own
    source = dataset.source | OwnSize(size, options.filter).said()
    return own | {"input_shape": (channels, *size), "source": source}


def rounded(options: StudentOptions, blueprint: Blueprint, processes: int) -> tuple[Blueprint, list[str]]:
    """Return the blueprint of a student whose layers are rounded in training, where its options ask for it.

    Besides, in words, which are.

    Raises:
        BadRequest: it has no such layer; or it is trained on several processes, each of which sees other inputs.
    """
    if options.quantize is None:
        return blueprint, []
    if processes > 1:
        raise BadRequest(
            f"student {options.name} is quantised, and each process would see another range of inputs",
            found=f"quantize on {processes} processes",
            do="train it on one process",
        )
    try:
        with torch.device("meta"):
            network = build_student(blueprint).network
    except (NotImplementedError, RuntimeError, BadRequest):  # a user's own may not be built so
        network = build_student(blueprint).network
    names = products_of(network)
    if not names:
        raise BadRequest(
            f"student {options.name} has no layer that could be int8",
            expected="linear layers or convolutions, with weights of their own",
            do="leave `quantize` out",
        )
    more = tuple(Int8(layer=name, per=options.quantize.per, trained=True) for name in names)
    floats = "; ".join(["norms and biases", *in_floats(network)])
    told = f"int8: {len(names)} layers, a step for each {options.quantize.per}; in floats: {floats}"
    return blueprint.model_copy(update={"changes": (*blueprint.changes, *more)}), [told]
