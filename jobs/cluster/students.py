"""`student train` on several devices: groups of students as work for Dask, one group a device.

The command checks the job, splits what is left of it into groups, and watches; workers read the cache and write the
runs (`jobs.cluster.student_work`). What a group fails by, its students fail by; those of other groups do not notice.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.cluster.attendance import Attendance
from jobs.cluster.batch.submitting import job_script
from jobs.cluster.flight import TRIES, Left, one_each, run_work, wait_for_workers
from jobs.cluster.groups import Group, local_workers, make_groups, project_groups
from jobs.cluster.heaps import HEAPS, VARIABLE
from jobs.cluster.opening import open_client
from jobs.cluster.sending import sent
from jobs.cluster.student_work import GroupDone, GroupWork, as_json, beacon, stop_groups, train_group
from jobs.files.cluster_options import StudentClusterOptions, num_processors
from jobs.files.student_job import StudentJob
from jobs.show.terminal import Watch
from jobs.show.train_progress import TrainProgress
from storage.errors import Interrupted, StillroomError, WorkerDied
from storage.format.objects import LocalObjects
from student_train.feed.devices import find_device
from student_train.options.sections import FleetOptions
from student_train.preparing.identity import settled_record
from student_train.preparing.installed import check_installed
from student_train.preparing.prepare import prepare
from student_train.preparing.request import PreparedRun, Request
from student_train.preparing.weighing.projection import MemoryProjection
from student_train.run_files.records import RunRecord
from student_train.running.train import Summary, skip_settled
from student_train.tasks import TASKS

if TYPE_CHECKING:
    from distributed import Client

DEATHS = 1  # of its worker, that a group survives: its students go on from their checkpoints
_JOB = {VARIABLE: str(HEAPS)}  # the variables of a worker that is a job
RECORD_S = 90.0  # until a network file system shows what another machine has written


@dataclass(frozen=True)
class ClusterDryRun:
    """What `train_on_cluster` would do.

    Attributes:
        students: all of the job.
        groups: of what is left; none if that is nothing.
        memory: of each group's worker; None where workers are elsewhere, and project it themselves.
        script: of the jobs that would be submitted; None if none would.
    """

    students: Sequence[PreparedRun]
    groups: Sequence[Group]
    memory: Sequence[MemoryProjection] | None
    script: str | None = None


def dry_run_on_cluster(options: StudentClusterOptions, request: Request, attendance: Attendance) -> ClusterDryRun:
    """Return what `train_on_cluster` would do, after the same checks.

    Raises:
        BadRequest: of some kind.
        TryAgain: no scheduler, or no workers.
    """
    students = prepare(request)
    if all(student.settled is not None for student in students):
        return ClusterDryRun(students, (), None)
    if options.kind == "local":
        _, groups = _local(options, request, students)
        return ClusterDryRun(students, groups, project_groups(request, groups))
    if options.submits:
        script = job_script(options, _JOB, at_once=1)
        return ClusterDryRun(students, _groups_of_jobs(options, request, students), None, script)
    with _opened(options, request, students, lambda: False, attendance) as (_, groups):
        return ClusterDryRun(students, groups, None)


def train_on_cluster(
    job: StudentJob, request: Request, watch: Watch, stop: Callable[[], bool], attendance: Attendance
) -> Summary:
    """Train every student of a job that is not settled yet, in groups on the workers of its cluster.

    Args:
        job: its `[cluster]` is not `inline`.
        request: of the job.
        watch: shows one bar over the steps of all students.
        stop: asked about once a second; if it says so, all students write checkpoints and Interrupted is raised.
        attendance: looks after the workers.

    Raises:
        BadRequest: of some kind; nothing was started.
        TryAgain: no scheduler, or no workers.
        Interrupted: `stop` said so.
    """
    students, progress, errors = prepare(request), TrainProgress(watch), {}
    skip_settled(students, progress.report)
    if any(student.settled is None for student in students):
        with _opened(job.cluster, request, students, stop, attendance) as (client, groups):
            errors = _train(client, job, request, groups, watch, stop, attendance)
    return _summary(students, errors, request.fleet)


def _local(
    options: StudentClusterOptions, request: Request, students: Sequence[PreparedRun]
) -> tuple[list[dict[str, str]], list[Group]]:
    """Return the environments of workers on this machine, and what each of them is to train."""
    check_installed(request.fleet.track)
    environments = local_workers(options, request)
    groups = make_groups(request, students, len(environments), find_device(request.device).type)
    return environments[: len(groups)], groups


@contextlib.contextmanager
def _opened(
    options: StudentClusterOptions,
    request: Request,
    students: Sequence[PreparedRun],
    stop: Callable[[], bool],
    attendance: Attendance,
) -> Iterator[tuple[Client, list[Group]]]:
    """Yield a client of the cluster, and what its workers are to train."""
    if options.kind == "local":
        environments, groups = _local(options, request, students)
        if find_device(request.device).type == "cpu":  # a GPU's memory is looked at by its own worker
            project_groups(request, groups)
        ignored = (signal.SIGINT, signal.SIGTERM)  # a whole process group may get them; the command says when to stop
        with open_client(options, environments=environments, ignored=ignored) as client:
            yield client, groups
    elif options.submits:
        groups = _groups_of_jobs(options, request, students)
        jobs = options.model_copy(update={"workers": len(groups)})  # a job without students would wait for nothing
        with open_client(jobs, environments=[_JOB], attendance=attendance) as client:
            yield client, groups
    else:
        with open_client(options, environments=[_JOB], attendance=attendance) as client:
            workers = wait_for_workers(client, stop, attendance)
            yield client, make_groups(request, students, workers, _most_likely(request))


def _groups_of_jobs(options: StudentClusterOptions, request: Request, students: Sequence[PreparedRun]) -> list[Group]:
    """Return what jobs of a batch scheduler are to train: as many groups as there may be jobs, come when they may."""
    return make_groups(request, students, options.num_workers, _most_likely(request))


def _most_likely(request: Request) -> str:
    """Return the device that workers elsewhere most likely have."""
    return "cpu" if request.device == "cpu" else "cuda"


def _train(
    client: Client,
    job: StudentJob,
    request: Request,
    groups: Sequence[Group],
    watch: Watch,
    stop: Callable[[], bool],
    attendance: Attendance,
) -> dict[str, StillroomError]:
    """Train groups to their ends; return the errors of students that failed, by name."""
    command = uuid.uuid4().hex[:12]
    threads = job.cluster.threads
    if threads is None and job.cluster.kind == "local":
        threads = max(1, num_processors() // len(groups))
    elif threads is None and job.cluster.of_batch:
        threads = job.cluster.num_threads
    works = [_work_of(job, group, request, threads, command) for group in groups]
    running, errors = {group.name: group for group in groups}, dict[str, StillroomError]()
    bar = _Bar(client, command, watch, works)

    def going_on() -> bool:
        bar.show()
        if not stop():
            return True
        if client.status == "running":
            with contextlib.suppress(OSError):  # the scheduler may go at this very moment; `run_work` tells
                client.run(sent(stop_groups, command), on_error="ignore")
        return False

    with (
        _beacon(request, command),
        contextlib.closing(
            run_work(
                client,
                train_group,
                works,
                places=one_each,
                deaths=DEATHS,
                going_on=going_on,
                attendance=attendance,
                progress=bar.done,
            )
        ) as results,
    ):
        for work, result in results:
            if isinstance(result, Interrupted):
                continue
            bar.end(work.key, result)
            errors |= _errors(running.pop(work.key), result, request.fleet)
    if running:
        names = [student.options.name for group in running.values() for student in group.left]
        raise Interrupted(f"{len(names)} students stopped" if len(names) > 1 else f"student {names[0]} stopped")
    return errors


def _work_of(job: StudentJob, group: Group, request: Request, threads: int | None, command: str) -> GroupWork:
    """Return what a worker is sent: a job of these students alone, who see the views that all of the job do."""
    students = [student.options for student in group.students]
    views = group.students[0].train.views
    own = job.model_copy(update={"student": students, "defaults": {}, "views": 0 if views is None else views.count})
    return GroupWork(
        key=group.name,
        job=as_json(own),
        device=request.device,
        threads=threads,
        command=command,
        steps={student.options.name: _steps(student) for student in group.left},
    )


def _steps(student: PreparedRun) -> tuple[int, int]:
    """Return the steps that a student has taken, and those of its whole run."""
    position = student.position
    done = 0 if position is None else position.epoch * student.steps_an_epoch + position.step
    return done, student.total_steps


@contextlib.contextmanager
def _beacon(request: Request, command: str) -> Iterator[None]:
    """Keep a file in the runs folder, so that workers know that they see the same."""
    objects, name = LocalObjects(request.runs), beacon(request.runs, command).name
    objects.put(name, b"")
    try:
        yield
    finally:
        objects.delete(name)


def _errors(group: Group, result: GroupDone | Exception, fleet: FleetOptions) -> dict[str, StillroomError]:
    """Return the errors of a group's students, by name: their own, or what the whole group failed by."""
    if isinstance(result, GroupDone):
        return result.errors
    unsettled = [student.options.name for student in group.left if _record(student, fleet) is None]
    if isinstance(result, WorkerDied):
        do = "look at its log, and at its memory; the same command goes on from the last checkpoint"
        return {name: WorkerDied(f"student {name} was lost with its worker, twice", do=do) for name in unsettled}
    if isinstance(result, StillroomError):
        return dict.fromkeys(unsettled, result)
    if isinstance(result, Left):
        do = "give jobs more time: `time` in [cluster]; the same command goes on from the last checkpoint"
        return {name: StillroomError(f"student {name} got no further in {TRIES} jobs", do=do) for name in unsettled}
    return {name: StillroomError(f"student {name} failed", found=repr(result)) for name in unsettled}


