"""The story of `student make`: a teacher is read once, a student is made of it, and a folder written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from storage.cache import Cache
from storage.digests import fingerprint
from storage.errors import BadRequest, BadTeacher, StillroomError
from storage.format.filesystems import check_place, storage_failure
from storage.format.specs import DatasetSpec, check_promise
from teacher_cache.building.prepared import BuildRequest
from teacher_cache.making.asking import batches, retake
from teacher_cache.making.rows import some_rows
from teacher_cache.making.subject import Subject, as_student
from teacher_cache.making.ways import WAYS
from teacher_cache.teachers.classes import check_classes
from teacher_cache.teachers.kinds import KINDS
from teacher_cache.teachers.loaded import weights_digest
from teacher_cache.teachers.options import TeacherOptions

if TYPE_CHECKING:
    from student_train.students import Size, Student

JSON = dict[str, Any]
STUDENT_FILE = "student.json"
OWN_FILES = (
    "student.safetensors",
    "tokenizer.json",
)  # that a killed `student make` may have left, without the last one


@dataclass(frozen=True)
class MakeRequest:
    """What `student make` is asked for.

    Attributes:
        build: of the job that names the teacher.
        teacher: its name there.
        way: of WAYS.
        options: of the way.
        out: the folder to write.
        dataset: that students will be trained on; None: the only one of the teacher.
        rows: of it, to look at.
        seed: of which rows these are.
    """

    build: BuildRequest
    teacher: str
    way: str
    options: Any
    out: Path
    dataset: str | None = None
    rows: int = 256
    seed: int = 0


class Made(NamedTuple):
    """A student that was made.

    Attributes:
        folder: where it is.
        made: what it was made from.
        whole, size: of the teacher as a student, and of what was made of it.
        agreement: at the sites of `rows` rows of the cache that are asked about, how often its top class is the
            teacher's; of vectors, the mean cosine with the teacher's; of numbers R², as if the teacher's were right.
        architecture: that a job must name, if it is code of a user's.
        told: what was passed over.
        done_before: whether it was there.
        has_classes: whether it answers with scores of classes; else with vectors, or with
        numbers: each of which means something by itself.
    """

    folder: Path
    made: JSON
    whole: Size
    size: Size
    agreement: float
    rows: int
    architecture: str | None
    told: tuple[str, ...] = ()
    done_before: bool = False
    has_classes: bool = True
    numbers: bool = False


def make(request: MakeRequest) -> Made:
    """Make a student of a teacher and write it, or find that it is there.

    Raises:
        BadRequest: the job has no such teacher or dataset; the folder holds something else, or a file of what was made
            before is not what was written; or as of the way.
        StaleCache: the teacher is not the one whose answers the cache has.
        NotInCache: the dataset is not there yet.
        BadTeacher, BadWeights: as of a build.
    """
    import torch

    from student_train.students import size_of_student

    teacher = _teacher(request)
    cache = Cache.open(request.build.cache)
    dataset = cache.dataset(_dataset_name(request, teacher))
    _check_belongs(request, cache, teacher, dataset)
    made = _lineage(request, teacher, dataset)
    if (before := _made_before(request.out, made)) is not None:
        return before
    check_place(request.out, within=True)
    torch.set_num_threads(request.build.threads)
    rows = some_rows(cache, dataset.name, request.rows, request.seed)
    subject = as_student(teacher, KINDS[teacher.origin].load(teacher), dataset, rows)
    try:
        student, told = WAYS[request.way](subject, request.options)
        size, whole = size_of_student(student), size_of_student(subject.student)
        if size.parameters != whole.parameters:
            told = [*told, *retake(student, subject)]
        agreement = agreement_of(student, subject)
    except (StillroomError, KeyboardInterrupt):
        raise
    except Exception as error:  # of the teacher's own code, or of torch with what it has become
        raise BadTeacher(
            f"student make {request.way} cannot do with teacher {request.teacher}",
            found=f"{type(error).__name__}: {error}"[:400],
            expected="layers that each have one name, are called, and whose weights nobody else reads",
            do="student make copy; or a student that is trained on its cached answers",
        ) from error
    made |= {"weights": weights_digest(subject.student.network)}
    return _write(request, student, made, told, (whole, size), agreement, len(rows.shown_B))


def _teacher(request: MakeRequest) -> TeacherOptions:
    for teacher in request.build.teachers:
        if teacher.name == request.teacher:
            return teacher
    raise BadRequest(
        f"{request.build.job} has no teacher {request.teacher}",
        found=", ".join(teacher.name for teacher in request.build.teachers) or "no [[teacher]]",
        do="student make … JOB.cache.toml:NAME",
    )


def _dataset_name(request: MakeRequest, teacher: TeacherOptions) -> str:
    names = [source.name for source in request.build.sources]
    names = [name for name in names if teacher.datasets is None or name in teacher.datasets]
    if request.dataset is not None and request.dataset not in names:
        raise BadRequest(f"teacher {teacher.name} has no dataset {request.dataset}", found=", ".join(names))
    if request.dataset is None and len(names) > 1:
        raise BadRequest(
            f"teacher {teacher.name} is of several datasets",
            found=", ".join(names),
            expected="that which students will be trained on",
            do=f"--dataset {names[0]}",
        )
    return request.dataset or names[0]


def _check_belongs(request: MakeRequest, cache: Cache, teacher: TeacherOptions, dataset: DatasetSpec) -> None:
    """Raise StaleCache if the cache has answers of another teacher under this name."""
    check_classes(teacher, dataset)
    catalogue = cache.catalogue([dataset.name])
    if teacher.name in catalogue.teacher_names(dataset.name):
        promised = catalogue.teacher(dataset.name, teacher.name)
        now = teacher.promise(promised.num_classes, promised.uses)
        check_promise(cache.url, f"{dataset.name}/{teacher.name}/teacher.json", promised, now, request.build.job)


def _lineage(request: MakeRequest, teacher: TeacherOptions, dataset: DatasetSpec) -> JSON:
    """Return what a student is made from, as far as it is known before the teacher is loaded."""
    from student_train.students import read_blueprint

    before = None if teacher.student is None else read_blueprint(teacher.student).made
    return {
        "way": request.way,
        "options": _as_json(request.options),
        "moments": "taken again",  # of batch norms, where anything is left out
        "teacher": teacher.name,
        "model": teacher.told() | KINDS[teacher.origin].digests(teacher),
        "dataset": dataset.fingerprint,
        "rows": {"count": request.rows, "seed": request.seed},
    } | ({} if before is None else {"teacher_made": before})


def _as_json(options: Any) -> JSON:
    return {
        key: value._asdict() if hasattr(value, "_asdict") else value
        for key, value in options._asdict().items()
        if value is not None
    }


def _made_before(out: Path, made: JSON) -> Made | None:
    """Return what lies in a folder, if it was made so. Raises BadRequest: something else lies there."""
    from student_train.students import read_blueprint

    if out.exists() and not out.is_dir():
        raise BadRequest(f"{out} is no folder", found="a file", do="name another one with -o")
    if not (out / STUDENT_FILE).exists():
        if others := sorted(path.name for path in out.glob("*") if path.name not in OWN_FILES):
            raise BadRequest(
                f"{out} holds something else",
                found=", ".join(others[:5]),
                expected="an empty or absent folder",
                do="name another one with -o",
            )
        return None
    there = read_blueprint(out)
    found = there.made or {}
    if fingerprint({key: found.get(key) for key in made}) != fingerprint(made):
        theirs, ours = (dict(_leaves({key: each.get(key) for key in made})) for each in (found, made))
        differ = [key for key in {**ours, **theirs} if theirs.get(key) != ours.get(key)]
        raise BadRequest(
            f"{out} holds another student",
            found=_told(theirs, differ) if found else "one that was not made so",
            expected=_told(ours, differ) if found else f"{made['way']} of {made['teacher']}",
            do="name another folder with -o; or delete this one",
        )
    from student_train.students import Size, check_written

    try:
        check_written(out)
    except StillroomError as error:
        raise BadRequest(
            f"{out} holds a student that is not what was written",
            found=error.found or error.what,
            expected=error.expected,
            do=f"delete {out}, and make it again",
        ) from None
    result = found["result"]
    return Made(
        out,
        found,
        Size(*result["whole"]),
        Size(*result["size"]),
        result["agreement"],
        result["rows"],
        there.architecture if ":" in there.architecture else None,
        tuple(result["told"]),
        done_before=True,
        has_classes=there.asked.has_classes,
        numbers=there.asked.numbers,
    )


def _leaves(made: JSON, within: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a lineage says, each by its path: `options.target.share`, 0.5."""
    for key, value in made.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{within}{key}.")
        else:
            yield f"{within}{key}", value


