"""A folder in which schedules run, with two programs that only write down how they were called."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

SCHEDULE = Path(__file__).resolve().parents[3] / "jobs/schedule"
# A line of `answers` is a command and its status, said once; what has none ends with 0.
PROGRAM = """#!/bin/sh
call="$(basename "$0") $*"
echo "$call" >> calls
status=$(sed -n "s|^$call=||p" answers | head -n 1)
[ -z "$status" ] || sed -i "0,\\|^$call=|{/=/d}" answers
exit "${status:-0}"
"""


STEPS = {
    "build": [
        "cache build jobs/digits.ingest.toml",
        "student train jobs/digits.teacher.toml",
        "cache build jobs/digits.cache.toml",
    ],
    "train": ["student train jobs/digits.students.toml"],
    "report": ["student report runs/digits", "cache status jobs/digits.cache.toml"],
}
NIGHT = [call for calls in STEPS.values() for call in calls]
AUDIT = [
    "cache verify caches/digits",
    "cache verify caches/digits --teacher jobs/digits.cache.toml",
    "cache gc caches/digits",
]


class Place:
    """A copy of jobs/schedule/ and programs that answer what a test says."""

    def __init__(self, folder: Path):
        self.folder = folder
        shutil.copytree(SCHEDULE, folder / "jobs/schedule", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "bin").mkdir()
        for name in ("cache", "student"):
            self.program(name, PROGRAM)
        self.answer()

    def program(self, name: str, text: str) -> None:
        """Put a program before all others."""
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def answer(self, *answers: str) -> None:
        """Say how commands end, `cache build …=75`; forget those that were called."""
        (self.folder / "answers").write_text("".join(f"{answer}\n" for answer in answers))
        (self.folder / "calls").write_text("")

    @property
    def calls(self) -> list[str]:
        """The commands that were called."""
        return (self.folder / "calls").read_text().splitlines()

    def start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, **variables: str) -> tuple[int, str]:
        """Return the status of a command, and what it printed."""
        with self.start(*command, **variables) as process:
            printed, _ = process.communicate(timeout=60)
        return process.returncode, printed

    @property
    def environment(self) -> Mapping[str, str]:
        """That of every command."""
        return {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "STILLROOM": str(self.folder)}


def waiting(calls: list[str]) -> list[str]:
    """Return commands as they are where another start is waited for."""
    return [f"{call} --wait" if call.split()[1] in ("build", "train") else call for call in calls]


def cron_command(folder: Path = SCHEDULE) -> str:
    """Return the command of the cron line, as cron hands it to a shell."""
    (line,) = [line for line in (folder / "crontab").read_text().splitlines() if re.match(r"[\d*]", line)]
    minute, hour, *days, command = line.split(None, 5)
    assert (minute, hour, days) == ("17", "1,4", ["*", "*", "*"])
    assert "%" not in command.replace(r"\%", "")  # to cron a bare one ends the command
    return command.replace(r"\%", "%")
