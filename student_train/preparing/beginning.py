"""A student that starts from a student's folder as it is: what `student make` has made of a teacher, or another run.

Its blueprint is the folder's, so that the job need not say what it is, nor could it say something else.
"""

from __future__ import annotations

from typing import Any

from storage.errors import BadRequest
from storage.format.specs import DatasetSpec
from storage.inputs import inputs_of
from storage.tasks import task_of
from student_train.options.sections import StudentOptions
from student_train.students import Int8
from student_train.students.files import BLUEPRINT_FILE, BlueprintFile, check_trusted, read_blueprint

OF_INPUTS = ("mean", "std")


def began_as(options: StudentOptions) -> BlueprintFile | None:
    """Return the blueprint of the folder that a student starts from as it is; None: the job says what it is.

    A job that names a factory trusts its code; the layers may be other than it builds them all the same.

    Raises:
        MissingSource, CorruptObject, BadWeights: the folder has no student.
        BadRequest: its code is a user's own, and the job does not name it.
    """
    path = options.starts_from
    if path is None:
        return None
    own_code = options.architecture is not None and ":" in options.architecture
    if options.architecture is None or (own_code and (path / BLUEPRINT_FILE).exists()):
        began = read_blueprint(path)
        if options.architecture is None or began.teacher_code is not None or began.changes:
            check_trusted(path, began, options.architecture)
            if any(isinstance(change, Int8) for change in began.changes):
                raise BadRequest(
                    f"student {options.name} cannot go on from {path}",
                    found="weights that are int8 codes, which no gradient moves",
                    do='start from the student before it was quantised, with quantize = "int8"',
                )
            return began
    return None


def like_start(options: StudentOptions, began: BlueprintFile) -> StudentOptions:
    """Return options with the normalisation of the student that it starts from. Raises BadRequest: they say another."""
    own = {name: getattr(began, name) for name in OF_INPUTS if getattr(began, name) is not None}
    for name, value in own.items():
        if name in options.model_fields_set and tuple(getattr(options, name)) != value:
            raise BadRequest(
                f"student {options.name} normalises its inputs otherwise than what it starts from",
                found=f"{name} = {list(getattr(options, name))}",
                expected=f"{name} = {list(value)}  ({options.starts_from})",
                do=f"leave {name} out",
            )
    if began.size is not None and options.size is not None and options.filter != began.filter:
        raise BadRequest(
            f"student {options.name} resizes pictures otherwise than what it starts from",
            found=f'filter = "{options.filter}"',
            expected=f'filter = "{began.filter}"  ({options.starts_from})',
            do="leave `size` and `filter` out",
        )
    if began.size is not None and options.size is None:
        own |= {"size": began.size, "filter": began.filter}
    return options.model_copy(update=own)


def said_of(began: BlueprintFile) -> dict[str, Any]:
    """Return what a run keeps of the student that it started from, besides its weights' digest."""
    said = began.model_dump(mode="json")
    kept = ("options", "changes", "teacher_code", "made", *(() if ":" in began.architecture else ("architecture",)))
    return {key: said[key] for key in kept if said.get(key)}


def check_begins(
    options: StudentOptions, began: BlueprintFile, dataset: DatasetSpec, num_classes: int, own: dict[str, Any]
) -> None:
    """Raise BadRequest unless rows of a dataset are what the student that is started from takes, classes by name."""
    found = {
        "inputs": (inputs_of(dataset).name, own["input_shape"], *filter(None, [own.get("size")])),
        "task": task_of(dataset).name,
        "number of classes": num_classes,
    }
    expected = {
        "inputs": (began.made_of.name, began.input_shape, *filter(None, [began.size])),
        "task": began.asked.name,
        "number of classes": began.num_classes,
    }
    if began.classes and dataset.classes:
        found["classes"], expected["classes"] = tuple(dataset.classes), began.classes
    if differ := [key for key in found if found[key] != expected[key]]:
        raise BadRequest(
            f"student {options.name} cannot start from {options.starts_from} as it is",
            found="\n".join(f"{key}: {_told(found[key], expected[key])}  ({dataset.name})" for key in differ),
            expected="\n".join(f"{key}: {_told(expected[key], found[key])}" for key in differ),
            do="rows like those that it was made for; or an `architecture`, which takes the weights that fit it",
        )


def _told(one: Any, other: Any) -> str:
    """Return a value, of names of classes only those that the other has not, if there are any."""
    if isinstance(one, tuple) and all(isinstance(name, str) for name in one):
        own = [name for name in one if name not in other] or list(one)
        return ", ".join(own[:12]) + (f", and {len(own) - 12} more" if len(own) > 12 else "")
    return str(one)
