"""The story of `student chain`: a generation is trained, asked about all rows, and the next learns from what it said.

Each step is what `cache build` and `student train` do, so that it does nothing where nothing is missing, and goes on
where it was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from jobs.files.cache_job import CacheJob
from jobs.files.chain_job import ChainJob, Generation, generations, owns, teachers_of, told_teachers
from jobs.files.reading import read_job
from jobs.files.student_job import StudentJob
from storage.errors import BadJob, BadRequest, MissingCapability
from teacher_cache.teachers.options import TeacherOptions

if TYPE_CHECKING:
    from student_train.running.train import Summary
    from teacher_cache.building.stages import BuildReport


@dataclass(frozen=True)
class Ended:
    """What became of a chain.

    Attributes:
        trained: of each generation that was come to, how its training ended.
        exit_code: 0 if all students are there; else that of the first step that was not whole.
    """

    trained: tuple[tuple[Generation, Summary], ...]
    exit_code: int


def run_chain(
    job: ChainJob,
    build: Callable[[CacheJob], BuildReport],
    train: Callable[[StudentJob], Summary],
    note: Callable[[str], None],
) -> Ended:
    """Train every generation of a job, each after those that it learns from were asked about all rows.

    Args:
        job: what is asked for.
        build: builds what is missing of a cache job.
        train: trains what is left of a student job.
        note: is told which generation begins, and why one cannot.

    Raises:
        BadJob, BadRequest: the cache job has mistakes, or teachers of its own by the names of students; or of some kind
            of `cache build` and `student train`.
        Interrupted: a signal came; the same again goes on.
    """
    steps = chain_of(job)
    ended: list[tuple[Generation, Summary]] = []
    codes: list[int] = []
    for number, (generation, asking) in enumerate(steps, start=1):
        note(f"generation {number} of {len(steps)}: {told(generation)}")
        report = build(asking)
        codes.append(report.exit_code)
        if report.failed or report.refused:  # rows that cannot be read are left out of training
            break
        summary = train(job.of(asking.cache, generation.students))
        ended.append((generation, summary))
        codes.append(summary.exit_code)
        if whys := _why_not_next(steps[number:], summary):
            for why in whys:
                note(why)
            codes.append(BadRequest.exit_code)  # of one that was set aside, which is no failure
            break
    return Ended(tuple(ended), next((code for code in codes if code), 0))


def chain_of(job: ChainJob) -> list[tuple[Generation, CacheJob]]:
    """Return each generation with the cache job that asks all whom it and those before learn from.

    Raises:
        BadJob: the cache job has mistakes, or teachers of its own by the names of students; or nobody is called as a
            teacher that is named.
        MissingCapability: what is stored of students as teachers does not serve those who learn from them.
    """
    data = read_job(job.job, CacheJob)
    spelled = {student.name.lower(): student.name for student in job.student}
    if twice := sorted(teacher.name for teacher in data.teacher if teacher.name.lower() in spelled):
        raise BadJob(
            f"{job.job} has teachers by the names of students",
            found=", ".join(twice),
            expected="names of their own: in the cache a student is a teacher by its name",
        )
    try:
        job.check_kept_outside(data.cache)
    except ValueError as error:
        raise BadJob(f"{job.job} and this chain do not go together", found=str(error)) from None
    _check_known(job, [teacher.name for teacher in data.teacher])
    _check_served(job)
    asked, found = list(data.teacher), []
    for generation in generations(job.student):
        asked = [*asked, *(TeacherOptions.model_validate(job.asked(name)) for name in generation.teachers)]
        found.append((generation, data.model_copy(update={"teacher": asked})))
    return found


def _check_known(job: ChainJob, teachers: Sequence[str]) -> None:
    """Raise BadJob if a student names a teacher that is neither a student nor one of the cache job's."""
    known = [*(student.name for student in job.student), *teachers]
    for student in job.student:
        for name in teachers_of(student):
            if name not in known:
                near = get_close_matches(name, known, 1)
                raise BadJob(
                    f"student {student.name} learns from {name}, and there is nobody of that name",
                    found=f"students and teachers {', '.join(known)}",
                    do=f'teacher = "{near[0]}"' if near else f"add it to {job.job} as a [[teacher]]",
                )


def _check_served(job: ChainJob) -> None:
    """Raise MissingCapability if a term needs what [teaching] does not store of a student: later, hours are lost."""
    from student_train.losses import LOSSES

    names = {student.name for student in job.student}
    for student in job.student:
        for term in student.objective:
            needs = LOSSES[term.loss].needs(term)
            lacks = {str(need.capability): job.teaching.encoding.lacks(need.capability) for need in needs.soft}
            lacks |= {
                key.array: f"features = {{ {name} = {{ layer = … }} }}"
                for key in needs.features
                if (name := key.array.removeprefix("feature/")) not in job.teaching.features
            }
            lacking = {need: remedy for need, remedy in lacks.items() if remedy is not None}
            if lacking and names.intersection(own for each in needs.teachers for own in owns(each)):
                raise MissingCapability(
                    f"{term.name} of student {student.name} needs what [teaching] does not store of students",
                    found="; ".join(job.teaching.encoding.serves) or "no soft targets",
                    expected="; ".join(sorted(lacking)),
                    do=f"in [teaching]: {'; '.join(dict.fromkeys(lacking.values()))}",
                )


def told(generation: Generation) -> str:
    """Return the students of a generation, and whom they learn from, in words."""
    of: dict[str, list[str]] = {}
    for student in generation.students:
        of.setdefault(told_teachers(student), []).append(student.name)
    return "; ".join(f"{', '.join(names)} from {teachers}" for teachers, names in of.items())


def _why_not_next(later: Sequence[tuple[Generation, CacheJob]], summary: Summary) -> list[str]:
    """Return of those who were to teach why they do not."""
    teaching = {name for generation, _ in later for name in generation.teachers}
    lost = [*summary.errors, *(record.student for record in summary.records if record.status != "finished")]
    return [f"nobody can learn from {name}: it has not come to its end" for name in lost if name in teaching]
