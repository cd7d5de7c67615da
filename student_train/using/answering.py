"""Who answers: a settled student, an exported folder of one, or its ONNX file, all behind one door.

B rows of a batch, L positions of a row, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storage.datasets.samples import rows_of
from storage.errors import BadRequest, MissingSource, missing_extra
from student_train.feed.devices import Device, find_device
from student_train.run_files.records import RunRecord, read_record
from student_train.students import Blueprint, Student
from student_train.students.files import BLUEPRINT_FILE, read_blueprint
from student_train.tasks import task_of
from student_train.using.portable import read_metadata
from student_train.using.settled import load_trusted, settled

ONNX_FILE, INT8_FILE, PT2_FILE = "model.onnx", "model.int8.onnx", "model.pt2"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Answerer:
    """One that can be asked.

    Attributes:
        name: for people.
        blueprint: what it is.
        tokenizer: the `tokenizer.json` of its text, if it has one.
        device: where its inputs are to be.
        logits: of inputs as `Inputs.arguments` gives them: (B, *sites, C) float32.
        answer: likewise, of each row once: (B, C).
        student: it, unless it is an ONNX file.
        record: of its run, if that is at hand.
    """

    name: str
    blueprint: Blueprint
    tokenizer: bytes | None
    device: torch.device
    logits: Callable[[Tensor], Tensor]
    answer: Callable[[Tensor], Tensor]
    student: Student | None = None
    record: RunRecord | None = None

    def shown(self, samples: Sequence[Any]) -> Tensor:
        """Return samples as rows, as they are shown without a view. Raises BadRequest: they are none of its own."""
        made_of, shape = self.blueprint.made_of, self.blueprint.input_shape
        return rows_of(samples, self.blueprint.source, made_of, shape, self.tokenizer)

    def arguments(self, shown_B: Tensor) -> Tensor:
        """Return what `logits` and `answer` take, of rows as they are shown."""
        return self.blueprint.made_of.arguments(shown_B).to(self.device)

    def class_name(self, number: int) -> str:
        """Return the name of a class; of one without a name, its number."""
        classes = self.blueprint.classes
        return classes[number] if classes else str(number)


def load_answerer(place: Path, *, device: Device = "auto", architecture: str | None = None) -> Answerer:
    """Return who answers from a place: the folder of a run or of an export, or an ONNX file.

    Args:
        place: where it lies.
        device: where it is to run; an ONNX file runs on the CPU.
        architecture: of a student of one's own code, as the caller names it.

    Raises:
        MissingSource: there is no student.
        BadRequest: it is of code that the caller did not name; or of a kind that only its own library should load.
    """
    if place.suffix == ".pt2" or (place.is_dir() and (place / PT2_FILE).exists()):
        raise BadRequest(
            f"{place} is an exported program, and loading one can run whatever code is in it",
            do="give the folder of the run, or an ONNX file: student export RUN --format onnx -o FOLDER",
        )
    if place.is_file():
        return load_onnx(place)
    if not (place / BLUEPRINT_FILE).exists():
        onnx = [place / name for name in (ONNX_FILE, INT8_FILE) if (place / name).exists()]
        if len(onnx) > 1:
            raise BadRequest(
                f"{place} has two models", found=", ".join(p.name for p in onnx), do=f"name one: {onnx[0]}"
            )
        if onnx:
            return load_onnx(onnx[0])
        if not place.exists() or (record := read_record(place)) is None:
            runs = sorted(path.parent.name for path in place.glob("*/run.json"))[:4] if place.is_dir() else []
            raise MissingSource(
                f"there is no trained student in {place}",
                found=f"a folder of runs: {', '.join(runs)}"
                if runs
                else "no " + str(place) * (not place.exists())
                if not place.exists()
                else "no student.json",
                expected="the folder of a finished run, of an export, or an .onnx file",
                do=f"name one: {place / runs[0]}" if runs else "student train JOB.toml",
            )
        settled(place)  # which says what is wrong with it
    record = read_record(place)
    if record is not None:
        settled(place)  # an export has no record; a run may have failed, or have the weights of another beside it
    student = load_trusted(place, read_blueprint(place).architecture, architecture)
    return of_student(student.to(find_device(device)), record.student if record else place.name, record)


def of_student(student: Student, name: str, record: RunRecord | None = None) -> Answerer:
    """Return a student that is at hand as one who can be asked."""
    student.eval()
    task = task_of(student.blueprint)

    def logits(inputs: Tensor) -> Tensor:
        said: Tensor = student(inputs)
        return said.float()

    return Answerer(
        name,
        student.blueprint,
        student.tokenizer,
        student.device,
        logits,
        lambda inputs: task.answer(student, inputs).float(),
        student,
        record,
    )


def load_onnx(path: Path, threads: int | None = None) -> Answerer:
    """Return an ONNX file that was exported here as one who can be asked; onnxruntime alone computes it.

    Args:
        path: of the file.
        threads: of onnxruntime; None: as many as torch has.

    Raises:
        BadRequest: onnxruntime is not installed; or nothing in the file says what its inputs are.
        MissingSource: it is no ONNX file.
    """
    if find_spec("onnxruntime") is None:
        raise missing_extra(f"{path.name}", "no onnxruntime", "onnx")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()  # it takes all cores unless told
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # warnings of an optimiser to its own authors
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )  # which would say on the terminal what the error says
    except Exception as error:  # onnxruntime has a dozen classes of its own, without a common one
        raise MissingSource(
            f"{path} cannot be read as ONNX", found=str(error).splitlines()[0][:300], expected="a whole .onnx file"
        ) from None
    known = read_metadata(session.get_modelmeta().custom_metadata_map, str(path))
    if known is None:
        raise BadRequest(
            f"nothing in {path} says how a sample becomes an input of it",
            found="an ONNX file without our metadata",
            expected="one of student export --format onnx",
        )
    blueprint, tokenizer, student = known
    names = [each.name for each in session.get_inputs()]

    def logits(inputs: Tensor) -> Tensor:
        given = blueprint.made_of.spread(inputs)
        feed = {name: values.numpy() for name, values in zip(names, given, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0]).float()

    def answer(inputs: Tensor) -> Tensor:
        said = logits(inputs)
        if said.ndim == 2:
            return said
        inside_BL = blueprint.made_of.inside(inputs)  # what follows a whole row
        if inside_BL is None:
            return said[:, -1]
        return said[torch.arange(len(said)), inside_BL.sum(1).clamp(min=1) - 1]

    return Answerer(f"{student.get('student', path.stem)} ({path.name})", blueprint, tokenizer, CPU, logits, answer)
