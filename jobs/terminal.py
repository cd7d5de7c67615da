"""The edge that both programs share: progress, errors, exit codes, signals, JSON.

Results go to stdout, everything else to stderr. With --json, stdout is one JSON value, errors included.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from storage.errors import Interrupted, StillroomError

LOG_EVERY_S = 30.0

errors = Console(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False)


def run(action: Callable[[], int | None], *, as_json: bool) -> NoReturn:
    """Run a command's action and exit with its code; no traceback for a user's mistake."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        code = action() or 0
    except StillroomError as error:
        if as_json:
            fields = {
                "error": type(error).__name__,
                "what": error.what,
                "found": error.found,
                "expected": error.expected,
                "do": error.do,
            }
            print_json(fields | {"exit_code": error.exit_code})
        errors.print(Text(str(error)))
        code = error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    sys.exit(code)


def _interrupt(signal_number: int, frame: types.FrameType | None) -> None:
    raise Interrupted("stopped by a signal", signal_number)


@contextlib.contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether a signal has come, for work that stops itself at a good moment.

    A second signal does not wait.
    """
    came: list[int] = []

    def handler(signal_number: int, frame: types.FrameType | None) -> None:
        if came:
            _interrupt(signal_number, frame)
        came.append(signal_number)

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    except Interrupted as stopped:
        raise Interrupted(stopped.what, came[0] if came else signal.SIGINT) from None
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def print_json(value: Any) -> None:
    """Print one JSON value to stdout."""
    print(json.dumps(value, indent=2, default=str), flush=True)


def si(number: float, unit: str = "") -> str:
    """Return a number with three digits and a prefix: 1234567 → 1.23 M."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 999.5:
            return f"{number:.3g} {prefix}{unit}".rstrip()
        number /= 1000
    return f"{number:.3g} P{unit}"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{si(speed)}/s" if speed else "", style="progress.data.speed")


class Watch:
    """Progress of counted things on stderr: a bar on a terminal, a log line every 30 s elsewhere."""

    def __init__(self, unit: str):
        self._unit = unit
        self._bar: Progress | None = None
        self._task: Any = None
        self._name, self._total, self._count, self._began, self._logged = "", 0, 0, 0.0, 0.0
        self._first = 0

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """Begin to count `total` things, of which `done` are there already."""
        self.end()
        self._name, self._total, self._count, self._first = name, total, done, done
        self._began = self._logged = time.monotonic()
        if errors.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn(self._unit),
                _Rate(),
                TimeRemainingColumn(compact=True),
                console=errors,
                expand=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(name, total=total, completed=done)

    def advance(self, count: int, detail: str = "") -> None:
        """Count some more."""
        self._count += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self._count, description=f"{self._name} {detail}".rstrip())
        elif time.monotonic() - self._logged >= LOG_EVERY_S:
            self._logged = time.monotonic()
            self._line(detail)

    def detail(self, text: str) -> None:
        """Say something beside the count."""
        self.advance(0, text)

    def complete(self) -> None:
        """Count everything as done."""
        self.advance(self._total - self._count)
        self.end()

    def note(self, text: str) -> None:
        """Print something above the bar."""
        if self._bar is not None:
            self._bar.console.print(Text(text))
        else:
            errors.print(Text(text))

    def end(self) -> None:
        """Finish; off a terminal, say how it went."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._name:
            self._line("")
        self._name = ""

    def _line(self, detail: str) -> None:
        seconds = time.monotonic() - self._began
        new, left = self._count - self._first, self._total - self._count
        pace = ""
        if new:
            pace = f", {si(new / seconds)}/s" + (f", {left * seconds / new:.0f} s left" if left else "")
        elif not left:
            pace = ", all there already"
        errors.print(Text(f"{self._name}: {self._count} of {self._total} {self._unit}{pace} {detail}".rstrip()))


@contextlib.contextmanager
def watching(unit: str) -> Iterator[Watch]:
    """Yield a Watch that ends with the block, whatever happens in it."""
    watch = Watch(unit)
    try:
        yield watch
    finally:
        watch.end()
