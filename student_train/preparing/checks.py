"""What is refused before the first step: rows, losses and students that do not go together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import get_args

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from storage.errors import BadRequest, gib
from storage.format.specs import DatasetSpec, ViewsSpec
from storage.inputs import inputs_of
from storage.tasks import task_of
from storage.views.check import check_decoded_for
from student_train.feed.batches import Needs
from student_train.feed.devices import free_bytes
from student_train.feed.together import check_agree
from student_train.losses import LOSSES
from student_train.losses.objective import Objective, student_layers
from student_train.losses.outputs import Shapes
from student_train.options.by_dataset import teachers_named
from student_train.options.sections import DataOptions, StudentOptions, datasets_of, told
from student_train.options.training import OF_NUMBERS, OF_VECTORS, Figure
from student_train.preparing.request import PreparedRun, Request
from student_train.run_files.locks import no_folder
from student_train.stepping.forward import check_student
from student_train.stepping.recompute import recomputed_blocks
from student_train.students import Blueprint, build_student
from student_train.students.blueprint import decoded_at
from student_train.students.starting.adapter import adapt
from student_train.students.starting.start import Started, check_speaks, start_student
from student_train.tasks import TASKS

SAME_START = "; others that differ in their seed alone start alike, and `order_seed` of the job shuffles rows for all"


def check_names(request: Request) -> None:
    """Raise BadRequest if the folder of runs is none, or two students would have one folder."""
    if request.runs.exists() and not request.runs.is_dir():
        raise no_folder(request.runs)
    names = [options.name for options in request.students]
    if len(names) != len(set(names)):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise BadRequest("two students have one name", found=", ".join(twice), do="rename one; a name is a folder")


def check_taught(data: DataOptions, needs: Sequence[Needs]) -> None:
    """Raise BadRequest unless terms that name a teacher for each dataset name one for each of the job, and no other.

    Args:
        data: of the job.
        needs: of every student.
    """
    trained = datasets_of(data.train)
    for name in sorted({name for need in needs for name in need.teachers}):
        named = teachers_named(name)
        absent = [dataset for dataset in trained if named and dataset not in named]
        unknown = [dataset for dataset in named if dataset not in (*trained, *datasets_of(data.validation))]
        if absent or unknown:
            raise BadRequest(
                f"a term names no teacher of {', '.join(absent)}"
                if absent
                else f"a term names a teacher of {', '.join(unknown)}, on which nobody is trained",
                found="teacher = { " + ", ".join(f'"{of}" = "{who}"' for of, who in named.items()) + " }",
                expected=f"a teacher for each dataset of `train`: {', '.join(trained)}",
                do="name one for each, or one name alone, of a teacher that all of them have",
            )


def check_trained_together(dataset: DatasetSpec, other: DatasetSpec) -> None:
    """Raise BadRequest unless a student can be trained on rows of both datasets."""
    check_agree(dataset, other, f"{other.name} cannot be trained on together with {dataset.name}")


def check_held(dataset: DatasetSpec, held: DatasetSpec, data: DataOptions) -> None:
    """Raise BadRequest unless rows of one dataset can measure a student of another's."""
    of = data.validation if isinstance(data.validation, str) else held.name
    check_agree(dataset, held, f"{of} cannot measure a student of {told(data.train)}")


def check_sizes(
    name: str,
    blueprint: Blueprint,
    trained: Sequence[DatasetSpec],
    held: Sequence[DatasetSpec],
    views: ViewsSpec | None,
) -> None:
    """Raise BadRequest unless pictures of all datasets come to a student alike, at its own size or at theirs.

    Args:
        name: of the student.
        blueprint: of it.
        trained, held: the datasets of its rows.
        views: of those that it is trained on.
    """
    own = decoded_at(blueprint, trained[0])
    for number, dataset in enumerate((*trained, *held)):
        if decoded_at(blueprint, dataset) != own:
            encoded, pixels = (dataset, trained[0]) if dataset.encoded else (trained[0], dataset)
            raise BadRequest(
                f"student {name} has a size of its own, at which it can be shown one dataset and not the other",
                found=f"whole pictures of {encoded.name}, and of {pixels.name} those of the dataset's size",
                expected='both with inputs = "encoded", or neither',
                do="leave `size` out, or build one of them anew",
            )
        if own is not None:
            shown = views if number < len(trained) else None
            check_decoded_for(f"student {name}", dataset, own, shown, "[[student]]")


