"""What `student chain --dry-run` says: which generation comes when, and what is left to do of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from jobs.chain.chain import chain_of
from jobs.files.chain_job import ChainJob, Generation, told_teachers
from student_train.run_files.records import lost_files, read_record

if TYPE_CHECKING:
    from student_train.feed.devices import Device


class Foreseen(NamedTuple):
    """What would become of one student.

    Attributes:
        generation: from 1.
        student, teachers: its name, and whom it learns from.
        action: "skip" a settled one, "resume" from a checkpoint, or "train"; "later" where that cannot be told before
            those that it learns from are trained, and asked about all rows.
        shards: how many its generation waits for to be built; None: nobody knows yet.
    """

    generation: int
    student: str
    teachers: str
    action: Literal["skip", "resume", "train", "later"]
    shards: int | None


def foretell(job: ChainJob, device: Device) -> list[Foreseen]:
    """Return what `run_chain` would do, each generation checked as far as those before it are there.

    Raises:
        BadRequest: as `run_chain`, before anything is trained.
    """
    from student_train.preparing.dry_run import dry_run
    from student_train.stepping.parallel import ALONE
    from teacher_cache.building.survey import prepare_build

    found: list[Foreseen] = []
    ready = True
    for number, (generation, asking) in enumerate(chain_of(job), start=1):
        ready = ready and all(_is_there(job, name) for name in generation.teachers)
        shards = prepare_build(asking.request(job.job, device=device)).num_missing if ready else None
        ready = ready and not shards
        actions = {}
        if ready:
            request = job.of(asking.cache, generation.students).request(device, ALONE)
            actions = {each.student: each.action for each in dry_run(request).students}
        found += _of(number, generation, actions, shards)
    return found


def _is_there(job: ChainJob, name: str) -> bool:
    """Return whether a student that is to teach has come to its end."""
    record = read_record(job.runs / name)
    return record is not None and record.status == "finished" and not lost_files(job.runs / name, record)


def _of(
    number: int,
    generation: Generation,
    actions: dict[str, Literal["skip", "resume", "train"]],
    shards: int | None,
) -> list[Foreseen]:
    return [
        Foreseen(
            number,
            student.name,
            told_teachers(student),
            actions.get(student.name, "later"),
            shards,
        )
        for student in generation.students
    ]
