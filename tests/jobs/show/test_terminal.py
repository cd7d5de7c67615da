from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.show import terminal
from jobs.show.figures import Figures
from storage.errors import Interrupted

SWALLOWED = """
import contextlib, os, signal
from jobs.show import terminal

def action():
    with terminal.watching("things") as watch:
        watch.begin("all", 3)
        watch.advance(1)
        with contextlib.suppress(Exception):
            os.kill(os.getpid(), signal.SIGTERM)
        print("swallowed", flush=True)
        watch.advance(1)
        print("unheard", flush=True)
    return 0

terminal.run(action, as_json=False)
"""


def test_a_signal_is_heard_though_its_exception_was_swallowed() -> None:
    ended = subprocess.run([sys.executable, "-c", SWALLOWED], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (143, "swallowed\n"), ended.stderr
    assert "run the same command again; it resumes" in ended.stderr


def test_a_signal_that_a_shell_passes_on_too_is_one_and_one_after_a_second_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = [100.0]
    monkeypatch.setattr("jobs.show.terminal.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr(terminal, "_heard_s", [])
    monkeypatch.setattr(terminal, "_signals", [])
    with pytest.raises(Interrupted) as stopped, terminal.deferred_signals() as came:  # noqa: PT012 - its body is the story
        assert not came()
        for later_s in (0, 0.5, 0.9):
            now_s[0] = 100 + later_s
            os.kill(os.getpid(), signal.SIGTERM)
            assert came()
        now_s[0] = 101.5
        os.kill(os.getpid(), signal.SIGINT)
    assert stopped.value.exit_code == 143


def test_what_nobody_has_counted_before_is_counted_without_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.watching("samples") as watch:
        watch.begin("small", None)
        watch.advance(30)
        watch.advance(10)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("small: 40 samples, ")
    assert line.endswith("/s")
    with terminal.watching("rows") as watch:
        watch.begin("small", None)
        watch.complete()
    assert capsys.readouterr().err == "small: 0 rows\n"


def test_figures_of_what_has_no_end_have_none(tmp_path: Path) -> None:
    figures = Figures("student eval", "job")
    figures.renew(tmp_path / "a.prom", ("small", 3, None, "rows"))
    text = (tmp_path / "a.prom").read_text()
    assert 'stillroom_stage_done{command="student eval",subject="job",stage="small",unit="rows"} 3' in text
    assert "stage_total" not in text
