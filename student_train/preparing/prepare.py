"""Every student of a job, checked against the cache and against the runs that are there, before anything starts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from storage.cache import Catalogue, Samples
from storage.cache.standing import standings
from storage.encodings import Encoding
from storage.format.specs import DatasetSpec
from storage.format.stages import list_teachers
from storage.inputs import inputs_of
from storage.inputs.columns import answers_of, normalisation_of
from storage.inputs.encoded import OwnSize
from storage.options import code_fingerprint
from storage.tasks import task_of as storage_task
from storage.views import PLAIN
from student_train.feed.batches import Needs
from student_train.feed.devices import find_device
from student_train.feed.order.views import EpochViews, check_first_view, check_one_class, choose_views
from student_train.feed.selection import Integers, Selection, join_selections, select_rows
from student_train.feed.together import check_alike, feature_shapes, mixed, told_of_mixture
from student_train.losses.objective import objective_needs
from student_train.options.by_dataset import teacher_of
from student_train.options.sections import FleetOptions, StudentOptions, datasets_of, listed
from student_train.options.training import Figure
from student_train.preparing.against import beside_each, measured_against
from student_train.preparing.beginning import at_own_size, began_as, check_begins, like_start, rounded, said_of
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
from student_train.preparing.left_open import decide_projections, decide_temperatures, told_of_temperatures
from student_train.preparing.request import PreparedRun, Request
from student_train.preparing.served import check_never, check_served, check_some_labelled, count_classes
from student_train.run_files.checkpoint import check_checkpoint, check_identity, check_name
from student_train.run_files.folder import RunFolder, UnwrittenFolder
from student_train.run_files.records import RunRecord, lost_files, read_record
from student_train.stepping.recorder import check_recordable
from student_train.students import Blueprint
from student_train.students.blueprint import decoded_at
from student_train.students.files import BlueprintFile
from student_train.students.starting.start import start_digests
from student_train.students.transformers import embedded_for
from student_train.tasks import TASKS

HALF = (0.5,)  # by which inputs in [0, 1] are normalised


def prepare(request: Request) -> list[PreparedRun]:
    """Return every student of a request, checked against the cache and against the runs that are there.

    Raises:
        BadRequest: of some kind.
    """
    check_names(request)
    device = find_device(request.device)
    data = request.data
    catalogue = look_at_cache(request)
    selections = _Selections(Samples(catalogue), data.allow_partial)
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
        _prepare(request, options, selections, views, decided)
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
            warnings=tuple(weak[of] for of in _teachers_of(s.needs, datasets) if of in weak),
            started=started.get(s.name),
        )
        for s in students
    ]


def _teachers_of(needs: Needs, datasets: Sequence[str]) -> list[tuple[str, str]]:
    """Return each dataset with each teacher that is needed of it."""
    return [(dataset, teacher) for dataset in datasets for teacher in needs.within(dataset).teachers]


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


def _prepare(
    request: Request,
    options: StudentOptions,
    selections: _Selections,
    views: EpochViews | None,
    told: Sequence[str],
) -> PreparedRun:
    catalogue, data = selections.catalogue, request.data
    needs = objective_needs(options.objective)
    began = began_as(options)
    options = options if began is None else like_start(options, began)
    first, *others = (catalogue.dataset(name) for name in datasets_of(data.train))
    for other in others:
        check_trained_together(first, other)
    held_datasets = datasets_of(data.validation)
    for name in held_datasets:
        check_held(first, catalogue.dataset(name), data)
    check_suited(options, first)
    check_parts(options, request.parallel.size)
    found = []
    for dataset in (first, *others):
        count = count_classes(catalogue, dataset.name, needs)
        check_served(catalogue, dataset.name, options.objective)
        found.append((dataset.name, count, feature_shapes(catalogue, dataset.name, needs)))
    check_alike(catalogue, found, needs)
    _, num_classes, shapes = found[0]
    check_one_class(options.name, needs, views)
    check_first_view(options.name, options.first_view, views)
    blueprint, of_int8 = rounded(options, _blueprint(options, first, num_classes, began), request.parallel.size)
    own, held_specs = decoded_at(blueprint, first), [catalogue.dataset(name) for name in held_datasets]
    check_sizes(options.name, blueprint, (first, *others), held_specs, None if views is None else views.spec)
    train = mixed(selections.find(data.train, needs, None, views, own), data.mixture)
    named = [name for term in options.objective for name in term.teacher_names]
    soft = [name for name in named if not any(_has_features_alone(catalogue, of, name) for of in held_datasets)]
    of_classes = storage_task(first).has_classes
    agree_with = next(iter(soft), None) if of_classes else None  # the first that any term names, and that says a class
    if all(_seen_plain(catalogue, name, agree_with) is None for name in held_datasets):
        agree_with = None  # held rows are plain, and this teacher never saw them so: nothing to agree with
    held = selections.find(data.validation, Needs(), agree_with, own=own)
    against, why_not_against = measured_against(catalogue, held, soft or named, num_classes)
    tops_of = partial(_tops_of, selections, data.validation)
    several, why_not_several = beside_each(held, soft, against, num_classes, tops_of)
    options, decided = decide_projections(options, blueprint, shapes)
    decided = [*_told_of(train, needs), *told, *of_int8, *decided, *why_not_several]
    identity = _identity(request, options, blueprint, catalogue, train, held)
    if began is not None:
        identity["began_as"] = said_of(began)
    encodings: dict[str, Encoding] = {
        name: catalogue.teacher(first.name, teacher_of(name, first.name) or name).encoding
        for name in needs.teachers
        if needs.of(name)
    }
    files = (RunFolder if request.parallel.writes else UnwrittenFolder)(request.runs / options.name, identity)
    settled = settled_record(files.path, identity, request.fleet, TASKS[blueprint.asked.name].best_by)
    # one that was set aside stays so: others have outrun it
    lost = lost_files(files.path, settled) if settled is not None and settled.status == "finished" else ()
    settled = None if lost else settled
    return PreparedRun(
        options,
        blueprint,
        needs,
        encodings,
        shapes,
        train,
        held,
        agree_with,
        files,
        settled,
        lost=lost,
        tokenizer=selections.tokenizer(first.name),
        against=against,
        why_not_against=why_not_against,
        several=several,
        made=None if began is None else began.made,
        decided=(*decided, *_told_of_features_alone(named, soft)[: why_not_against is None]),
    )


def _tops_of(selections: _Selections, rows: str | Sequence[str], teacher: str) -> Integers | None:
    """Return a teacher's top class of each of some rows; None: it was asked about none of them as they are."""
    return selections.find(rows, Needs(), teacher).tops_N