def _told(leaves: JSON, paths: list[str]) -> str:
    return "\n".join(f"{path} = {leaves[path]}" for path in paths if leaves.get(path) is not None) or "nothing of that"


def _write(
    request: MakeRequest,
    student: Student,
    made: JSON,
    told: list[str],
    sizes: tuple[Size, Size],
    agreement: float,
    rows: int,
) -> Made:
    """Write a student that was made, and in its blueprint what of; return that."""
    from student_train.students import save_student

    whole, size = sizes
    result = {"whole": list(whole), "size": list(size), "agreement": agreement, "rows": rows, "told": told}
    made = made | {"result": result}
    try:
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_failure("write", str(request.out), error) from None
    save_student(request.out, student.blueprint, student.state_dict(), student.tokenizer, made=made)
    own = student.blueprint.architecture
    return Made(
        request.out,
        made,
        whole,
        size,
        agreement,
        rows,
        own if ":" in own else None,
        tuple(told),
        has_classes=student.blueprint.asked.has_classes,
        numbers=student.blueprint.asked.numbers,
    )


def agreement_of(student: Student, subject: Subject) -> float:
    """Return how far a student answers as its teacher at the rows at hand: `Made.agreement`."""
    import torch
    from torch.nn import functional

    task = subject.blueprint.asked
    ours, theirs = [], []
    with torch.inference_mode():
        for inputs_B, labels_B in batches(subject):
            asked_N = task.asked_sites(labels_B)  # no padding
            ours_NC, theirs_NC = (each(inputs_B).flatten(0, -2)[asked_N] for each in (student, subject.student))
            if task.has_classes:
                ours_NC, theirs_NC = ours_NC.argmax(1), theirs_NC.argmax(1)
            ours.append(ours_NC)
            theirs.append(theirs_NC)
        own, whole = torch.cat(ours), torch.cat(theirs)
        if task.has_classes:
            return float((own == whole).double().mean())
        if not task.numbers:
            return float(functional.cosine_similarity(own, whole).double().mean())
        own, whole = own.double(), whole.double()  # the cosine of one number is its sign
        off_C, spread_C = ((each**2).sum(0) for each in (own - whole, whole - whole.mean(0)))
        return float((1 - off_C / spread_C.clamp_min(torch.finfo(torch.float64).tiny)).mean())
