"""One shard from start to end, whichever work it is: what a worker runs."""

from __future__ import annotations

from teacher_cache.work.ask import ask_shard
from teacher_cache.work.ingest import ingest_shard
from teacher_cache.work.pieces import AskWork, Done, IngestWork, RecodeWork, Work
from teacher_cache.work.recode import recode_shard


def perform(work: Work) -> Done:
    """Return what became of a piece of work, after doing it."""
    match work:
        case IngestWork():
            return ingest_shard(work)
        case AskWork():
            return ask_shard(work)
        case RecodeWork():
            return recode_shard(work)
