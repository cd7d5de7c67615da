"""The story of `student export` for formats of any student: safetensors, ONNX, PyTorch's exported program.

Whatever is written is run again on held rows, and refused if it does not say what the student says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from storage.digests import digest
from storage.errors import BadRequest
from student_train.run_files.records import JOB_FILE, read_job
from student_train.students import Student
from student_train.students.files import BLUEPRINT_FILE
from student_train.using.answering import of_student
from student_train.using.exporting.card import Card, model_card
from student_train.using.exporting.place import Exported, done_before, part_of, seal
from student_train.using.exporting.quantizing import quantize_file
from student_train.using.exporting.rows import ComparedRows, apart, rows_to_compare
from student_train.using.exporting.written import PREPROCESSING_FILE, Written, write_onnx, write_plain, write_pt2
from student_train.using.portable import as_file, metadata
from student_train.using.settled import load_trusted, settled

Form = Literal["safetensors", "onnx", "pt2"]
Logits = Callable[[Tensor], Tensor]
ROUNDING = 1e-4  # of the largest logit: kernels of another order of additions, in float32

WRITERS: dict[Form, Callable[[Student, Path, dict[str, str]], Written]] = {
    "safetensors": write_plain,
    "onnx": write_onnx,
    "pt2": write_pt2,
}


def export_model(
    run: Path,
    out: Path,
    form: Form,
    *,
    quantize: Literal["int8"] | None = None,
    cache: str | None = None,
    architecture: str | None = None,
) -> Exported:
    """Write a settled student as a folder: the model with all that goes along, a card, and the job that repeats it.

    Args:
        run: its folder.
        out: the folder to write.
        form: whose format.
        quantize: of "onnx": weights and activations, calibrated on held rows.
        cache: where its held rows are; None: where they were.
        architecture: of a student of one's own code, as the caller names it.

    Raises:
        MissingSource: there is no settled student.
        BadRequest: the folder is something else; the network cannot be traced; a package is missing; or what was
            written does not say the same.
    """
    record = settled(run)
    if quantize is not None and form != "onnx":
        raise BadRequest(f"--quantize is of --format onnx, not of {form}", do="--format onnx --quantize int8")
    about = {
        "student": record.student,
        "student_digest": digest((run / BLUEPRINT_FILE).read_bytes()),
        "format": form,
        "quantize": quantize,
    }
    if (before := done_before(out, about, {})) is not None:
        return before
    student = load_trusted(run, record.architecture, architecture)
    own = of_student(student, record.student, record)
    rows = rows_to_compare(student, record, cache)
    said = metadata(student.blueprint, student.tokenizer, {key: about[key] for key in ("student", "student_digest")})
    with part_of(out) as part, torch.inference_mode():
        written = WRITERS[form](student, part, said)
        difference, largest = compare(own.logits, written.logits, rows)
        what = "logits" if student.blueprint.asked.has_classes else "answers"
        compared = f"{what} of {rows.told}: at most {difference:.2g} apart, the largest {largest:.3g}"
        check_same(difference, largest, compared)
        told = [compared]
        if quantize is not None:
            written, changed = quantize_file(own, record, part, cache)
            difference, largest = compare(own.logits, written.logits, rows)
            rounded = f"{what} of {rows.told} in int8: at most {difference:.2g} apart, the largest {largest:.3g}"
            told = [f"before it was rounded, {compared}", rounded, *changed]
        (part / PREPROCESSING_FILE).write_text(as_file(student.blueprint))
        job = read_job(run, record)
        if job is not None:
            (part / JOB_FILE).write_text(job)
        card = Card(written.kind, written.library, tuple(told), job, use=written.use)
        (part / "README.md").write_text(model_card(run, record, student.blueprint, card))
        seal(part, about, written.kind)
    return Exported(out, written.kind, difference, largest, tuple(told))


def compare(own: Logits, other: Logits, rows: ComparedRows) -> tuple[float, float]:
    """Return the largest difference of logits in float32, and the largest logit; one row at a time."""
    difference = largest = 0.0
    for inputs in rows.inputs:
        found = apart(own(inputs), other(inputs))
        difference, largest = max(difference, found[0]), max(largest, found[1])
    return difference, largest


def check_same(difference: float, largest: float, compared: str) -> None:
    """Raise BadRequest if what was written does not say what the student says."""
    if difference > ROUNDING * max(largest, 1.0):
        raise BadRequest(
            "the exported model does not say what the student says",
            found=compared,
            expected=f"at most {ROUNDING * max(largest, 1.0):.2g}, which rounding would be",
            do="nothing was written: a network that draws numbers, or goes by values of its inputs, is no such model",
        )
