"""A student as a folder of transformers, whose answers are compared with its own before it counts.

A language model, an encoder with one answer for each text, or a classifier of pictures; what is particular to each is
its form.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from storage.digests import digest
from storage.errors import BadRequest
from storage.language.model_folder import check_transformers
from student_train.run_files.records import RunRecord, read_job
from student_train.students import Student, load_student
from student_train.students.files import BLUEPRINT_FILE
from student_train.students.transformers import ARCHITECTURE as TRANSFORMERS
from student_train.using.exporting.card import Card, model_card
from student_train.using.exporting.hub.beside import beside
from student_train.using.exporting.hub.encoders import answers_texts, form_of_texts
from student_train.using.exporting.hub.form import WHAT, Form
from student_train.using.exporting.hub.language import form_of_adapter, form_of_language
from student_train.using.exporting.hub.pictures import answers_pictures, form_of_pictures
from student_train.using.exporting.hub.smaller import of_its_config
from student_train.using.exporting.hub.to_gpt2 import STOPS_AT
from student_train.using.exporting.place import MARK, Exported, done_before, part_of, seal
from student_train.using.exporting.rows import ComparedRows, apart, rows_to_compare
from student_train.using.settled import folders_of, settled

ROUNDING = 1e-4  # of the largest logit: kernels of another order of additions, in float32
ARCHITECTURES = (TRANSFORMERS, "gpt")  # that can be said in transformers


def export_transformers(
    run: Path, out: Path, *, adapter: bool = False, tokenizer: Path | None = None, cache: str | None = None
) -> Exported:
    """Write a settled student as a folder that transformers loads with `from_pretrained`.

    Args:
        run: its folder.
        out: the folder to write.
        adapter: its adapter alone, as peft has it, which names its base by path and digest; else merged.
        tokenizer: a folder with what goes with its tokenizer; None: those that the run was made from are asked.
        cache: where its held rows are; None: where they were.

    Raises:
        MissingSource: there is no settled student.
        BadRequest: it cannot be said in transformers; the folder is something else; transformers is not installed; or
            the exported model does not say the same.
    """
    check_transformers(WHAT)
    record = settled(run)
    student = load_known(run, record)
    form = form_of(run, record, student, adapter=adapter, tokenizer=tokenizer)
    about = {
        "student": record.student,
        "student_digest": digest((run / BLUEPRINT_FILE).read_bytes()),
        "base": None if form.base is None else record.identity["start"],
    }
    # What lies beside counts where it is asked for: the folders of the job may have changed since.
    if (before := done_before(out, about, {} if tokenizer is None else form.beside.files)) is not None:
        return before
    with part_of(out) as part:
        form.write(part)
        for name, data in form.beside.files.items():
            (part / name).write_bytes(data)
        rows = rows_to_compare(student, record, cache)
        difference, largest = _compare(student, form.answers(part), rows)
        said = "logits" if student.blueprint.asked.has_classes else "vectors"
        compared = f"{said} of {rows.told}: at most {difference:.2g} apart, the largest {largest:.3g}"
        _check_same(student, difference, largest, compared)
        of = () if form.base is None else (f"an adapter of {form.base}, digests of it in {MARK}",)
        checked = form.check(rows.inputs, part)
        told = (compared, *of, *([] if checked is None else [checked]), *form.beside.told)
        card = Card(form.kind, form.library, told, read_job(run, record), adapter=form.base is not None, use=form.use)
        (part / "README.md").write_text(model_card(run, record, student.blueprint, card))
        seal(part, about, form.kind)
    return Exported(out, form.kind, difference, largest, told)


def form_of(run: Path, record: RunRecord, student: Student, *, adapter: bool, tokenizer: Path | None) -> Form:
    """Return what is particular to a student's kind. Raises BadRequest: an option is of another kind than it."""
    of_texts, of_pictures = answers_texts(student), answers_pictures(student)
    if adapter and (of_texts or of_pictures):
        raise BadRequest(
            f"{run.name} answers whole {'texts' if of_texts else 'pictures'}, and adapters alone are written of "
            "language models",
            do="leave --adapter out",
        )
    if of_pictures:
        if tokenizer is not None:
            raise BadRequest(f"{run.name} has pictures, and no tokenizer", do="leave --tokenizer out")
        return form_of_pictures(student)
    gone_with = beside(student, folders_of(run), tokenizer, adapter=adapter)
    if of_texts:
        return form_of_texts(student, gone_with)
    return form_of_adapter(run, record, student, gone_with) if adapter else form_of_language(student, gone_with)


def load_known(run: Path, record: RunRecord) -> Student:
    """Return a student that can be said in transformers, as a config alone builds it.

    Raises:
        BadRequest: its architecture has no equal there, or its layers are those of no config.
    """
    if record.architecture not in ARCHITECTURES:
        raise BadRequest(
            f"{run.name} has no equal in transformers",
            found=f'architecture = "{record.architecture}"',
            expected=" or ".join(f'"{name}"' for name in ARCHITECTURES),
            do="--format onnx, safetensors or pt2, which take any student",
        )
    student = load_student(run)
    return of_its_config(student, run.name) if student.blueprint.changes else student


def _compare(student: Student, answers: Callable[[Tensor], Tensor], rows: ComparedRows) -> tuple[float, float]:
    """Return the largest difference of answers, in float32, and the largest answer; one row at a time."""
    difference = largest = 0.0
    with torch.inference_mode():
        for inputs in rows.inputs:
            found = apart(student(inputs), answers(inputs))
            difference, largest = max(difference, found[0]), max(largest, found[1])
    return difference, largest


def _check_same(student: Student, difference: float, largest: float, compared: str) -> None:
    if difference <= ROUNDING * largest:
        return
    stops = student.blueprint.options.get("end_of_text") is not None
    raise BadRequest(
        "the exported model does not say what the student says",
        found=compared,
        expected=f"at most {ROUNDING * largest:.2g}, which rounding would be",
        do=STOPS_AT if stops else "this is a fault of ours or of the library's: nothing was written",
    )
