"""The edge that both programs share: progress, errors, exit codes, signals, JSON.

Results go to stdout, everything else to stderr. With --json, stdout is one JSON value, errors included; with
--log-format json, stderr is a line of JSON for each event (`jobs.show.night`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from jobs.show.night import Night, finite
from jobs.show.pace import Pace, told
from jobs.show.streams import SafeConsole, Stream, hidden, lost, secrets, streams
from storage.errors import Interrupted, StillroomError, printable, si

LOG_EVERY_S = 30.0
ECHO_S = 1.0
ABANDONED = "shard"  # how threads are called that nobody waits for after a signal: those of work in this process

errors = SafeConsole(stderr=True, highlight=False, soft_wrap=True)
out = SafeConsole(highlight=False)


UNTOLD = Night("", "")  # of commands that only answer
_answers: Stream | None = None  # where JSON goes; None where nobody asked for it
_heard_s: list[float] = []  # when signals came
_signals: list[int] = []  # that have come, so that one is heard even if its exception was swallowed


def run(action: Callable[[], int | None], *, as_json: bool, answers: bool = False, night: Night = UNTOLD) -> NoReturn:
    """Run a command's action and exit with its code; no traceback for a user's mistake.

    Args:
        action: returns the exit code.
        as_json: whether stdout is for one JSON value.
        answers: whether what is printed is all that the command is for, so that it has failed where that is lost.
        night: is told how the command goes.
    """
    _signals.clear()
    _heard_s.clear()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    with streams() as stdout:
        with _told(night), _kept_stdout(stdout) if as_json else contextlib.nullcontext(stdout) as answer:
            code = _run(action, as_json=as_json, night=night)
            answer.flush()
        if (reason := lost(answer)) is not None:
            errors.print(f"note: what was printed is lost: cannot write to stdout: {reason}")
            code = code or int(answers)
    if signalled() and any(thread.name.startswith(ABANDONED) for thread in threading.enumerate()):
        # Python would wait for them, as long as a teacher takes; what they are at has no commit
        os._exit(code)
    sys.exit(code)


def signalled() -> bool:
    """Whether a signal has come that stops this command."""
    return bool(_signals)


@contextlib.contextmanager
def _told(night: Night) -> Iterator[None]:
    """Let what is printed on stderr be events, where these are asked for."""
    errors.sink = night.note if night.logs else None
    try:
        with night.begun():
            yield
    finally:
        errors.sink = None


def _run(action: Callable[[], int | None], *, as_json: bool, night: Night) -> int:
    code = 1  # of what nobody foresaw
    try:
        code = _act(action, as_json=as_json, night=night)
    finally:
        code = night.ended(code)
        if night.lost is not None and not night.logs:
            errors.print(Text(night.lost))
    return code


def _act(action: Callable[[], int | None], *, as_json: bool, night: Night) -> int:
    try:
        night.check()
        return action() or 0
    except StillroomError as error:
        if _signals and not isinstance(error, Interrupted):  # it fell into a user's own code, whose failure it became
            error = Interrupted("stopped by a signal", _signals[0])
        if as_json:
            print_error(type(error).__name__, error.exit_code, error.what, error.found, error.expected, error.do)
        if night.logs:
            night.error(error, error.exit_code)
        else:
            errors.print(Text(str(error)))
        return error.exit_code
    except Exception as error:
        if as_json:
            print_error(type(error).__name__, 1, f"a failure of ours: {error}")
        if night.logs:
            night.error(error, 1, "".join(traceback.format_exception(error)))
            return 1
        sys.excepthook = _tell_failure
        raise


def _tell_failure(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """Print a traceback of what nobody foresaw; what it quotes of a user's data steers no terminal."""
    sys.stderr.write(hidden(printable("".join(traceback.format_exception(kind, error, trace))), secrets()))


@contextlib.contextmanager
def _kept_stdout(stdout: Stream) -> Iterator[Stream]:
    """Keep stdout for the one JSON value; whatever else is printed, by a user's model or a library, goes to stderr."""
    global _answers
    answers = stdout
    with contextlib.suppress(OSError):  # a captured stdout has no descriptor
        descriptor = stdout.fileno()
        stdout.flush()
        answers = Stream(os.fdopen(os.dup(descriptor), "w", encoding="utf-8"))
        os.dup2(sys.stderr.fileno(), descriptor)
    _answers, sys.stdout = answers, sys.stderr
    try:
        yield answers
    finally:
        sys.stdout, _answers = stdout, None


def _is_echo() -> bool:
    """Whether a signal is that of a moment ago: a scheduler tells a whole group, and a shell in it passes it on."""
    now_s = time.monotonic()
    is_echo = bool(_heard_s) and now_s - _heard_s[-1] < ECHO_S
    if not is_echo:
        _heard_s.append(now_s)
    return is_echo


def _interrupt(signal_number: int, frame: types.FrameType | None) -> None:
    if _is_echo() and _signals:
        return
    _signals.append(signal_number)
    raise Interrupted("stopped by a signal", signal_number)


