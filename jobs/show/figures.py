"""Figures of a command in Prometheus' text format, in a file that is replaced as a whole."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path

from storage.errors import BadRequest, StillroomError
from storage.format.filesystems import read_file
from storage.format.objects import LocalObjects

MOST_BYTES = 2**24  # of a file of ours; there is a line or a few for each student

HELP = {
    "running": "Whether it runs: 0 when it has ended, 1 also of one that was killed.",
    "renewed_timestamp_seconds": "When the running command last wrote its figures.",
    "stage_done": "How far the work at hand of the running command is.",
    "stage_total": "How much work that is.",
    "last_run_timestamp_seconds": "When the command last ended.",
    "last_success_timestamp_seconds": "When it last ended with exit code 0.",
    "exit_code": "What it ended with.",
    "duration_seconds": "How long it ran.",
    "build_rows": "Rows that it committed.",
    "build_bytes": "Bytes that it committed.",
    "build_rows_per_second": "Rows that it committed in each second that it ran.",
    "build_shards": "Shards, by what became of them.",
    "build_quarantined_rows": "Rows of the dataset that cannot be read, of this run or an earlier one.",
    "train_students": "Students of the job, by what became of them.",
    "train_rows_per_second": "Rows that the student was trained on in a second.",
    "train_seconds": "How long the student was trained and measured, over all interruptions.",
    "train_figure": "What the student reached on the held rows.",
}
OF_RUNNING = ("running", "renewed_timestamp_seconds", "stage_done", "stage_total")  # beside those of the last run
PREFIX = "stillroom_"
_KEPT = f"{PREFIX}last_success_timestamp_seconds"


class Figures:
    """Figures of one command; all are gauges, of its last run.

    Args:
        command, subject: labels of every figure.
    """

    def __init__(self, command: str, subject: str):
        self._labels = {"command": command, "subject": subject}
        self._values: dict[tuple[str, str], float] = {}
        self._before = ""  # what the file said of the last run

    def set(self, name: str, value: float, **labels: str) -> None:
        """Keep a figure, by a name of HELP."""
        self._values[name, _labels(self._labels | labels)] = value

    def add(self, name: str, value: float, **labels: str) -> float:
        """Add to a figure, of a command that does several things of a kind; return what it is then."""
        key = name, _labels(self._labels | labels)
        self._values[key] = self._values.get(key, 0) + value
        return self._values[key]

    def check(self, path: Path) -> None:
        """Check that a file may be written at the end, before there is anything to lose.

        Raises:
            BadRequest: its folder is not there or cannot be written, or it is no such file of this command.
        """
        if path.suffix != ".prom":
            raise BadRequest(
                f"{path} is no file of figures", expected="a name that ends with .prom, which collectors read"
            )
        self._before = self._read(path)
        try:
            if not path.parent.is_dir():
                raise BadRequest(f"cannot write {path}", found=f"no folder {path.parent}", do="make it")
            probe = LocalObjects(path.parent)
            probe.put(f".{path.name}.probe", b"")  # hidden, and gone at once
            probe.delete(f".{path.name}.probe")
        except StillroomError as error:
            raise BadRequest(f"cannot write {path}", found=error.found or error.what, do=error.do) from None

    def renew(self, path: Path, at: tuple[str, int, int | None, str] | None) -> None:
        """Write how far a command is that runs, beside the figures of its last run.

        Args:
            path: as it was checked.
            at: stage, how much of it is done, of how much if that is known, and the unit; None: it counts nothing yet.

        Raises:
            StorageFailure: the disk refused.
        """
        now = Figures(self._labels["command"], self._labels["subject"])
        now.set("running", 1)
        now.set("renewed_timestamp_seconds", round(time.time(), 3))
        if at is not None:
            stage, done, total, unit = at
            now.set("stage_done", done, stage=stage, unit=unit)
            if total is not None:
                now.set("stage_total", total, stage=stage, unit=unit)
        names = "|".join(OF_RUNNING)
        before = re.sub(rf"^(# (HELP|TYPE) )?{PREFIX}({names})[ {{].*\n", "", self._before, flags=re.MULTILINE)
        LocalObjects(path.parent).put(path.name, (now.text() + before).encode())

    def end(self, path: Path, exit_code: int, seconds: float) -> None:
        """Write all figures in place of those before. Raises StorageFailure."""
        try:
            succeeded = _succeeded(self._read(path))
        except BadRequest:
            succeeded = None  # damaged since it was checked
        now_s = time.time()
        self.set("running", 0)
        self.set("exit_code", exit_code)
        self.set("duration_seconds", round(seconds, 3))
        self.set("last_run_timestamp_seconds", round(now_s, 3))
        if exit_code == 0 or succeeded is not None:
            self.set("last_success_timestamp_seconds", round(now_s, 3) if exit_code == 0 else succeeded or 0.0)
        LocalObjects(path.parent).put(path.name, self.text().encode())

    def text(self) -> str:
        """Return them in the text format, a family after another."""
        lines = []
        for name, help_text in HELP.items():
            of_name = [(labels, value) for (each, labels), value in self._values.items() if each == name]
            if of_name:
                lines += [f"# HELP {PREFIX}{name} {help_text}", f"# TYPE {PREFIX}{name} gauge"]
                lines += [f"{PREFIX}{name}{{{labels}}} {_number(value)}" for labels, value in of_name]
        return "\n".join([*lines, ""])

    def _read(self, path: Path) -> str:
        """Return what a file of this command says; nothing if it is not there. Raises BadRequest."""
        try:
            text = read_file(path, MOST_BYTES).decode()
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as error:
            raise BadRequest(f"cannot write {path}", found=str(error), expected="a file of figures, or none") from None
        own = _labels(self._labels)
        ran = re.search(rf"^{PREFIX}(?:exit_code|running)\{{(.*)\}} ", text, re.MULTILINE)
        if text.strip() and (ran is None or ran[1] != own):
            found = "other text" if ran is None else ran[1]
            do = "name another file: each command and job has its own"
            raise BadRequest(f"{path} is not of this command", found=found, expected=own, do=do)
        return text


def _succeeded(text: str) -> float | None:
    """Return when a command last succeeded, as its figures say; None: they do not."""
    kept = re.search(rf"^{_KEPT}\{{.*\}} ([0-9.e+]+)$", text, re.MULTILINE)
    try:
        return None if kept is None else float(kept[1])
    except ValueError:
        return None


def _labels(labels: Mapping[str, str]) -> str:
    r"""Return labels as they are written.

    >>> print(_labels({"a": 'x"y', "b": "1\n2"}))
    a="x\"y",b="1\n2"
    """
    escaped = {
        name: value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"') for name, value in labels.items()
    }
    return ",".join(f'{name}="{value}"' for name, value in escaped.items())


def _number(value: float) -> str:
    """Return a number as it is written.

    >>> _number(3.0), _number(0.25), _number(float("nan")), _number(float("-inf"))
    ('3', '0.25', 'NaN', '-Inf')
    """
    if value != value:  # noqa: PLR0124 - NaN
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(float(value))
