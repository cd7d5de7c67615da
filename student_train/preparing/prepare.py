"""Every student of a job, checked against the cache and against the runs that are there, before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from storage.cache import Cache
from storage.encodings import Encoding
from storage.errors import BadRequest
from storage.format.specs import DatasetSpec
from storage.options import code_fingerprint
from storage.views import PLAIN
from student_train.devices import Device, find_device, free_bytes, gib
from student_train.feed.batches import ArrayKey, Needs
from student_train.feed.selection import Selection, select_rows
from student_train.feed.views import EpochViews, check_first_view, check_one_class, choose_views
from student_train.losses import LOSSES
from student_train.losses.objective import Objective, objective_needs, student_layers
from student_train.losses.outputs import Shapes
from student_train.options.sections import DataOptions, FleetOptions, StudentOptions
from student_train.preparing.served import check_served, count_classes, feature_shapes
from student_train.run_files.checkpoint import check_checkpoint, check_identity
from student_train.run_files.records import RunRecord, read_record
from student_train.stepping.forward import check_student
from student_train.stepping.parallel import ALONE, Parallel
from student_train.stepping.recorder import check_recordable
from student_train.students import Blueprint, build_student

# Fields of a student that do not change what is computed.
NOT_IDENTITY = {"name", "checkpoint_every_steps"}


@dataclass(frozen=True)
class Request:
    """What `student train` is asked for.

    Attributes:
        cache: where rows are.
        runs: folder of the runs, one below it for each student.
        data: which rows.
        students: in the job's order.
        device: where.
        fleet: how they are trained together.
        parallel: this process among those that train them.
    """

    cache: Cache
    runs: Path
    data: DataOptions
    students: tuple[StudentOptions, ...]
    device: Device = "auto"
    fleet: FleetOptions = field(default_factory=FleetOptions)
    parallel: Parallel = ALONE


@dataclass(frozen=True)
class PreparedRun:
    """A student that was checked and can be trained; a Run once its feeds are open."""

    options: StudentOptions
    blueprint: Blueprint
    needs: Needs
    encodings: dict[str, Encoding]  # of the teachers whose soft targets it needs
    feature_shapes: dict[ArrayKey, tuple[int, ...]]
    train: Selection
    held: Selection
    agree_with: str | None  # the teacher whose top classes of the held rows are known
    folder: Path
    identity: dict[str, Any]
    finished: RunRecord | None  # of a student that needs no more training


def prepare(request: Request) -> list[PreparedRun]:
    """Return every student of a request, checked against the cache and against the runs that are there.

    Raises:
        BadRequest: of some kind.
    """
    if request.runs.exists() and not request.runs.is_dir():
        raise BadRequest(
            f"{request.runs} is no folder",
            found="a file",
            expected="a folder of runs, or nothing",
            do="name one in `runs`",
        )
    names = [options.name for options in request.students]
    if len(names) != len(set(names)):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise BadRequest("two students have one name", found=", ".join(twice), do="rename one; a name is a folder")
    device = find_device(request.device)
    selections = _Selections(request.cache, request.data)
    data = request.data
    needs = [objective_needs(options.objective) for options in request.students]
    dataset = data.train.partition("/")[0]
    views = choose_views(request.cache, dataset, needs, data.views, allow_partial=data.allow_partial)
    of_tokens = request.cache.dataset(dataset).vocabulary is not None
    check_recordable(request.fleet.cuda_graphs, device=device, of_tokens=of_tokens, processes=request.parallel.size)
    students = [_prepare(request, options, selections, views) for options in request.students]
    _check_models([student for student in students if student.finished is None])
    _check_halving(request, students)
    return students


def passes(students: Sequence[PreparedRun], at_once: int | None) -> list[list[PreparedRun]]:
    """Return the students in groups that learn from, and are measured on, the same rows: each shares one pass."""
    groups: dict[tuple[str, ...], list[PreparedRun]] = {}
    for student in students:
        train, held = student.train, student.held
        groups.setdefault((train.dataset, train.fingerprint, held.dataset, held.fingerprint), []).append(student)
    size = at_once or len(students)
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]


def _prepare(
    request: Request, options: StudentOptions, selections: _Selections, views: EpochViews | None
) -> PreparedRun:
    cache, data = request.cache, request.data
    needs = objective_needs(options.objective)
    dataset = cache.dataset(data.train.partition("/")[0])
    held_dataset = cache.dataset(data.validation.partition("/")[0])
    _check_held(dataset, held_dataset, data)
    if dataset.vocabulary is not None:
        _check_of_tokens(options, dataset)
    if request.parallel.size > 1:
        _check_parallel(options, request.parallel.size)
    num_classes = count_classes(cache, dataset.name, needs)
    check_served(cache, dataset.name, options.objective)
    shapes = feature_shapes(cache, dataset.name, needs)
    check_one_class(options.name, needs, views)
    check_first_view(options.name, options.first_view, views)
    train = selections.find(data.train, needs, None, views)
    agree_with = next((name for term in options.objective for name in term.teacher_names), None)
    if agree_with is not None and PLAIN not in _views_of(cache, held_dataset.name, agree_with):
        agree_with = None  # held rows are plain, and this teacher never saw them so: nothing to agree with
    held = selections.find(data.validation, Needs(), agree_with)
    blueprint = Blueprint(
        architecture=options.architecture,
        options=options.options,
        num_classes=num_classes,
        input_shape=dataset.input_shape,
        mean=None if dataset.vocabulary is not None else options.mean,
        std=None if dataset.vocabulary is not None else options.std,
        tokenizer=dataset.tokenizer,
    )
    teachers = {teacher: cache.teacher(dataset.name, teacher).fingerprint for teacher in needs.teachers}
    identity = {
        "student": options.model_dump(mode="json", exclude=NOT_IDENTITY),
        "architecture_code": code_fingerprint(options.architecture) if ":" in options.architecture else None,
        "data": data.model_dump(mode="json", include={"train", "validation", "window_shards", "order_seed"}),
        "cache": cache.id,
        "datasets": {spec.name: spec.fingerprint for spec in (dataset, held_dataset)},
        "teachers": teachers,
        "train_rows": f"{train.num_rows}, {train.fingerprint}",
        "validation_rows": f"{held.num_rows}, {held.fingerprint}",
    }
    if views is not None:
        identity["views"] = {"count": views.count, "fingerprint": views.spec.fingerprint}
    folder = request.runs / options.name
    encodings: dict[str, Encoding] = {
        name: cache.teacher(dataset.name, name).encoding for name in needs.teachers if needs.of(name)
    }
    finished = check_run(folder, identity, request.fleet)
    return PreparedRun(
        options, blueprint, needs, encodings, shapes, train, held, agree_with, folder, identity, finished
    )


def _check_held(dataset: DatasetSpec, held: DatasetSpec, data: DataOptions) -> None:
    """Raise BadRequest unless rows of one dataset can measure a student of another's."""

    def described(spec: DatasetSpec) -> str:
        classes = f"{len(spec.classes)} classes" if spec.vocabulary is None else f"a vocabulary of {spec.vocabulary}"
        tokenizer = f", tokenizer {spec.tokenizer}" if spec.tokenizer is not None else ""
        return f"{classes}, inputs {spec.input_shape} {spec.input_dtype}{tokenizer}"

    if (dataset.classes, described(dataset)) != (held.classes, described(held)):
        raise BadRequest(
            f"{data.validation} cannot measure a student of {data.train}",
            found=described(held),
            expected=f"the same classes: {described(dataset)}",
            do=f'tokenizer_of = "{dataset.name}" in the cache job\'s [[dataset]] {held.name}'
            if dataset.vocabulary is not None
            else None,
        )


