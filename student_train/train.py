"""Every student of a job in turn: checked before anything starts, skipped when finished, resumed when interrupted."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from storage.cache import Cache
from storage.encodings import Encoding
from storage.errors import BadRequest, Interrupted, StillroomError, StorageFailure, TryAgain
from storage.objects import LocalObjects
from storage.options import code_fingerprint
from storage.spec import DatasetSpec
from storage.views import PLAIN
from student_train.checkpoint import check_checkpoint, check_identity, delete_checkpoint
from student_train.devices import Device, find_device
from student_train.events import FeedChosen, Loading, Report, StudentFailed, StudentSkipped
from student_train.loop import Run, train_student
from student_train.losses import LOSSES
from student_train.needs import ArrayKey, Needs, Shapes
from student_train.objective import (
    Objective,
    check_served,
    check_student,
    count_classes,
    feature_shapes,
    objective_needs,
    student_layers,
)
from student_train.options import DataOptions, StudentOptions
from student_train.residency import FeedPool, Residency, choose_residency, projected_bytes
from student_train.results import RUN_FILE, RunRecord, read_record, write_record
from student_train.selection import Selection, select_rows
from student_train.students import StudentSpec, build_student
from student_train.views import EpochViews, check_one_class, choose_views

# Fields of a student that do not change what is computed.
NOT_IDENTITY = {"name", "checkpoint_every_steps"}


@dataclass(frozen=True)
class Request:
    """What `student train` is asked for.

    Attributes:
        cache: where rows are.
        runs: folder of the runs, one below it for each student.
        data: which rows.
        students: in the order in which they are trained.
        device: where.
    """

    cache: Cache
    runs: Path
    data: DataOptions
    students: tuple[StudentOptions, ...]
    device: Device = "auto"


@dataclass(frozen=True)
class Summary:
    """What became of each student.

    Attributes:
        records: of the finished ones, in the job's order.
        errors: of the failed ones, by name.
    """

    records: tuple[RunRecord, ...]
    errors: dict[str, StillroomError]

    @property
    def exit_code(self) -> int:
        """Return 0 if all are finished, else the failures' code; 1 if they differ."""
        codes = {error.exit_code for error in self.errors.values()}
        return 0 if not codes else codes.pop() if len(codes) == 1 else 1


@dataclass(frozen=True)
class Prepared:
    """A student that was checked and can be trained; a Run once its feeds are open."""

    options: StudentOptions
    spec: StudentSpec
    needs: Needs
    encodings: dict[str, Encoding]  # of the teachers whose soft targets it needs
    feature_shapes: dict[ArrayKey, tuple[int, ...]]
    train: Selection
    held: Selection
    folder: Path
    identity: dict[str, Any]
    finished: RunRecord | None  # of a student that needs no more training


def train_students(
    request: Request, *, report: Report = lambda event: None, stop: Callable[[], bool] = lambda: False
) -> Summary:
    """Train every student of a request that is not finished yet.

    All students are checked before the first step of any. One that fails while it trains is recorded as failed and
    does not stop those after it.

    Args:
        request: what is asked for.
        report: told of everything that happens (`events.py`).
        stop: asked after every step; if it says so, the student's state is kept and Interrupted is raised.

    Raises:
        BadRequest: of some kind; nothing was started.
        Interrupted: `stop` said so.
        StorageFailure: the disk refused; what is written stays good.
    """
    device = find_device(request.device)
    students = prepare(request)
    records = {student.options.name: student.finished for student in students if student.finished is not None}
    for record in records.values():
        report(StudentSkipped(record))
    left = [student for student in students if student.finished is None]
    errors: dict[str, StillroomError] = {}
    if left:
        residency = choose_for(request, left, device)
        shown = left[0].train.views
        report(
            FeedChosen(
                "resident" if residency.resident else "stream", residency.why, 0 if shown is None else shown.count
            )
        )
        pool = FeedPool(request.cache, device, resident=residency.resident, window_shards=request.data.window_shards)
        for student in left:
            name = student.options.name
            try:
                with _locked(student.folder):
                    records[name] = _train(student, pool, device, report, stop)
            except (Interrupted, StorageFailure):
                raise
            except StillroomError as error:
                errors[name] = error
                report(StudentFailed(name, error))
    return Summary(tuple(records[s.options.name] for s in students if s.options.name in records), errors)


def prepare(request: Request) -> list[Prepared]:
    """Return every student of a request, checked against the cache and against the runs that are there.

    Raises:
        BadRequest: of some kind.
    """
    names = [options.name for options in request.students]
    if len(names) != len(set(names)):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise BadRequest("two students have one name", found=", ".join(twice), do="rename one; a name is a folder")
    selections = _Selections(request.cache, request.data)
    data = request.data
    needs = [objective_needs(options.objective) for options in request.students]
    views = choose_views(
        request.cache, data.train.partition("/")[0], needs, data.views, allow_partial=data.allow_partial
    )
    students = [_prepare(request, options, selections, views) for options in request.students]
    for student in students:
        if student.finished is None:
            _check_model(student)
    return students