def _told_of(train: Selection, needs: Needs) -> list[str]:
    """Return what an epoch is, and which rows have labels, where that is no matter of course."""
    labels = check_some_labelled(train) if needs.some_labels else None
    return [each for each in (told_of_mixture(train), labels) if each is not None]


def _seen_plain(catalogue: Catalogue, dataset: str, name: str | None) -> str | None:
    """Return the teacher of a dataset that a name means, if it was asked about the plain inputs."""
    teacher = None if name is None else teacher_of(name, dataset)
    return teacher if teacher is not None and PLAIN in catalogue.view_names(dataset, teacher) else None


def _has_features_alone(catalogue: Catalogue, dataset: str, name: str) -> bool:
    """Return whether the teacher of a dataset that a name means was asked for features alone."""
    spec = catalogue.teachers.get((dataset, teacher_of(name, dataset) or name))
    return spec is not None and not spec.encoding.soft


def _told_of_features_alone(named: Sequence[str], soft: Sequence[str]) -> list[str]:
    """Return a line for a student all of whose teachers say nothing of classes."""
    alone = dict.fromkeys(name for name in named if name not in soft)
    if soft or not alone:
        return []
    return [f"no agreement with {', '.join(alone)}, which {'has' if len(alone) == 1 else 'have'} features alone"]


def _blueprint(
    options: StudentOptions, dataset: DatasetSpec, num_classes: int, began: BlueprintFile | None
) -> Blueprint:
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
    mean, std = normalisation_of(dataset.source) or (HALF, HALF)
    answers = answers_of(dataset.source) or (None, None)
    return Blueprint(
        architecture=options.architecture,
        options=options.options if options.path is None else embedded_for(dataset, options.path, options.options),
        num_classes=num_classes,
        mean=(options.mean or mean) if inputs.normalised else None,
        std=(options.std or std) if inputs.normalised else None,
        tokenizer=dataset.tokenizer,
        classes=tuple(dataset.classes),
        # said only where classes are not the ids themselves
        vocabulary=None if dataset.vocabulary == num_classes else dataset.vocabulary,
        inputs=inputs.name,
        task=storage_task(dataset).name,
        answer_mean=answers[0],
        answer_std=answers[1],
        **own,
    )


