"""Output never fails a job: what cannot be written is lost and told, what no terminal should get is spelled out.

And what opens a store or a server is not written at all.
"""

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
from storage.options import holds_secret

SHORTEST_SECRET = 8  # what is shorter is a switch


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

    Args:
        inner: where it goes.
        secret: what is never written there.

    Attributes:
        failure: what it was, or None.
    """

    def __init__(self, inner: TextIO, secret: tuple[str, ...] = ()):
        self._inner, self._secret = inner, secret
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or lose, a text."""
        self._try(lambda: self._inner.write(hidden(text, self._secret)))
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
    inner = [stream or open(os.devnull, "w", encoding="utf-8") for stream in before]  # noqa: SIM115
    out, err = Stream(inner[0]), Stream(inner[1], secrets())  # results are a user's own words, whatever they are
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def secrets() -> tuple[str, ...]:
    """Return what of the environment is never to be written, the longest first.

    Of what has lines each of them, as others write them; of an address also its user and password.
    """
    held = [value for name, value in os.environ.items() if holds_secret(name, value)]
    found = {part for value in held for part in (value, *value.splitlines(), *_opening(value))}
    return tuple(sorted((part for part in found if len(part) >= SHORTEST_SECRET), key=len, reverse=True))


def _opening(url: str) -> list[str]:
    """Return what opens an address: `user:password`, and the password alone.

    >>> _opening("http://me:word@tracker:5000"), _opening("word@tracker")
    (['me:word', 'word'], [])
    """
    user, at, _ = url.partition("://")[2].rpartition("@")
    return [user, user.partition(":")[2]] if at else []


def hidden(text: str, secret: Iterable[str]) -> str:
    """Return a text with … in the place of each secret, of which longer ones come first.

    >>> hidden("no access with word-and-more", ("word-and-more", "word"))
    'no access with …'
    """
    for each in secret:
        text = text.replace(each, "…")
    return text


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
