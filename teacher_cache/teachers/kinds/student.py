"""A trained student's folder as a teacher. The one file here that knows students, by the one door."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.digests import file_digest
from storage.errors import CorruptObject, MissingSource
from storage.format.sealed import read_json
from storage.inputs.encoded import OwnSize
from storage.options import code_fingerprint
from teacher_cache.teachers.spoken import Spoken, longest, notes  # noqa: F401 - of a Kind

if TYPE_CHECKING:
    from torch import nn

    from storage.format.specs import DatasetSpec
    from teacher_cache.teachers.options import TeacherOptions

KEYS: tuple[str, ...] = ("architecture",)


def told(options: TeacherOptions) -> dict[str, Any]:
    """Return at which size pictures were decoded for it, of one with a size of its own; all else lies in its folder."""
    said = _blueprint(options)
    size, shape, by = said.get("size"), said.get("input_shape"), said.get("filter")
    if not isinstance(size, list) or not isinstance(shape, list) or shape[1:] != size:
        return {}
    return OwnSize((size[0], size[1]), str(by)).said()


def digests(options: TeacherOptions) -> dict[str, Any]:
    """Return the digests of blueprint and weights, and of the code of an architecture that is no built-in."""
    assert options.student is not None
    found = {
        "student": file_digest(options.student / "student.json"),
        "weights": file_digest(options.student / "student.safetensors"),
    }
    return found if options.architecture is None else found | {"code": code_fingerprint(options.architecture)}


def spoken(options: TeacherOptions) -> Spoken:
    """Return the fingerprint of the tokenizer that it carries, without loading it."""
    fingerprint = _blueprint(options).get("tokenizer")
    # Anything else than a name is as good as none here; what else is wrong with the file, loading tells.
    return Spoken(fingerprint if isinstance(fingerprint, str) else None, f"{options.student}/student.json")


def classes(options: TeacherOptions) -> list[str] | None:
    """Return the names of its classes; None of a student that was trained before they were kept, or of tokens."""
    names = _blueprint(options).get("classes")
    return [str(name) for name in names] if isinstance(names, list) else None


def dimension(options: TeacherOptions) -> int | None:
    """Return how wide its vectors are."""
    found = _blueprint(options).get("num_classes")
    return found if isinstance(found, int) else None


def wants_around(options: TeacherOptions) -> bool:
    """Return whether its own rows had what a tokenizer's template puts around a text."""
    source = _blueprint(options).get("source")
    return isinstance(source, dict) and bool(source.get("add_special_tokens"))


def check_files(options: TeacherOptions, dataset: DatasetSpec) -> None:
    """Check that its files are whole, and that the job trusts its code. Raises as `load`."""
    from student_train.students import check_trusted, check_written, read_blueprint

    assert options.student is not None
    check_trusted(options.student, read_blueprint(options.student), options.architecture)
    check_written(options.student)


def import_libraries() -> None:
    """Import torch; what a student of another architecture imports, its code alone knows."""
    import torch  # noqa: F401


def load(options: TeacherOptions) -> nn.Module:
    """Return the student, checked against the digests in its own folder."""
    from student_train.students import load_student  # a trained student is a valid teacher

    assert options.student is not None
    return load_student(options.student, architecture=options.architecture)


def _blueprint(options: TeacherOptions) -> dict[str, Any]:
    assert options.student is not None
    path = options.student / "student.json"
    try:
        return read_json(path)
    except OSError as error:
        raise MissingSource(
            f"there is no trained student in {options.student}", found=error.strerror, expected=path.name
        ) from None
    except ValueError as error:
        do = f"delete {options.student} and train this student again"
        raise CorruptObject(f"{path} is not what was written", found=str(error), do=do) from None
