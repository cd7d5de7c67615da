"""The folder of a settled student: its record, and whether the code of its architecture may run."""

from __future__ import annotations

import tomllib
from pathlib import Path

from storage.errors import BadRequest, CorruptObject, MissingSource
from storage.format.stores.mirror import at_hand
from student_train.run_files.records import JOB_FILE, RUN_FILE, RunRecord, lost_files, read_record
from student_train.students import Student, load_student
from student_train.students.files import BLUEPRINT_FILE

OWN = "--architecture {name}    # if you trust that code"


def run_at_hand(given: str) -> tuple[Path, list[str]]:
    """Return where a run, an export or a file lies on this machine, copied if it is in a bucket, and what is told then.

    Of a folder there, only what lies in it: not the runs below a folder of runs.

    Raises:
        MissingSource: there is nothing of a student.
        BadRequest, StorageFailure, StoreUnavailable: as `storage.format.stores.mirror.at_hand`.
    """
    try:
        return at_hand(given, depth=0)
    except MissingSource as error:
        raise MissingSource(
            f"there is no trained student in {given}",
            found=error.what if error.found is None else error.found,
            expected="the folder of a finished run, <runs>/<student>, of an export, or an .onnx file",
        ) from None


def is_student(path: Path) -> bool:
    """Return whether a path looks like a run's folder, an export's, or an .onnx file."""
    of_folder = path.is_dir() and any(path.glob("*.onnx"))
    return path.suffix == ".onnx" or of_folder or any((path / name).exists() for name in (RUN_FILE, BLUEPRINT_FILE))


def settled(run: Path) -> RunRecord:
    """Return the record of a student that was trained.

    Raises:
        MissingSource: there is none.
        CorruptObject: what lies there is another student than the record is of.
    """
    record = read_record(run)
    # a file that is gone is told of by whoever reads it
    lost = () if record is None else lost_files(run, record)
    if any(name.startswith("its own") for name in lost):
        raise CorruptObject(
            f"{run} is not whole",
            found=f"no {' and no '.join(lost)}",
            expected="the student of its run.json, which has the digest of its student.json",
            do=f"delete {run} and train this student again",
        )
    if record is None or record.status == "failed":
        raise MissingSource(
            f"there is no trained student in {run}",
            found="no run.json" if record is None else "a run that failed",
            expected="the folder of a finished run, <runs>/<student>",
            do="student train JOB.toml",
        )
    return record


def load_trusted(folder: Path, named: str, architecture: str | None) -> Student:
    """Return the student of a folder, whose own code runs only if the caller names it.

    Args:
        folder: where its files lie.
        named: the architecture that they name.
        architecture: that the caller names.

    Raises:
        BadRequest: it is of code of somebody's own, which the caller did not name; or of none, and the caller did.
    """
    if ":" not in named and architecture is not None:
        raise BadRequest(
            f"--architecture is of a student of your own code, and the one in {folder} is a built-in",
            found=f"--architecture {architecture}",
            expected=f'"{named}", which needs no code of yours',
            do="leave --architecture out",
        )
    if ":" in named and architecture is None:
        raise BadRequest(
            f"the student in {folder} has an architecture of its own",
            found=named,
            expected="its name from whoever runs this: it is code",
            do=OWN.format(name=named),
        )
    return load_student(folder, architecture)


def folders_of(run: Path) -> list[Path]:
    """Return the folders that a run's job names, of which one may have a chat template; none of an export."""
    try:
        job = tomllib.loads((run / JOB_FILE).read_text())
    except (OSError, ValueError):
        return []
    sections = [job.get("defaults", {}) | s for s in job.get("student", []) if s.get("name") == run.name]
    named = [path for s in sections for path in ((s.get("start") or {}).get("path"), s.get("path"))]
    return [Path(path) for path in named if isinstance(path, str)]
