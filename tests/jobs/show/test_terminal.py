from __future__ import annotations

import subprocess
import sys

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
