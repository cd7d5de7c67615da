"""A student as a folder of transformers, whose answers are compared with its own before it counts.

A language model, or an encoder with one answer for each text (`encoders.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from storage.digests import digest
from storage.errors import BadRequest
from storage.language.answering import ImageClassifier
from storage.language.model_folder import check_transformers, import_transformers
from student_train.run_files.records import RunRecord, read_job
from student_train.students import Student, load_student
from student_train.students.files import BLUEPRINT_FILE
from student_train.students.transformers import ARCHITECTURE as TRANSFORMERS
from student_train.tasks import task_of
from student_train.using.exporting.beside import beside, folders_of
from student_train.using.exporting.card import Card, model_card
from student_train.using.exporting.encoders import (
    answers_texts,
    check_tokens,
    load_again,
    plain_model,
    tokenizer_files,
    use_of,
    write_modules,
)
from student_train.using.exporting.place import MARK, Exported, done_before, part_of, seal
from student_train.using.exporting.rows import ComparedRows, apart, rows_to_compare
from student_train.using.exporting.to_gpt2 import STOPS_AT, to_gpt2
from student_train.using.exporting.to_peft import base_of, load_on_base, save_adapter
from student_train.using.settled import settled

WHAT = "student export --format transformers"
ROUNDING = 1e-4  # of the largest logit: kernels of another order of additions, in float32


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
    base = base_of(run, record) if adapter else None
    about = {
        "student": record.student,
        "student_digest": digest((run / BLUEPRINT_FILE).read_bytes()),
        "base": None if base is None else record.identity["start"],
    }
    of_texts = answers_texts(student)
    if of_texts and adapter:
        raise BadRequest(f"{run.name} answers whole texts, and adapters alone are written of language models")
    gone_with = beside(student, folders_of(run), tokenizer, adapter=adapter)
    if of_texts:
        gone_with = replace(gone_with, files=tokenizer_files(student, gone_with.files))
    # What lies beside counts where it is asked for: the folders of the job may have changed since.
    if (before := done_before(out, about, {} if tokenizer is None else gone_with.files)) is not None:
        return before
    model = plain_model(student) if of_texts else FORMS[student.blueprint.architecture](student)
    kind = type(model).__name__
    with part_of(out) as part:
        if of_texts:
            model.save_pretrained(part)
            write_modules(student, part)
            loaded = load_again(student, part, WHAT)
        elif base is None:
            for config in (model.config, model.config.get_text_config()):
                config.use_cache = True  # those who go on with a text want it
            model.save_pretrained(part)
            loaded = import_transformers(WHAT).AutoModelForCausalLM.from_pretrained(
                part, dtype=torch.float32, local_files_only=True, trust_remote_code=False
            )
        else:
            save_adapter(run, record, base, part)
            loaded = load_on_base(base, part, WHAT)
        for name, data in gone_with.files.items():
            (part / name).write_bytes(data)
        rows = rows_to_compare(student, record, cache)
        difference, largest = _compare(student, loaded.eval(), rows)
        said = "logits" if task_of(student.blueprint).asked.has_classes else "vectors"
        compared = f"{said} of {rows.told}: at most {difference:.2g} apart, the largest {largest:.3g}"
        _check_same(student, difference, largest, compared)
        of = () if base is None else (f"an adapter of {base}, digests of it in {MARK}",)
        tokens = check_tokens(student, rows.inputs, part, WHAT) if of_texts else None
        told = (compared, *of, *([] if tokens is None else [tokens]), *gone_with.told)
        library, use = use_of(student) if of_texts else ("transformers" if base is None else "peft", "")
        card = Card(kind, library, told, read_job(run, record), adapter=base is not None, use=use)
        (part / "README.md").write_text(model_card(run, record, student.blueprint, card))
        seal(part, about, kind)
    return Exported(out, kind, difference, largest, told)


def load_known(run: Path, record: RunRecord) -> Student:
    """Return a student that can be said in transformers. Raises BadRequest: its architecture has no equal there."""
    if record.architecture not in FORMS:
        raise BadRequest(
            f"{run.name} has no equal in transformers",
            found=f'architecture = "{record.architecture}"',
            expected=" or ".join(f'"{name}"' for name in FORMS),
            do="--format onnx, safetensors or pt2, which take any student",
        )
    student = load_student(run)
    blueprint = student.blueprint
    other = [f"layer {change.layer}, {change.kind}" for change in blueprint.changes]
    if isinstance(student.network, ImageClassifier):  # how pictures become its inputs is no preprocessor's of there
        other = ["classes of pictures", *other]
    if other:
        raise BadRequest(
            f"{run.name} has no equal in transformers",
            found=", ".join(other[:4]) + (f", and {len(other) - 4} more" if other[4:] else ""),
            expected="a language model, or one of texts, whose layers are those of its config",
            do="--format onnx, safetensors or pt2, which take any student",
        )
    return student


def _as_it_is(student: Student) -> Any:
    return student.network


def _gpt2(student: Student) -> Any:
    return to_gpt2(student, WHAT)


FORMS: dict[str, Callable[[Student], Any]] = {TRANSFORMERS: _as_it_is, "gpt": _gpt2}


def _compare(student: Student, loaded: Any, rows: ComparedRows) -> tuple[float, float]:
    """Return the largest difference of logits, in float32, and the largest logit; one row at a time."""
    difference = largest = 0.0
    with torch.inference_mode():
        for inputs in rows.inputs:
            own_BLC = student(inputs)
            there = student.blueprint.made_of.call(loaded, inputs)
            there_BLC = there if isinstance(there, torch.Tensor) else there.logits[..., : own_BLC.shape[-1]]
            found = apart(own_BLC, there_BLC)
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