def _check_of_tokens(options: StudentOptions, dataset: DatasetSpec) -> None:
    """Raise BadRequest if a student has options that mean nothing for tokens."""
    if any(getattr(options, name) != StudentOptions.model_fields[name].default for name in ("mean", "std")):
        raise BadRequest(
            f"student {options.name} normalises its inputs, and those of {dataset.name} are tokens",
            found="mean, std",
            do="leave them out",
        )
    compared = [term.loss for term in options.objective if LOSSES[term.loss].couples_rows(term)]
    if compared:
        raise BadRequest(
            f"student {options.name} has losses that compare rows, and those of {dataset.name} are tokens",
            found=", ".join(compared),
            expected="losses that are means over positions, which are computed a part of them at a time",
            do="gamma = 0 in dist, which leaves what is within a row; or choose other losses"
            if "dist" in compared
            else "choose other losses",
        )


def _check_halving(request: Request, students: Sequence[PreparedRun]) -> None:
    """Raise BadRequest if the held rows have no figure by which students could be set aside."""
    if request.fleet.halving is None:
        return
    metric = request.fleet.halving.metric
    for student in students:
        of_tokens = request.cache.dataset(student.held.dataset).vocabulary is not None
        if metric == "agreement":
            lacking = None if student.held.tops_N is not None else "a teacher to agree with"
        else:
            lacking = None if of_tokens or (student.held.labels_N >= 0).any() else "labels"
        if lacking is not None:
            raise BadRequest(
                f"[halving] compares students by {metric}, which {student.options.name} would not have",
                found=f"held rows without {lacking}",
                do='choose another `metric`: "accuracy", "cross_entropy" or "agreement"',
            )