def _summary(students: Sequence[PreparedRun], errors: dict[str, StillroomError], fleet: FleetOptions) -> Summary:
    """Return what became of all; a record that another machine has written may take a while to be seen."""
    records, unseen, deadline_s = [], dict[str, StillroomError](), time.monotonic() + RECORD_S
    for student in students:
        name = student.options.name
        if name in errors:
            continue
        while (record := _record(student, fleet)) is None and time.monotonic() < deadline_s:
            time.sleep(1)
        if record is not None:
            records.append(record)
        else:
            unseen[name] = StillroomError(
                f"student {name} was trained, but its record is not there",
                found=f"nothing in {student.folder} after {RECORD_S:.0f} s",
                do="look whether `runs` is one folder for the command and all workers",
            )
    return Summary(tuple(records), errors | unseen)


def _record(student: PreparedRun, fleet: FleetOptions) -> RunRecord | None:
    """Return the record of a student that needs no more training, as it is now."""
    return settled_record(student.folder, student.identity, fleet, TASKS[student.blueprint.asked.name].best_by)


class _Bar:
    """One bar over the steps of all groups, from what their workers tell.

    Args:
        client: through which they do.
        command: the topic.
        watch: shows it.
        works: of all groups.
    """

    def __init__(self, client: Client, command: str, watch: Watch, works: Sequence[GroupWork]):
        self._watch = watch
        self._told = queue.SimpleQueue[dict[str, Any]]()
        client.subscribe_topic(command, lambda event: self._told.put(event[1]))
        steps = [steps for work in works for steps in work.steps.values()]
        self._done = {work.key: sum(done for done, _ in work.steps.values()) for work in works}
        watch.note(f"{len(steps)} students in {len(works)} groups, one a worker")
        watch.begin(f"{len(steps)} students", sum(total for _, total in steps), sum(done for done, _ in steps))

    def show(self) -> None:
        """Show what was told since."""
        while not self._told.empty():
            self._show(self._told.get())

    def done(self, work: GroupWork) -> int:
        """Return the steps of a group that were told of so far."""
        self.show()
        return self._done[work.key]

    def end(self, group: str, result: GroupDone | Exception) -> None:
        """Show what a group ended with."""
        self.show()
        if isinstance(result, GroupDone):
            self._show(result.told)
            counts = Counter([*result.statuses.values(), *["failed"] * len(result.errors)])
            self._watch.note(f"{group}: {', '.join(f'{count} {status}' for status, count in counts.items())}")
        else:
            self._watch.note(f"{group}: {result}")

    def _show(self, told: dict[str, Any]) -> None:
        group = told["group"]
        for note in told["notes"]:
            self._watch.note(f"{group}: {note}")
        self._watch.advance(told["done"] - self._done[group], f"{group} {told['detail']}".rstrip())
        self._done[group] = told["done"]
