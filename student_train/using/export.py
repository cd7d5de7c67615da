"""A settled student's folder in the form of another library, whose logits are compared with its own before it counts.

The folder is written beside its place and renamed when it is whole; `stillroom.json` in it says of which student it is,
so that the same export again does nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from storage.digests import digest, file_digest
from storage.errors import BadRequest, CorruptObject, MissingSource, StorageFailure
from storage.language.model_folder import check_transformers, import_transformers
from student_train.run_files.records import RunRecord, read_record
from student_train.students import Student, load_student
from student_train.students.files import BLUEPRINT_FILE
from student_train.students.transformers import ARCHITECTURE as TRANSFORMERS
from student_train.using.beside import beside, folders_of
from student_train.using.card import model_card
from student_train.using.rows import ComparedRows, rows_to_compare
from student_train.using.to_gpt2 import STOPS_AT, to_gpt2
from student_train.using.to_peft import base_of, load_on_base, save_adapter

WHAT = "student export --format transformers"
MARK = "stillroom.json"
ROUNDING = 1e-4  # of the largest logit: kernels of another order of additions, in float32


@dataclass(frozen=True)
class Exported:
    """An exported student.

    Attributes:
        folder: where it lies.
        kind: class that loads it.
        difference, largest: of the compared logits; None: nothing was done.
        told: what was compared, and what lies beside the model.
        done_before: whether it lay there already.
    """

    folder: Path
    kind: str
    difference: float | None
    largest: float | None
    told: tuple[str, ...]
    done_before: bool = False


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
    record = _settled(run)
    student = load_known(run, record)
    base = base_of(run, record) if adapter else None
    about = {
        "student": record.student,
        "student_digest": digest((run / BLUEPRINT_FILE).read_bytes()),
        "base": None if base is None else record.identity["start"],
    }
    gone_with = beside(student, folders_of(run), tokenizer)
    # What lies beside counts where it is asked for: the folders of the job may have changed since.
    if (before := _done_before(out, about, {} if tokenizer is None else gone_with.files)) is not None:
        return before
    model = FORMS[student.blueprint.architecture](student)
    kind = type(model).__name__
    with _part(out) as part:
        if base is None:
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
        compared = f"logits of {rows.told}: at most {difference:.2g} apart, the largest {largest:.3g}"
        _check_same(student, difference, largest, compared)
        of = () if base is None else (f"an adapter of {base}, digests of it in {MARK}",)
        told = (compared, *of, *gone_with.told)
        (part / "README.md").write_text(model_card(record, kind, compared, told[1:], adapter=adapter))
        _seal(part, about, kind)
    return Exported(out, kind, difference, largest, told)


def load_known(run: Path, record: RunRecord) -> Student:
    """Return a student that can be said in transformers. Raises BadRequest: its architecture has no equal there."""
    if record.architecture not in FORMS:
        raise BadRequest(
            f"{run.name} has no equal in transformers",
            found=f'architecture = "{record.architecture}"',
            expected=" or ".join(f'"{name}"' for name in FORMS),
            do="its weights are plain safetensors: student_train.students.load_student loads it",
        )
    return load_student(run)


def _as_it_is(student: Student) -> Any:
    return student.network


def _gpt2(student: Student) -> Any:
    return to_gpt2(student, WHAT)


FORMS: dict[str, Callable[[Student], Any]] = {TRANSFORMERS: _as_it_is, "gpt": _gpt2}


def _settled(run: Path) -> RunRecord:
    record = read_record(run)
    if record is None or record.status == "failed":
        raise MissingSource(
            f"there is no trained student in {run}",
            found="no run.json" if record is None else "a run that failed",
            expected="the folder of a finished run, <runs>/<student>",
            do="student train JOB.toml",
        )
    return record


def _compare(student: Student, loaded: Any, rows: ComparedRows) -> tuple[float, float]:
    """Return the largest difference of logits, in float32, and the largest logit; one row at a time."""
    difference = largest = 0.0
    with torch.inference_mode():
        for inputs in rows.inputs:
            own_BLC = student(inputs)
            there_BLC = student.blueprint.made_of.call(loaded, inputs).logits[..., : own_BLC.shape[-1]]
            difference = max(difference, float((own_BLC - there_BLC).abs().max()))
            largest = max(largest, float(own_BLC.abs().max()))
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


def _done_before(out: Path, about: dict[str, Any], files: Mapping[str, bytes]) -> Exported | None:
    """Return what lies at a place if it is this very export.

    Args:
        out: the place.
        about: what the export is of.
        files: by name, that it must have.

    Raises:
        BadRequest: it is something else.
        CorruptObject: it was this export, and has changed.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        mark = json.loads((out / MARK).read_bytes())
        same = {key: mark.get(key) for key in about} == about
        exported = dict(mark["files"])
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        same, mark, exported = False, {}, {}
    others = [name for name, data in files.items() if exported.get(name) != digest(data)]
    if not same or others:
        of_other_files = f"the same export with another {', '.join(others)}" if same else "another export"
        raise BadRequest(
            f"{out} is there already",
            found=of_other_files if mark else "something that is no export",
            expected="no folder, an empty one, or the same export",
            do="name another folder",
        )
    for name, expected in exported.items():
        if not (out / name).exists() or file_digest(out / name) != expected:
            raise CorruptObject(
                f"{out / name} is not what was exported",
                found="another digest" if (out / name).exists() else "no such file",
                expected=f"digest {expected}  ({MARK})",
                do=f"rm -r {out}    # then export it again",
            )
    return Exported(out, mark["kind"], None, None, (), done_before=True)


class _part:  # noqa: N801 - used as a function
    """A folder beside its place, renamed to it when all went well and deleted when not."""

    def __init__(self, out: Path):
        self._out = out
        self._part = out.with_name(f".{out.name}.part")

    def __enter__(self) -> Path:
        shutil.rmtree(self._part, ignore_errors=True)  # of a command that was killed
        try:
            self._part.mkdir(parents=True)
        except OSError as error:
            raise StorageFailure(f"cannot write {self._part}", found=error.strerror) from None
        return self._part

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self._part, ignore_errors=True)
            return
        if self._out.exists():
            self._out.rmdir()  # empty
        self._part.rename(self._out)


def _seal(folder: Path, about: dict[str, Any], kind: str) -> None:
    files = {str(path.relative_to(folder)): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / MARK).write_text(json.dumps({**about, "kind": kind, "files": files}, indent=2) + "\n")
