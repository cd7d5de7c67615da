"""The two programs, run in this process or as a user would, and a small cache to look into."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.teacher_cache.toys import build, teacher_section, write_digits, write_job, write_teacher


class Ended(NamedTuple):
    """How a program ended."""

    code: int
    out: str
    err: str


Program = Callable[..., Ended]


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """Return a function that runs `cache` or `student` in this process; any exception but its exit is a traceback."""
    from jobs.cli import cache as cache_cli
    from jobs.cli import student as student_cli

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(name: str, *arguments: object) -> Ended:
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            {"cache": cache_cli, "student": student_cli}[name].main()
        out, err = capsys.readouterr()
        return Ended(int(caught.value.code or 0), out, err)

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a job and its whole cache: 40 digits in shards of 16, one teacher; do not change it."""
    folder = tmp_path_factory.mktemp("kitchen")
    write_teacher(folder)
    assert build(write_job(folder, write_digits(folder, 40), teacher_section())).exit_code == 0
    (folder / "students.toml").write_text(
        'cache = "cache"\nruns = "runs"\ntrain = "digits"\nvalidation = "digits"\n'
        '[[student]]\nname = "s"\narchitecture = "mlp"\nobjective = [{ loss = "labels" }]\nepochs = 1\nbatch_size = 8\n'
    )
    return folder
