"""What `student train` and `student chain` share: a job's students are trained, here or on a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobs.cluster.attendance import Attendance
    from jobs.files.student_job import StudentJob
    from jobs.show.night import Night
    from jobs.show.terminal import Watch
    from student_train.preparing.request import Request
    from student_train.running.events import Report
    from student_train.running.train import Summary


def train_job(
    job: StudentJob,
    request: Request,
    watch: Watch,
    stop: Callable[[], bool],
    night: Night,
    attendance: Attendance,
    *,
    wait: bool,
) -> Summary:
    """Train what is left of a job, while no other command trains the same; tell what a user should know of it.

    Raises:
        TryAgain: another command does, and it is not waited for; or as `train_students`.
    """
    from jobs.show.notice import notice_of
    from student_train.options.sections import told
    from student_train.run_files.locks import job_locked

    if request.cache.unproven is not None:
        watch.note(request.cache.unproven)
    if (notice := notice_of(request.cache)) is not None:
        watch.note(notice)
    if request.data.measures_trained_rows:
        shared = f"{told(job.validation)} and {told(job.train)} share rows"
        watch.note(f"note: {shared}; the students are measured on what they were trained on")
    names = [student.name for student in request.students]
    with job_locked(job.runs, names, wait=wait, note=watch.note, stop=stop):
        return _train_students(job, request, watch, stop, night, attendance)


def train_here(job: StudentJob, request: Request, report: Report, stop: Callable[[], bool]) -> Summary:
    """Train in this process."""
    import torch

    from student_train.running.train import train_students

    if job.cluster.threads is not None:
        torch.set_num_threads(job.cluster.threads)
    return train_students(request, report=report, stop=stop)


def _train_students(
    job: StudentJob,
    request: Request,
    watch: Watch,
    stop: Callable[[], bool],
    night: Night,
    attendance: Attendance,
) -> Summary:
    """Train in this process, or on the workers of a cluster."""
    if job.cluster.kind == "inline":
        from jobs.show.train_events import TrainEvents
        from jobs.show.train_progress import TrainProgress

        told = TrainEvents(night) if night.logs else TrainProgress(watch)
        return train_here(job, request, told.report, stop)
    from jobs.cluster.students import train_on_cluster

    if request.fleet.halving is not None:
        watch.note("note: [halving] compares the students of one group with each other, not those of all")
    return train_on_cluster(job, request, watch, stop, attendance)
