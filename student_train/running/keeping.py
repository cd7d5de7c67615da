"""What is told of the folder of this machine in which shards are kept."""

from __future__ import annotations

from storage.format.objects import KeptObjects
from student_train.running.events import Event, NotKept, Report, ShardsKept


def with_notes(kept: KeptObjects | None, report: Report) -> Report:
    """Return what passes events on, and before each what has gone wrong with the folder since the one before.

    Shards are read by many threads, and events are told by one. Where nothing is kept, `report` itself.
    """
    if kept is None:
        return report

    def told(event: Event) -> None:
        for note in kept.notes():
            report(NotKept(str(kept.folder), note))
        report(event)

    return told


def tell_kept(kept: KeptObjects | None, report: Report) -> None:
    """Tell how much came from the folder, if there is one."""
    if kept is not None:
        report(ShardsKept(str(kept.folder), kept.read_bytes, kept.fetched_bytes))