def check_suited(options: StudentOptions, dataset: DatasetSpec) -> None:
    """Raise BadRequest if a student has options that mean nothing for such inputs, or losses that its task has not."""
    inputs = inputs_of(dataset)
    if not inputs.normalised and any(
        getattr(options, name) != StudentOptions.model_fields[name].default for name in ("mean", "std")
    ):
        raise BadRequest(
            f"student {options.name} normalises its inputs, and those of {dataset.name} are {inputs.name}",
            found="mean, std",
            do="leave them out",
        )
    TASKS[task_of(dataset).name].refuse_losses(options.name, dataset.name, options.objective)
    compared = [term.loss for term in options.objective if LOSSES[term.loss].couples_rows(term)]
    if compared:
        TASKS[task_of(dataset).name].refuse_coupling(options.name, dataset.name, compared)


def check_figures(request: Request, students: Sequence[PreparedRun]) -> None:
    """Raise BadRequest if the held rows have no figure by which students, or a student's weights, could be compared."""
    for student in students:
        task, halving = TASKS[student.blueprint.asked.name], request.fleet.halving
        asking: list[tuple[Figure, str]] = []
        if halving is not None and (figure := halving.by(task.best_by).metric) is not None:
            asking.append((figure, f"[halving] compares students by {figure}, which {student.name} would not have"))
        if student.options.keeps_best:
            asking.append((student.best_by, f"student {student.name} is to be best by {student.best_by}"))
        for figure, why in asking:
            if (lacking := _lacking(student, figure)) is not None:
                raise BadRequest(
                    why,
                    found=f"held rows without {lacking}",
                    do=f"another figure ({', '.join(get_args(Figure))}), or validation rows that have it",
                )


def _lacking(student: PreparedRun, figure: Figure) -> str | None:  # noqa: PLR0911 - a reason each
    """Return what the held rows lack for a figure."""
    task = TASKS[student.blueprint.asked.name]
    if task.asked.numbers or figure in OF_NUMBERS:
        if (figure in OF_NUMBERS) == task.asked.numbers:
            return None if student.held_are_labelled else "numbers to be told"
        return f"{'classes or embeddings' if task.asked.numbers else 'numbers'}, of which alone it is a figure"
    if (figure in OF_VECTORS) == task.asked.has_classes:
        return f"{'vectors' if task.asked.has_classes else 'classes'}, of which alone it is a figure"
    if figure in ("agreement", "kl", *OF_VECTORS):
        if task.beside_teacher:
            why = "" if student.why_not_against is None else f": {student.why_not_against}"
            return None if student.against is not None else f"a teacher to compare with{why}"
        if figure == "kl":
            return "a class at each position, of which alone the KL to a teacher is measured"
        return None if student.held.tops_N is not None else "a teacher to agree with"
    if figure == "macro_f1" and not task.macro_f1:
        return "a class each out of few (texts have it)"
    return None if student.held_are_labelled else "labels"


def check_budget(request: Request, student: PreparedRun) -> None:
    """Raise BadRequest if what a student does by the step is more than it has steps, once its rows are counted."""
    options, each, total = student.options, student.steps_an_epoch, student.total_steps
    rise = options.rise_steps(each)
    fall = options.decay_share * total if options.schedule == "wsd" else 0
    told = f"{total} steps" if options.epochs is None else f"{total} steps, {options.epochs} epochs of {each}"
    if rise + fall > total:
        raise BadRequest(
            f"student {student.name} has more warm-up than steps",
            found=f"a warm-up of {rise:g} steps{f' and a decay of {fall:g}' if fall else ''}; {told}",
            do=f"a shorter warm-up{', or a smaller decay_share' if fall else ''}",
        )
    if (options.evaluate_every_steps or 0) > total:
        raise BadRequest(
            f"student {student.name} would never be evaluated by steps",
            found=f"evaluate_every_steps = {options.evaluate_every_steps}; {told}",
            do="fewer, or leave it out: a student is evaluated after every epoch and at its end",
        )
    halving = request.fleet.halving
    if halving is not None and options.epochs is None and total <= halving.first_epochs * each:
        raise BadRequest(
            f"student {student.name} ends before [halving] first compares students",
            found=f"max_steps = {total}; first_epochs = {halving.first_epochs}, {halving.first_epochs * each} steps",
            do="more steps, fewer first_epochs, or no [halving]",
        )


