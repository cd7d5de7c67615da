"""Output never fails a job, and no text of a user's data steers a terminal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.table import Table
from rich.text import Text

from jobs.show import tables
from jobs.show.streams import SafeConsole
from storage.errors import printable
from tests.conftest import Program
from tests.teacher_cache.toys import write_job

# Colours, a title of the window, a line that is turned, one that is cleared, and a byte that is no UTF-8.
HOSTILE = "a\x1b[31mb\x1b]0;title\x07\u202ec\x9b2K\rd\udcffe"
SHOWN = r"a\x1b[31mb\x1b]0;title\x07\u202ec\x9b2K\rd\udcffe"
DATASET = '[[dataset]]\nname = "dots"\nkind = "arrays"\npath = "dots.npz"\nclasses = ["à", "ω", "…"]\n'


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("Müller")
    inputs = np.arange(4 * 6, dtype=np.uint8).reshape(6, 1, 2, 2)
    np.savez(folder / "dots.npz", inputs=inputs, labels=np.arange(6) % 3)
    job = write_job(folder, DATASET)
    assert started("cache", "build", job).returncode == 0
    return folder


def started(*command: object, stdout: Any = subprocess.PIPE, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a program as a user's shell does."""
    program = Path(sys.executable).with_name(str(command[0]))
    options["env"] = os.environ | options.get("env", {})
    options.setdefault("stderr", subprocess.PIPE)
    return subprocess.run(
        [str(program), *map(os.fsencode, map(str, command[1:]))], stdout=stdout, timeout=120, check=False, **options
    )


def test_what_steers_a_terminal_is_spelled_out() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("à, ω, 犬, 👩‍👩‍👧, می‌خواهم\tand\nso on") == "à, ω, 犬, 👩‍👩‍👧, می‌خواهم\tand\nso on"


def test_no_way_of_printing_lets_it_through() -> None:
    console = SafeConsole(file=StringIO(), highlight=False, width=200)
    table = Table("name")
    table.add_row(Text(HOSTILE))
    for each in (HOSTILE, Text(HOSTILE), table, f"[bold]{HOSTILE}"):
        console.print(each)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert (printed.count(r"\x1b[31mb"), printed == printable(printed), "[bold]" in printed) == (4, True, True)


def test_a_name_in_a_table_keeps_to_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_table(pl.DataFrame({"sample_id": ["a\nb\x1b[2J"], "n": [1]}))
    tables.print_tree("cache", {"classes": ["a\nb\x1b[2J"]})
    out = capsys.readouterr().out
    assert (out.count(r"a\nb\x1b[2J"), "\x1b" in out) == (2, False)


def test_an_error_of_a_users_code_steers_no_terminal(tmp_path: Path, program: Program) -> None:
    (tmp_path / "waves.py").write_text(f"raise RuntimeError({HOSTILE!r})")
    job = write_job(tmp_path, '[[dataset]]\nname = "waves"\nkind = "factory"\nfactory = "waves.py:build"\n')
    ended = program("cache", "build", job)
    assert (ended.code, r"a\x1b[31mb" in ended.err, "\x1b" in ended.err) == (2, True, False)


def test_a_failure_of_ours_steers_no_terminal() -> None:
    code = (
        "from jobs.show import terminal\n"
        f"def action():\n    raise RuntimeError({HOSTILE!r})\n"
        "terminal.run(action, as_json=False)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (ended.returncode, b"\x1b" in ended.stderr, b"RuntimeError: a\\x1b[31m" in ended.stderr) == (1, False, True)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_any_encoding_of_the_terminal_will_do(built: Path, encoding: str) -> None:
    environment = {"PYTHONIOENCODING": encoding}
    for command in (["build", built / "job.toml"], ["info", built / "cache"]):
        ended = started("cache", *command, env=environment)
        assert (ended.returncode, b"Traceback" in ended.stderr) == (0, False), ended.stderr
    ended = started("cache", "query", built / "cache", "SELECT label_name FROM samples", env=environment)
    shown = "ω".encode(encoding, errors="backslashreplace")
    assert (ended.returncode, shown in ended.stdout) == (0, True)


def test_a_reader_that_goes_away_ends_no_job(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/cache")
    reading, writing = os.pipe()
    os.close(reading)
    try:
        for command in (["build", tmp_path / "copy/job.toml"], ["info", tmp_path / "copy/cache", "--json"]):
            ended = started("cache", *command, stdout=writing)
            assert (ended.returncode, b"Traceback" in ended.stderr) == (0, False), ended.stderr
    finally:
        os.close(writing)
    status = started("cache", "status", tmp_path / "copy/cache", "--json")
    assert json.loads(status.stdout)["stages"][0]["rows_missing"] == 0


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_a_full_disk_behind_stdout_ends_no_job_and_is_told(built: Path, tmp_path: Path, options: list[str]) -> None:
    shutil.copytree(built, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/cache")
    with Path("/dev/full").open("wb") as full:
        build = started("cache", "build", tmp_path / "copy/job.toml", *options, stdout=full)
        query = started("cache", "query", built / "cache", "SELECT row FROM samples", *options, stdout=full)
    told = b"note: what was printed is lost: cannot write to stdout: No space left on device"
    assert (build.returncode, told in build.stderr) == (0, True)
    assert (query.returncode, told in query.stderr) == (1, True)


def test_a_full_disk_behind_stderr_ends_no_job(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/cache")
    with Path("/dev/full").open("wb") as full:
        build = started("cache", "build", tmp_path / "copy/job.toml", "--json", stderr=full)
        refused = started("cache", "status", tmp_path, "--json", stderr=full)
    assert (build.returncode, json.loads(build.stdout)["built"]) == (0, 1)
    assert (refused.returncode, json.loads(refused.stdout)["exit_code"]) == (2, 2)


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_a_stream_that_is_closed_ends_no_job(built: Path, descriptor: int) -> None:
    program = Path(sys.executable).with_name("cache")
    command = [str(program), "build", str(built / "job.toml")]
    ended = subprocess.run(
        ["bash", "-c", f'exec "$@" {descriptor}>&-', "bash", *command], capture_output=True, timeout=120, check=False
    )
    assert (ended.returncode, b"Traceback" in ended.stderr) == (0, False), ended.stderr


@pytest.mark.parametrize("environment", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_folder_with_an_umlaut_is_found_in_any_locale(built: Path, environment: dict[str, str]) -> None:
    assert "Müller" in str(built)
    for command in (["build", built / "job.toml"], ["status", built / "cache"]):
        ended = started("cache", *command, env=environment)
        assert (ended.returncode, b"Traceback" in ended.stderr) == (0, False), ended.stderr


def test_a_job_in_a_folder_whose_name_is_no_utf8_is_refused(built: Path, tmp_path: Path, program: Program) -> None:
    """Its paths go into what a run keeps, which is UTF-8."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller"))
    shutil.copytree(built, folder)
    ended = program("cache", "build", folder / "job.toml")
    assert (ended.code, r"M\udcfcller/job.toml cannot be used" in ended.err) == (2, True)
    assert program("cache", "status", folder / "cache").code == 0