@contextlib.contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether a signal has come, for work that stops itself at a good moment.

    A second signal, a second or more later, does not wait.
    """
    came: list[int] = []

    def handler(signal_number: int, frame: types.FrameType | None) -> None:
        if _is_echo() and came:
            return
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
    """Print one JSON value to stdout; NaN and infinity, which JSON lacks, as null."""
    print(json.dumps(finite(value), indent=2, default=str, allow_nan=False), file=_answers, flush=True)


def print_error(
    name: str, exit_code: int, what: str, found: str | None = None, expected: str | None = None, do: str | None = None
) -> None:
    """Print an error as one JSON value."""
    told = {"what": what, "found": found, "expected": expected, "do": do}
    safe = {key: None if text is None else hidden(text, secrets()) for key, text in told.items()}
    print_json({"error": name, **safe, "exit_code": exit_code})


class _Rate(ProgressColumn):
    """The rate, and about how long the rest takes; nothing before there is one."""

    def __init__(self, told: Callable[[], str]):
        super().__init__(table_column=Column(no_wrap=True))
        self._told = told

    def render(self, task: Task) -> Text:
        return Text(self._told(), style="progress.data.speed")


class Watch:
    """Progress of counted things on stderr: a bar on a terminal, elsewhere a log line, or an event, every 30 s."""

    def __init__(self, unit: str, night: Night = UNTOLD):
        self._night = night
        self._unit = self._first_unit = unit
        self._bar: Progress | None = None
        self._task: Any = None
        self._name, self._detail, self._count, self._first, self._began = "", "", 0, 0, 0.0
        self._total: int | None = 0
        self._pace = Pace(0.0)
        self._ended = threading.Event()

    def begin(self, name: str, total: int | None, done: int = 0, unit: str | None = None) -> None:
        """Begin to count `total` things, of which `done` are there already; None: nobody knows how many there are."""
        self.end()
        self._unit = unit or self._first_unit
        self._name, self._detail, self._total, self._count, self._first = name, "", total, done, done
        self._began = time.monotonic()
        self._pace = Pace(self._began)
        self._night.at(name, done, total, self._unit)
        self._night.event("stage_started", stage=name, done=done, total=total, unit=self._unit)
        if errors.is_terminal and not self._night.logs:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),  # the only one that gives way
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TextColumn(self._unit),
                _Rate(self._rate),
                console=errors,
                expand=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(name, total=total, completed=done)
        else:
            self._ended = threading.Event()
            threading.Thread(target=self._log, args=(self._ended,), daemon=True).start()

    def advance(self, count: int, detail: str = "") -> None:
        """Count some more.

        Raises:
            Interrupted: a signal has come, and its exception fell into a callback of a library that swallows them, as
                pydantic does while it serializes.
        """
        if _signals:
            raise Interrupted("stopped by a signal", _signals[0])
        self._count += count
        self._night.at(self._name, self._count, self._total, self._unit)
        if count:
            self._pace.mark(time.monotonic(), count)
        self._detail = detail or self._detail
        if self._bar is not None:
            self._bar.update(self._task, completed=self._count, description=f"{self._name} {self._detail}".rstrip())

    def detail(self, text: str) -> None:
        """Say something beside the count."""
        self.advance(0, text)

    def complete(self) -> None:
        """Count everything as done."""
        self.advance(0 if self._total is None else self._total - self._count)
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
            self._ended.set()
            self._line("stage_ended")
        self._name = ""

    def _log(self, ended: threading.Event) -> None:
        """Write a line every 30 s, whether anything is done or not, until the end."""
        while not ended.wait(LOG_EVERY_S):
            self._line()

    def _rate(self) -> str:
        """Return the rate, and about how long the rest takes; once there is none, the rate of all."""
        now = time.monotonic()
        if self._total is not None and self._total <= self._count:
            new = self._count - self._first
            return f"{si(new / max(now - self._began, 1e-3))}/s" if new else ""
        per_s = self._pace.per_s(now)
        if per_s is None:
            return ""
        return f"{si(per_s)}/s" + ("" if self._total is None else f", {told((self._total - self._count) / per_s)} left")

    def _line(self, event: str = "stage_progress") -> None:
        if self._night.logs:
            now = time.monotonic()
            figures: dict[str, Any] = {"seconds": round(now - self._began, 3), "per_s": self._pace.per_s(now)}
            counts: dict[str, Any] = {"done": self._count, "total": self._total, "unit": self._unit}
            self._night.event(event, stage=self._name, **counts, **figures, detail=self._detail)
            return
        none_left = self._total is not None and self._total <= self._count
        rate = self._rate() or ("all there already" if none_left else "")
        pace, of = f", {rate}" if rate else "", "" if self._total is None else f" of {self._total}"
        errors.print(Text(f"{self._name}: {self._count}{of} {self._unit}{pace} {self._detail}".rstrip()))


@contextlib.contextmanager
def watching(unit: str, night: Night = UNTOLD) -> Iterator[Watch]:
    """Yield a Watch that ends with the block, whatever happens in it."""
    watch = Watch(unit, night)
    try:
        yield watch
    finally:
        watch.end()