def choose_for(request: Request, students: Sequence[Prepared], device: torch.device) -> Residency:
    """Return where the rows of all students are to be kept."""
    wanted = [pair for s in students for pair in ((s.train, s.needs), (s.held, Needs()))]
    return choose_residency(request.data.residency, projected_bytes(request.cache, wanted), device)


def _train(
    student: Prepared, pool: FeedPool, device: torch.device, report: Report, stop: Callable[[], bool]
) -> RunRecord:
    record = read_record(student.folder)
    if record is not None and record.identity != student.identity:
        delete_checkpoint(student.folder)  # it failed, and its job was changed since: nothing of it is of use
    LocalObjects(student.folder).delete(RUN_FILE)  # a failure is no longer the last word

    def tick(done: int, shards: int) -> None:
        report(Loading(student.options.name, done, shards))
        if stop():
            raise Interrupted(f"student {student.options.name} stopped before its first step")

    try:
        run = Run(
            options=student.options,
            spec=student.spec,
            feature_shapes=student.feature_shapes,
            train=pool.feed(student.train, student.needs, tick),
            held=pool.feed(student.held, Needs(labels=True), tick),
            folder=student.folder,
            identity=student.identity,
            device=device,
        )
        return train_student(run, report=report, stop=stop)
    except (Interrupted, StorageFailure):
        raise
    except StillroomError as error:
        _record_failure(student, device, error)
        raise
    except Exception as error:  # a user's own model, or a device out of memory
        failure = StillroomError(
            f"student {student.options.name} failed",
            found=f"{type(error).__name__}: {error}",
            do="correct it and run the same command again; the other students are not affected",
        )
        _record_failure(student, device, failure)
        raise failure from error


def _record_failure(student: Prepared, device: torch.device, error: StillroomError) -> None:
    record = RunRecord(
        student=student.options.name,
        status="failed",
        architecture=student.options.architecture,
        device=str(device),
        torch_version=torch.__version__,
        error=str(error),
        identity=student.identity,
    )
    write_record(student.folder, record)


def _prepare(request: Request, options: StudentOptions, selections: _Selections, views: EpochViews | None) -> Prepared:
    cache, data = request.cache, request.data
    needs = objective_needs(options.objective)
    dataset = cache.dataset(data.train.partition("/")[0])
    held_dataset = cache.dataset(data.validation.partition("/")[0])
    _check_held(dataset, held_dataset, data)
    if dataset.vocabulary is not None:
        _check_of_tokens(options, dataset)
    num_classes = count_classes(cache, dataset.name, needs)
    check_served(cache, dataset.name, options.objective)
    shapes = feature_shapes(cache, dataset.name, needs)
    check_one_class(options.name, needs, views)
    train = selections.find(data.train, needs, None, views)
    agree_with = next((name for term in options.objective for name in term.teacher_names), None)
    if agree_with is not None and PLAIN not in _views_of(cache, held_dataset.name, agree_with):
        agree_with = None  # held rows are plain, and this teacher never saw them so: nothing to agree with
    held = selections.find(data.validation, Needs(), agree_with)
    spec = StudentSpec(
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
        "data": data.model_dump(mode="json", include={"train", "validation", "window_shards"}),
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
    finished = _check_run(folder, identity)
    return Prepared(options, spec, needs, encodings, shapes, train, held, folder, identity, finished)


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
            do="choose other losses",
        )


def _views_of(cache: Cache, dataset: str, teacher: str) -> list[str]:
    return cache.view_names(dataset, teacher) if teacher in cache.teacher_names(dataset) else []


def _check_run(folder: Path, identity: dict[str, Any]) -> RunRecord | None:
    """Return a finished run's record, after checking that what is there was made from the same job."""
    record = read_record(folder)
    if record is None or record.identity == identity:
        check_checkpoint(folder, identity)
    elif record.status == "finished":
        check_identity(folder, record.identity, identity)
    return record if record is not None and record.status == "finished" else None


def _check_model(student: Prepared) -> None:
    """Build a student and throw it away: a mistake in it is better found before the others are trained."""
    terms, spec = student.options.objective, student.spec
    layers = check_student(build_student(spec), student_layers(terms), spec.input_shape, spec.num_classes)
    Objective(terms, Shapes(layers, student.feature_shapes))


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


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder, so that two commands do not train one student at a time.

    Raises:
        TryAgain: another process holds it.
        StorageFailure: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115 - closed below; the lock goes with it, after a kill too
    except OSError as error:
        raise StorageFailure(f"cannot write {folder}", found=error.strerror, do="make the folder writable") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TryAgain(
                f"another process is training {folder.name}", found=f"{folder}/.lock is held", do="wait for it to end"
            ) from None
        LocalObjects(folder).sweep(0)  # what a kill left half written; nobody else writes here now
        yield