def check_parts(options: StudentOptions, processes: int) -> None:
    """Raise BadRequest if a student has losses that would differ with the parts in which a batch is looked at."""
    compared = [term.loss for term in options.objective if LOSSES[term.loss].couples_rows(term)]
    if compared and (processes > 1 or options.micro_batch_size is not None):
        of_processes = processes > 1
        raise BadRequest(
            f"student {options.name} has losses that compare the rows of a batch, "
            f"{'and each process has a part of them' if of_processes else 'which go through it a part at a time'}",
            found=f"{', '.join(compared)} "
            + (f"on {processes} processes" if of_processes else f"with micro_batch_size = {options.micro_batch_size}"),
            expected="losses that are means over rows",
            do=f"{'train it on one process' if of_processes else 'no micro_batch_size'}, or choose other losses",
        )


def check_models(students: Sequence[PreparedRun]) -> dict[str, str]:
    """Build each kind of student once and throw it away: a mistake is better found before the others are trained.

    Returns:
        What each of those takes that starts from weights, in words, by name of the student.
    """
    found: dict[str, Started | None] = {}  # by kind
    for student in students:
        if _kind(student) not in found:
            found[_kind(student)] = _check_model(student)
    starting = {s.name: started for s in students if (started := found[_kind(s)]) is not None}
    settings = Counter(_setting(student) for student in students)
    return {
        student.name: started.told + (SAME_START if started.is_whole and settings[_setting(student)] > 1 else "")
        for student in students
        if (started := starting.get(student.name)) is not None
    }


def _setting(student: PreparedRun) -> str:
    return repr(student.options.model_copy(update={"name": "", "seed": 0}))


def _kind(student: PreparedRun) -> str:
    options = student.options
    # repr: options may be lists, which no key can be
    return repr(
        (
            student.blueprint,
            options.losses,
            options.start,
            options.starts_from,
            options.micro_batch_size,
            options.recompute,
        )
    )


def _check_model(student: PreparedRun) -> Started | None:
    options, blueprint = student.options, student.blueprint
    _check_size(student)
    model, started = build_student(blueprint), None
    if options.start is not None and options.starts_from is not None:
        check_speaks(options.starts_from, blueprint.tokenizer, student.tokenizer)
        started = start_student(model, options.start, options.starts_from)
    if options.adapter is not None:
        adapt(model, options.adapter)
    layers = check_student(model, student_layers(options.objective), blueprint.input_shape, blueprint.num_classes)
    objective = Objective(options.objective, Shapes(layers, student.feature_shapes))
    if options.recompute:
        recomputed_blocks(model)
    if options.micro_batch_size is not None:
        _check_norms(student, [model, objective])
    return started


def _check_norms(student: PreparedRun, modules: Sequence[nn.Module]) -> None:
    """Raise BadRequest if there is batch norm, which would compare the rows of each part alone."""
    named = [pair for module in modules for pair in module.named_modules()]
    norms = [name for name, module in named if isinstance(module, _BatchNorm)]
    if norms:
        raise BadRequest(
            f"student {student.name} has batch norm, which compares the rows of a batch",
            found=f"{', '.join(norms)[:300]}, and micro_batch_size = {student.options.micro_batch_size}",
            expected="a network that treats each row by itself: its weights are then those of whole batches",
            do="no micro_batch_size; or an architecture with GroupNorm or LayerNorm",
        )


def _check_size(student: PreparedRun) -> None:
    """Raise BadRequest for a student whose weights alone are more than this machine's memory, before it is built."""
    try:
        with torch.device("meta"):  # shapes without memory
            blank = build_student(student.blueprint)
    except (NotImplementedError, RuntimeError, BadRequest):  # a user's own may not be built so; a mistake is found next
        return
    weights = sum(tensor.nbytes for tensor in (*blank.parameters(), *blank.buffers()))
    free = free_bytes(torch.device("cpu"))
    if weights > free:
        raise BadRequest(
            f"student {student.options.name} does not fit into memory",
            found=f"{gib(weights)} of weights alone, {gib(free)} free",
            do="a smaller student",
        )