def _identity(
    request: Request,
    options: StudentOptions,
    blueprint: Blueprint,
    catalogue: Catalogue,
    train: Selection,
    held: Selection,
) -> dict[str, Any]:
    """Return all that decides what is computed: a checkpoint or record of anything else is not gone on from."""
    data, views = request.data, train.views
    taught = _teachers_of(objective_needs(options.objective), train.datasets)
    several = len(train.datasets) > 1
    identity: dict[str, Any] = {
        # what was left out, as it is: before a table said it, it was HALF
        "student": options.made_from()
        | {key: list(getattr(options, key) or getattr(blueprint, key) or HALF) for key in ("mean", "std")},
        "architecture_code": code_fingerprint(blueprint.architecture) if ":" in blueprint.architecture else None,
        # of the other options residency changes nothing; rows and views tell of the rest
        "data": data.model_dump(mode="json", include={"train", "validation", "window_shards", "order_seed"})
        | ({} if data.mixture is None else {"mixture": data.mixture}),
        "cache": catalogue.about.id,
        "datasets": {name: catalogue.dataset(name).fingerprint for name in (*train.datasets, *held.datasets)},
        "teachers": {
            f"{dataset}/{name}" if several else name: catalogue.teacher(dataset, name).fingerprint
            for dataset, name in taught
        },
        "train_rows": f"{train.num_rows}, {train.fingerprint}",
        "validation_rows": f"{held.num_rows}, {held.fingerprint}",
    }
    if options.path is not None:
        identity |= blueprint.options  # the config as it was read
    if options.start is not None and options.starts_from is not None:
        identity["start"] = start_digests(options.starts_from)
        identity["layers"] = None if options.start.layers is None else list(options.start.layers)
    if views is not None:
        identity["views"] = {"count": views.count, "fingerprint": views.spec.fingerprint}
    return identity


def settled_record(folder: Path, identity: dict[str, Any], fleet: FleetOptions, best_by: Figure) -> RunRecord | None:
    """Return the record of a run that needs no more training, after checking that it was made from the same job.

    One that was set aside needs none as long as the same section of the job decides so, by default by `best_by`.
    """
    record = read_record(folder)
    if record is not None:
        check_name(folder, record.student)
    if record is None or record.identity == identity:
        check_checkpoint(folder, identity)
    elif record.status != "failed":  # a failed one may be begun again, by another job
        check_identity(folder, record.identity, identity)
    if record is None or record.status == "failed":
        return None
    section = None if fleet.halving is None else fleet.halving.by(best_by).model_dump(mode="json")
    return record if record.status == "finished" or record.halving == section else None


class _Selections:
    """Selections of rows, each computed once for all students that want it."""

    def __init__(self, samples: Samples, allow_partial: bool):
        self._samples = samples
        self._allow_partial = allow_partial
        self._tokenizers: dict[str, bytes | None] = {}
        self._found: dict[Hashable, Selection] = {}

    def tokenizer(self, dataset: str) -> bytes | None:
        """Return the `tokenizer.json` of a dataset's rows, read once for all students."""
        if dataset not in self._tokenizers:
            found = self.catalogue.tokenizer(dataset)
            self._tokenizers[dataset] = None if found is None else found.data
        return self._tokenizers[dataset]

    @property
    def catalogue(self) -> Catalogue:
        """Return what the cache holds."""
        return self._samples.catalogue

    def find(
        self,
        rows: str | Sequence[str],
        needs: Needs,
        agree_with: str | None,
        views: EpochViews | None = None,
        own: OwnSize | None = None,
    ) -> Selection:
        """Return the rows for which the cache holds what is needed, pictures at a student's own size."""
        # `is None` will do: all students of a job train on the same views
        key = (listed(rows), needs.teachers, needs.labels, agree_with, views is None, own)
        if key not in self._found:
            found = [
                select_rows(
                    self._samples,
                    each,
                    needs,
                    allow_partial=self._allow_partial,
                    agree_with=_seen_plain(self.catalogue, dataset, agree_with),
                    views=views,
                )
                for each, dataset in zip(listed(rows), datasets_of(rows), strict=True)
            ]
            self._found[key] = replace(join_selections(found), own=own)
        return self._found[key]
