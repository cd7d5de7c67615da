"""Output never fails a job: what cannot be written is lost and told, and what no terminal should get is spelled out."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.text import Text

from storage.errors import printable


class SafeConsole(Console):
    """Prints text as it is, without markup of its own, and nothing in it that a terminal would obey.

    Attributes:
        sink: takes each text in place of the stream, where there is one.
    """

    sink: Callable[[str], None] | None = None

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as `rich.console.Console.print`; text is printable before its width is taken."""
        if self.sink is not None:
            self.sink(" ".join(each.plain if isinstance(each, Text) else str(each) for each in objects))
            return
        super().print(*map(_shown, objects), **options)

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Return segments as `rich.console.Console.render`, whatever a table or a bar was made of."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


class Stream:
    """A stream that never raises: the first failure ends it, and is kept.

    Attributes:
        failure: what it was, or None.
    """

    def __init__(self, inner: TextIO):
        self._inner = inner
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or lose, a text."""
        self._try(lambda: self._inner.write(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write, or lose, lines."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Hand on what was written."""
        self._try(self._inner.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _try(self, act: Any) -> None:
        if self.failure is not None:
            return
        try:
            act()
        except OSError as error:
            self.failure = error
            with contextlib.suppress(OSError, ValueError):  # the rest of it has nowhere to go, at exit neither
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._inner.fileno())
                os.close(nowhere)


@contextlib.contextmanager
def streams() -> Iterator[Stream]:
    """Let stdout and stderr of this process take any text and never raise; yield stdout.

    What their encoding lacks is written as an escape, and a name that is no UTF-8 is too.
    """
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):
            _open_closed(descriptor)
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):  # of a test or a notebook it may be anything
            stream.reconfigure(errors="backslashreplace")
    # None: closed before this process began
    out, err = (Stream(stream or open(os.devnull, "w", encoding="utf-8")) for stream in before)  # noqa: SIM115
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def lost(stream: Stream) -> str | None:
    """Return why what was written has not arrived, or None; a reader that went away has had what it wanted."""
    failure = stream.failure
    return None if failure is None or failure.errno == errno.EPIPE else failure.strerror or str(failure)


def _open_closed(descriptor: int) -> None:
    """Open the null device where a descriptor was closed: the next file would take its place, and what is printed."""
    try:
        os.fstat(descriptor)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return Text(printable(value))
    if isinstance(value, Text) and (plain := printable(value.plain)) != value.plain:
        return Text(plain)
    return value
