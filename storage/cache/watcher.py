"""What watches a long command: a bar on a terminal, a line in a log, what a worker sends to its command, or a test."""

from __future__ import annotations

from typing import Protocol


class Watcher(Protocol):
    """Counts things, one stretch of work after another, and passes on what the user should see at once."""

    def begin(self, name: str, total: int | None, done: int = 0, unit: str | None = None) -> None:
        """Begin to count `total` things, if known, of which `done` are there; what was counted before has ended."""

    def advance(self, count: int, detail: str = "") -> None:
        """Count some more."""

    def detail(self, text: str) -> None:
        """Say something beside the count."""

    def complete(self) -> None:
        """Count everything as done."""

    def note(self, text: str) -> None:
        """Tell something that should be seen at once."""
