"""What `student train --dry-run` says: which students would be trained, in which groups, in how much memory."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import polars as pl

from jobs.show import terminal
from jobs.show.tables import print_memory, print_script, print_table
from storage.errors import si
from student_train.preparing.dry_run import dry_run, foresee

if TYPE_CHECKING:
    from jobs.cluster.students import ClusterDryRun
    from jobs.files.student_job import StudentJob
    from student_train.preparing.dry_run import DryRun
    from student_train.preparing.request import Request


def foretell(job: StudentJob, request: Request, *, allow_versions: bool, as_json: bool) -> None:
    """Say what would become of each student, here or in groups on a cluster, with a bound on memory."""
    if job.cluster.kind == "inline":
        _print_students(dry_run(request), as_json)
    else:
        from jobs.cluster.attendance import Attendance
        from jobs.cluster.students import dry_run_on_cluster

        def note(text: str) -> None:
            terminal.errors.print(text, markup=False)

        attendance = Attendance(note, allow_versions=allow_versions)
        _print_groups(dry_run_on_cluster(job.cluster, request, attendance), as_json)


def _print_students(found: DryRun, as_json: bool) -> None:
    students = [asdict(student) for student in found.students]
    if as_json:
        memory = None if found.memory is None else asdict(found.memory)
        terminal.print_json({"students": students, "memory": memory, "warnings": found.warnings})
        return
    _print_foreseen(pl.DataFrame(students))
    if (bound := found.memory) is not None:
        device = "" if bound.device_bytes is None else f" ({si(bound.device_bytes, 'B')} on the device)"
        print_memory(f"memory{device}", bound.host_bytes, bound.parts)
        terminal.out.print(f"rows: {bound.residency.place} ({bound.residency.why})")
    for warning in found.warnings:
        terminal.out.print(warning, markup=False)
    terminal.out.print("a dry run: nothing was written")


def _print_foreseen(students: pl.DataFrame) -> None:
    """Print what would become of students; rows that all have stand above them, which leaves room for names.

    How long is told as their jobs say it, in epochs, or in steps and how many epochs these are.
    """
    whole = pl.col("done_epochs", "epochs").cast(pl.Int64)
    if not students["by_steps"].any():
        students = students.drop("done_steps", "steps").with_columns(whole)
    elif students["by_steps"].all():
        students = students.drop("done_epochs")
    students = students.drop("by_steps")
    counts = ["train_rows", "validation_rows"]
    if students.select(counts).n_unique() == 1:
        trained, held = students.select(counts).row(0)
        terminal.out.print(f"{trained:,} rows to train on, {held:,} held")
        students = students.drop(counts)
    print_table(students)


def _print_groups(found: ClusterDryRun, as_json: bool) -> None:
    """Print which students would be trained in which group, and in how much memory."""
    group_of = {student.options.name: group.number for group in found.groups for student in group.left}
    students = [
        {"student": student.options.name, "group": group_of.get(student.options.name)} | asdict(foresee(student))
        for student in found.students
    ]
    groups = [
        {"group": group.number, "students": len(group.left), "work": group.share}
        | ({} if found.memory is None else {"bytes": found.memory[place].host_bytes})
        for place, group in enumerate(found.groups)
    ]
    if as_json:
        memory = None if found.memory is None else [asdict(memory) for memory in found.memory]
        jobs = {} if found.script is None else {"job_script": found.script}
        terminal.print_json({"students": students, "groups": groups, "memory": memory, **jobs})
        return
    _print_foreseen(pl.DataFrame(students))
    if groups:
        shown = pl.DataFrame(groups).with_columns(work=(100 * pl.col("work")).round().cast(pl.Int64).cast(str) + " %")
        print_table(
            shown, title="one group a worker; bytes: its memory, at most" if found.memory else "one group a worker"
        )
    if found.script is not None:
        print_script(found.script)
    terminal.out.print("a dry run: nothing was written")
