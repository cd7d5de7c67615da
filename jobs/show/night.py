"""What a command that nobody watches leaves behind: a line of JSON for each event, and figures for Prometheus.

Events and figures are told, by name, in docs/nights.md; a test compares the two.
"""

from __future__ import annotations

import io
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TextIO

from jobs.show.figures import Figures
from jobs.show.streams import hidden, secrets
from storage.errors import StillroomError
from storage.options import redacted

LogFormat = Literal["text", "json"]
Level = Literal["info", "warning", "error"]

MOST_CHARACTERS = 32_768  # of one text; a line is read by programs that have such limits
RENEW_S = 30.0  # as often as a log has a line


class Night:
    """A command as whoever looks at it in the morning is told of it.

    Args:
        command: such as "cache build".
        subject: its job file, or its cache.
        log_format: json for a line of JSON on stderr for each event, in place of text and bars.
        metrics_file: figures of the command for Prometheus, written each half minute and at its end; None for none.

    Attributes:
        figures: that it has so far.
        lost: why they could not be written at the end, or None.
    """

    def __init__(self, command: str, subject: object, log_format: LogFormat = "text", metrics_file: Path | None = None):
        text = str(subject)  # one file by whatever name, and never what opens a store
        self.command, self.subject = command, redacted(text) if "://" in text else os.path.abspath(text)
        self.logs = log_format == "json"
        self.figures = Figures(command, self.subject)
        self._metrics_file, self._checked = metrics_file, False
        self.lost: str | None = None
        self._lines: _Lines | None = None
        self._at: tuple[str, int, int | None, str] | None = None
        self._ended = threading.Event()
        self._renewing: threading.Thread | None = None
        self._began_s = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return for how long the command has run."""
        return time.monotonic() - self._began_s

    def at(self, stage: str, done: int, total: int | None, unit: str) -> None:
        """Keep how far the work at hand is; of how much, if that is known."""
        self._at = stage, done, total, unit

    def event(self, event: str, level: Level = "info", **fields: Any) -> None:
        """Write an event, if lines of JSON are asked for."""
        if self._lines is not None:
            self._lines.write({"event": event, "level": level, "command": self.command} | fields)

    def error(self, error: BaseException, exit_code: int, trace: str | None = None) -> None:
        """Write what the command failed by."""
        self.event("error", "error", **told(error), exit_code=exit_code, **({} if trace is None else {"trace": trace}))

    def note(self, text: str) -> None:
        """Write what else would be printed."""
        self.event("note", "warning" if text.startswith("warning") else "info", text=text)

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Take stderr for the lines, as long as this lasts."""
        if not self.logs:
            yield
            return
        before = sys.stderr
        self._lines = _Lines(before, secrets())
        sys.stderr = others = _Others(before, lambda text: self.event("output", text=text))
        try:
            host = socket.gethostname()
            self.event("started", subject=self.subject, host=host, pid=os.getpid(), version=version("stillroom"))
            yield
        finally:
            others.flush()
            sys.stderr, self._lines = before, None

    def check(self) -> None:
        """Check that figures can be written, and write them now and then from here on. Raises BadRequest."""
        if self._metrics_file is not None:
            self.figures.check(self._metrics_file)
            self._checked = True
            self._renewing = threading.Thread(target=self._renew, args=(self._metrics_file,), daemon=True)
            self._renewing.start()

    def ended(self, exit_code: int) -> int:
        """Write the figures, and say that the command has ended; return its exit code, 1 if they are lost."""
        seconds = self.seconds
        self._ended.set()
        if self._renewing is not None:
            self._renewing.join()
        if self._metrics_file is not None and self._checked:
            try:
                self.figures.end(self._metrics_file, exit_code, seconds)
            except StillroomError as error:
                exit_code = exit_code or error.exit_code
                self.lost = str(error)
                self.error(error, exit_code)
        sys.stderr.flush()  # what others have begun to write comes before the end
        self.event("ended", "error" if exit_code else "info", exit_code=exit_code, seconds=round(seconds, 3))
        return exit_code

    def _renew(self, path: Path) -> None:
        while not self._ended.wait(RENEW_S):
            with suppress(StillroomError):  # the next time, or it is told at the end
                self.figures.renew(path, self._at)


def told(error: BaseException) -> dict[str, Any]:
    """Return what an error says, by parts."""
    if isinstance(error, StillroomError):
        parts = {"what": error.what, "found": error.found, "expected": error.expected, "do": error.do}
        return {"error": type(error).__name__} | parts
    return {"error": type(error).__name__, "what": str(error), "found": None, "expected": None, "do": None}


def finite(value: Any) -> Any:
    """Return a value for JSON, in which NaN and infinity, which it lacks, are null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(below) for key, below in value.items()}
    return [finite(below) for below in value] if isinstance(value, list | tuple) else value


class _Lines:
    """Writes events to a stream, whole lines, from any thread."""

    def __init__(self, stream: TextIO, secret: tuple[str, ...]):
        self._stream, self._secret = stream, secret
        self._lock = threading.Lock()

    def write(self, event: dict[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"time": now} | self._safe(finite(event)), default=str, allow_nan=False)
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()

    def _safe(self, value: Any) -> Any:
        if isinstance(value, str):
            value = hidden(value, self._secret)
            return value if len(value) <= MOST_CHARACTERS else f"{value[:MOST_CHARACTERS]}…"
        if isinstance(value, dict):
            return {str(key): self._safe(below) for key, below in value.items()}
        return [self._safe(below) for below in value] if isinstance(value, list) else value


class _Others(io.TextIOBase):
    """Stderr to libraries and to a user's own code, whose lines become events."""

    def __init__(self, inner: TextIO, tell: Callable[[str], None]):
        self._inner, self._tell = inner, tell
        self._lock, self._rest = threading.RLock(), ""

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).replace("\r", "\n").split("\n")
            if len(self._rest) > MOST_CHARACTERS:
                lines, self._rest = [*lines, self._rest], ""
            for line in filter(str.strip, lines):
                self._tell(line)
        return len(text)

    def flush(self) -> None:
        with self._lock:
            if self._rest.strip():
                self._tell(self._rest)
            self._rest = ""

    def fileno(self) -> int:
        return self._inner.fileno()

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True
