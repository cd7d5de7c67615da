"""One shard from start to end, whichever stage it belongs to: what a worker is sent."""

from __future__ import annotations

from teacher_cache.work.ask import teach_shard
from teacher_cache.work.ingest import ingest_shard
from teacher_cache.work.pieces import Done, Task
from teacher_cache.work.recode import recode_shard


def perform(task: Task) -> Done:
    """Return what became of a task, after doing it."""
    if task.richer:
        return recode_shard(task)
    return ingest_shard(task) if task.key.teacher is None else teach_shard(task)