def _check_parallel(options: StudentOptions, size: int) -> None:
    """Raise BadRequest if a student has losses that would differ with the number of processes."""
    compared = [term.loss for term in options.objective if LOSSES[term.loss].couples_rows(term)]
    if compared:
        raise BadRequest(
            f"student {options.name} has losses that compare the rows of a batch, and each process has a part of them",
            found=f"{', '.join(compared)} on {size} processes",
            expected="losses that are means over rows",
            do="train it on one process, or choose other losses",
        )


def _views_of(cache: Cache, dataset: str, teacher: str) -> list[str]:
    return cache.view_names(dataset, teacher) if teacher in cache.teacher_names(dataset) else []


def check_run(folder: Path, identity: dict[str, Any], fleet: FleetOptions) -> RunRecord | None:
    """Return the record of a run that needs no more training, after checking that it was made from the same job.

    One that was set aside needs none as long as the same section of the job decides so.
    """
    record = read_record(folder)
    if record is None or record.identity == identity:
        check_checkpoint(folder, identity)
    elif record.status != "failed":
        check_identity(folder, record.identity, identity)
    if record is None or record.status == "failed":
        return None
    section = None if fleet.halving is None else fleet.halving.model_dump(mode="json")
    return record if record.status == "finished" or record.halving == section else None


def _check_models(students: Sequence[PreparedRun]) -> None:
    """Build each kind of student once and throw it away: a mistake is better found before the others are trained."""
    kinds = {repr((student.blueprint, student.options.losses)): student for student in students}
    for student in kinds.values():
        _check_model(student)


def _check_model(student: PreparedRun) -> None:
    terms, blueprint = student.options.objective, student.blueprint
    _check_size(student)
    layers = check_student(
        build_student(blueprint), student_layers(terms), blueprint.input_shape, blueprint.num_classes
    )
    Objective(terms, Shapes(layers, student.feature_shapes))


def _check_size(student: PreparedRun) -> None:
    """Raise BadRequest for a student whose weights alone are more than this machine's memory, before it is built."""
    try:
        with torch.device("meta"):
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


class _Selections:
    """Selections of rows, each computed once for all students that want it."""

    def __init__(self, cache: Cache, data: DataOptions):
        self._cache = cache
        self._allow_partial = data.allow_partial
        self._found: dict[tuple[str, tuple[str, ...], bool, str | None, bool], Selection] = {}

    def find(self, rows: str, needs: Needs, agree_with: str | None, views: EpochViews | None = None) -> Selection:
        """Return the rows for which the cache holds what is needed."""
        key = (rows, needs.teachers, needs.labels, agree_with, views is None)
        if key not in self._found:
            self._found[key] = select_rows(
                self._cache, rows, needs, allow_partial=self._allow_partial, agree_with=agree_with, views=views
            )
        return self._found[key]
