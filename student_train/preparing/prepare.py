"""Every student of a job, checked against the cache and against the runs that are there, before anything starts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import product

from storage.cache import Catalogue, Samples
from storage.cache.standing import standings
from storage.encodings import Encoding
from storage.format.specs import DatasetSpec
from storage.format.stages import list_teachers
from storage.tasks import task_of as storage_task
from student_train.feed.batches import ArrayKey, Needs
from student_train.feed.devices import find_device
from student_train.feed.order.views import EpochViews, check_first_view, check_one_class, choose_views
from student_train.feed.selection import Selection
from student_train.feed.together import check_alike, feature_shapes, mixed, told_of_mixture
from student_train.losses.objective import objective_needs
from student_train.options.by_dataset import teacher_of
from student_train.options.sections import DataOptions, StudentOptions, datasets_of
from student_train.preparing.against import find_held
from student_train.preparing.beginning import began_as, like_start
from student_train.preparing.blueprint import blueprint_of, rounded, taken_over
from student_train.preparing.checks import (
    check_budget,
    check_figures,
    check_held,
    check_models,
    check_names,
    check_parts,
    check_sizes,
    check_suited,
    check_taught,
    check_trained_together,
)
from student_train.preparing.identity import identity_of, settled_record
from student_train.preparing.left_open import decide_projections, decide_temperatures, told_of_temperatures
from student_train.preparing.request import PreparedRun, Request
from student_train.preparing.selections import Selections
from student_train.preparing.served import check_never, check_served, check_some_labelled, count_classes
from student_train.run_files.folder import RunFolder, UnwrittenFolder
from student_train.run_files.records import lost_files
from student_train.stepping.recorder import check_recordable
from student_train.students.blueprint import decoded_at
from student_train.tasks import TASKS


def prepare(request: Request) -> list[PreparedRun]:
    """Return every student of a request, checked against the cache and against the runs that are there.

    Raises:
        BadRequest: of some kind.
    """
    check_names(request)
    device = find_device(request.device)
    data = request.data
    catalogue = look_at_cache(request)
    selections = Selections(Samples(catalogue), allow_partial=data.allow_partial)
    datasets = datasets_of(data.train)
    task = TASKS[storage_task(catalogue.dataset(datasets[0])).name]
    told = [told_of_temperatures(options, task) for options in request.students]
    request = decide_temperatures(request, task)
    needs = [objective_needs(options.objective) for options in request.students]
    check_taught(data, needs)
    views = choose_views(catalogue, datasets, needs, data.views, allow_partial=data.allow_partial)
    check_recordable(
        request.fleet.cuda_graphs,
        device=device,
        task=task,
        processes=request.parallel.size,
        recompute=any(options.recompute for options in request.students),
    )
    # labels alone need none
    ledger = catalogue.ledger() if any(need.teachers for need in needs) else None
    students = [
        _prepare_student(request, options, selections, views, decided)
        for options, decided in zip(request.students, told, strict=True)
    ]
    if ledger is not None:
        for dataset, options in product(datasets, request.students):
            check_never(catalogue, ledger, dataset, options.objective)
    started = check_models([student for student in students if student.settled is None])
    check_figures(request, students)
    for student in students:
        check_budget(request, student)
    weak = {
        (each.dataset, each.teacher): each.note
        for each in (() if ledger is None else standings(catalogue, ledger))
        if each.is_near_chance
    }
    return [
        replace(
            s,
            warnings=tuple(weak[of] for of in s.needs.teachers_of(datasets) if of in weak),
            started=started.get(s.name),
        )
        for s in students
    ]


def look_at_cache(request: Request) -> Catalogue:
    """Return what the cache holds of the datasets and teachers that a request names.

    Where it names no teacher and the task measures students against one, the only one that there is counts as named.
    """
    datasets = {*datasets_of(request.data.train), *datasets_of(request.data.validation)}
    terms = [term for options in request.students for term in options.objective]
    names = {name for term in terms for name in term.teacher_names}
    teachers = {teacher_of(name, dataset) for name in names for dataset in datasets}
    catalogue = request.cache.catalogue(datasets, {teacher for teacher in teachers if teacher is not None})
    held = datasets_of(request.data.validation)
    if not names and TASKS[storage_task(catalogue.dataset(held[0])).name].beside_teacher:
        only = [list_teachers(catalogue.objects, dataset) for dataset in held]
        if all(len(each) == 1 for each in only):
            return request.cache.catalogue(datasets, {name for each in only for name in each})
    return catalogue


def passes(students: Sequence[PreparedRun], at_once: int | None) -> list[list[PreparedRun]]:
    """Return the students of each pass: those that learn from, and are measured on, the same rows."""
    alike: dict[Hashable, list[PreparedRun]] = {}
    for student in students:
        train, held = student.train, student.held
        key = (train.datasets, (train.fingerprint,), held.datasets, (held.fingerprint,), (train.own, held.own))
        alike.setdefault(key, []).append(student)
    size = at_once or len(students)
    return [those[start : start + size] for those in alike.values() for start in range(0, len(those), size)]


def _prepare_student(
    request: Request,
    options: StudentOptions,
    selections: Selections,
    views: EpochViews | None,
    told: Sequence[str],
) -> PreparedRun:
    """Return one student, checked: its datasets, what it is, its rows, whom it is measured against, its run's folder.

    Args:
        request: of all students.
        options: its section of the job, with temperatures decided.
        selections: of rows, shared by all students.
        views: that the job trains on; None: plain rows.
        told: what was decided of it so far, in words.
    """
    catalogue, data, processes = selections.catalogue, request.data, request.parallel.size
    needs = objective_needs(options.objective)
    began = began_as(options)
    options = options if began is None else like_start(options, began)
    trained, held_specs = _check_datasets(catalogue, options, data, processes)
    num_classes, shapes = _check_served(catalogue, options, trained, needs)
    check_one_class(options.name, needs, views)
    check_first_view(options.name, options.first_view, views)

    blueprint, of_int8 = rounded(options, blueprint_of(options, trained[0], num_classes, began), processes)
    own = decoded_at(blueprint, trained[0])
    check_sizes(options.name, blueprint, trained, held_specs, None if views is None else views.spec)

    train = mixed(selections.find(data.train, needs, views=views, own=own), data.mixture)
    held = find_held(selections, data.validation, options.objective, num_classes, own)
    options, projected = decide_projections(options, blueprint, shapes)

    identity = identity_of(request, options, blueprint, train, held.rows, began)
    files = (RunFolder if request.parallel.writes else UnwrittenFolder)(request.runs / options.name, identity)
    settled = settled_record(files.path, identity, request.fleet, TASKS[blueprint.asked.name].best_by)
    # one that was set aside stays so: others have outrun it
    lost = lost_files(files.path, settled) if settled is not None and settled.status == "finished" else ()
    return PreparedRun(
        options=options,
        blueprint=blueprint,
        needs=needs,
        encodings=_encodings(catalogue, trained[0].name, needs),
        feature_shapes=shapes,
        train=train,
        held=held.rows,
        agree_with=held.agree_with,
        files=files,
        settled=None if lost else settled,
        lost=lost,
        tokenizer=selections.tokenizer(trained[0].name),
        against=held.against,
        why_not_against=held.why_not_against,
        several=held.several,
        made=None if began is None else began.made,
        decided=(
            *_told_of_rows(train, needs),
            *told,
            *taken_over(options, trained[0]),
            *of_int8,
            *projected,
            *held.told,
        ),
    )


def _check_datasets(
    catalogue: Catalogue, options: StudentOptions, data: DataOptions, processes: int
) -> tuple[list[DatasetSpec], list[DatasetSpec]]:
    """Return the datasets to train on, and those to be measured on. Raises BadRequest: they are not for one student."""
    trained = [catalogue.dataset(name) for name in datasets_of(data.train)]
    for other in trained[1:]:
        check_trained_together(trained[0], other)
    held = [catalogue.dataset(name) for name in datasets_of(data.validation)]
    for dataset in held:
        check_held(trained[0], dataset, data)
    check_suited(options, trained[0])
    check_parts(options, processes)
    return trained, held


def _check_served(
    catalogue: Catalogue, options: StudentOptions, trained: Sequence[DatasetSpec], needs: Needs
) -> tuple[int, dict[ArrayKey, tuple[int, ...]]]:
    """Return the number of classes and the shapes of features, alike in all datasets that a student is trained on.

    Raises:
        BadRequest: of some kind: the cache does not serve its losses, or its datasets are not alike.
    """
    found = []
    for dataset in trained:
        count = count_classes(catalogue, dataset.name, needs)
        check_served(catalogue, dataset.name, options.objective)
        found.append((dataset.name, count, feature_shapes(catalogue, dataset.name, needs)))
    check_alike(catalogue, found, needs)
    _, num_classes, shapes = found[0]
    return num_classes, shapes


def _encodings(catalogue: Catalogue, dataset: str, needs: Needs) -> dict[str, Encoding]:
    """Return how soft targets are stored, by the teacher whose targets a student needs."""
    return {
        name: catalogue.teacher(dataset, teacher_of(name, dataset) or name).encoding
        for name in needs.teachers
        if needs.of(name)
    }


def _told_of_rows(train: Selection, needs: Needs) -> list[str]:
    """Return what an epoch is, and which rows have labels, where that is no matter of course."""
    labels = check_some_labelled(train) if needs.some_labels else None
    return [each for each in (told_of_mixture(train), labels) if each is not None]
