"""`student`: train students from a cache, and compare them.

Thin on purpose, like `cache_cli`: parse, call a room, print.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.arguments import Device, DeviceOption, JobArgument, JsonOption, run_program

if TYPE_CHECKING:
    from jobs.terminal import Watch
    from student_train.dry_run import DryRun
    from student_train.events import EpochDone, Event
    from student_train.parallel import Parallel

app = typer.Typer(
    help="Train many students from a cache of soft targets; no teacher is loaded.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the plan and the memory bound; do nothing.")]
IDLE_SHARE = 0.01  # of the gradient; below it a term is worth a note
RunsArgument = Annotated[Path, typer.Argument(metavar="RUNS", help="A folder of runs.")]


@app.command()
def train(
    job: JobArgument, dry_run: DryRunOption = False, device: DeviceOption = "auto", as_json: JsonOption = False
) -> None:
    """Train every student of the job; finished ones are skipped, interrupted ones resume."""
    from jobs import terminal

    def action() -> int:
        from student_train.parallel import joined

        with joined() as parallel:  # others, where torchrun started this
            return _train(job, dry_run, device, as_json, parallel)

    terminal.run(action, as_json=as_json)


@app.command()
def compare(runs: RunsArgument, as_json: JsonOption = False) -> None:
    """Show a table of students: parameters, accuracy, agreement with the teacher, time."""
    from jobs import terminal

    def action() -> int:
        from student_train.results import compare_runs

        if as_json:
            terminal.print_json(compare_runs(runs).to_dicts())
        else:
            _print_comparison(runs)
        return 0

    terminal.run(action, as_json=as_json)


@app.command()
def report(
    runs: RunsArgument,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write it; else RUNS/report.html.")] = None,
    cache: Annotated[str | None, typer.Option(metavar="URL", help="Where their cache lies, if it has moved.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML page about all students of a folder; it opens offline."""
    from jobs import terminal

    def action() -> int:
        from student_train.report import write_report

        written = write_report(runs, out, cache)
        if as_json:
            terminal.print_json(
                {
                    "report": str(written.path),
                    "students": written.students,
                    "bytes": written.size_bytes,
                    "left_out": list(written.notices),
                    "exit_code": written.exit_code,
                }
            )
            return written.exit_code
        for notice in written.notices:
            terminal.errors.print(f"left out: {notice}", markup=False)
        size = terminal.si(written.size_bytes, "B")
        students = f"{written.students} student{'s' if written.students > 1 else ''}"
        terminal.out.print(f"{written.path}: {students}, {size}", markup=False, soft_wrap=True)
        return written.exit_code

    terminal.run(action, as_json=as_json)


def _train(job: Path, dry_run: bool, device: Device, as_json: bool, parallel: Parallel) -> int:
    from jobs import terminal
    from jobs.files import read_job
    from jobs.student_job import StudentJob
    from storage.cache import Cache
    from student_train.options import DataOptions, FleetOptions
    from student_train.prepare import Request
    from student_train.train import train_students

    read = read_job(job, StudentJob)
    request = Request(
        cache=Cache.open(read.cache),
        runs=read.runs,
        data=DataOptions(**read.model_dump(include=set(DataOptions.model_fields))),
        students=tuple(read.student),
        device=device,
        fleet=FleetOptions(**read.model_dump(include=set(FleetOptions.model_fields))),
        parallel=parallel,
    )
    if dry_run:
        from student_train.dry_run import dry_run as plan_students

        _print_plan(plan_students(request), as_json)
        return 0
    with terminal.watching("steps") as watch, terminal.deferred_signals() as stop:
        progress = _TrainProgress(watch)
        if request.data.measures_trained_rows and parallel.writes:
            shared = f"{read.validation} and {read.train} share rows"
            watch.note(f"note: {shared}; the students are measured on what they were trained on")
        summary = train_students(request, report=progress.report if parallel.writes else progress.ignore, stop=stop)
    if as_json and parallel.writes:
        failed = {name: str(error) for name, error in summary.errors.items()}
        records = [record.model_dump(mode="json", exclude={"identity"}) for record in summary.records]
        terminal.print_json(
            {"runs": str(read.runs), "students": records, "failed": failed, "exit_code": summary.exit_code}
        )
    elif parallel.writes:
        _print_comparison(read.runs)
    return summary.exit_code


class _TrainProgress:
    """Shows what happens to the students: one bar for all that share a pass."""

    def __init__(self, watch: Watch):
        self._watch = watch
        self._done_steps = self._loaded_shards = 0

    def ignore(self, event: Event) -> None:
        """Show nothing: the first process tells."""

    def report(self, event: Event) -> None:
        from jobs.terminal import si
        from student_train import events

        match event:
            case events.FeedChosen():
                self._watch.note(f"rows: {event.residency} ({event.why})")
                if event.views:
                    self._watch.note(f"views: {event.views}; epoch e shows view (e - 1) mod {event.views}")
            case events.MemoryProjected():
                on_device = "" if event.device_bytes is None else f", {si(event.device_bytes, 'B')} on the device"
                self._watch.note(f"memory: at most {si(event.host_bytes, 'B')}{on_device}")
            case events.Loading():
                if event.done_shards == 1:
                    self._watch.begin(f"{event.students}: rows", event.shards)
                self._watch.advance(event.done_shards - self._loaded_shards)
                self._loaded_shards = event.done_shards % event.shards
            case events.StackingChosen():
                how = "stacked" if event.stacked else "one by one"
                self._watch.note(f"{len(event.students)} students like {event.students[0]}: {how} ({event.why})")
            case events.StackTakenApart():
                self._watch.note(f"{event.stack}: taken apart into {event.parts}, same rows again ({event.why})")
            case events.PassStarted():
                self._watch.begin(event.students, event.total_steps, event.done_steps)
                self._done_steps = event.done_steps
            case events.Progress():
                self._watch.advance(
                    event.done_steps - self._done_steps, f"epoch {event.epoch}/{event.epochs} loss {event.loss:.4g}"
                )
                self._done_steps = event.done_steps
            case events.PassDone():
                self._watch.complete()
            case _:
                self._tell_student(event)

    def _tell_student(self, event: Event) -> None:
        from student_train import events

        match event:
            case events.EpochDone():
                self._tell_epoch(event)
            case events.StudentSkipped():
                done = "finished" if event.record.status == "finished" else "set aside"
                self._watch.note(f"{event.record.student}: {done} before, skipped")
            case events.StudentStopped():
                self._watch.note(f"{event.record.student}: {event.record.error}")
            case events.StudentFailed():
                self._watch.note(str(event.error))
            case events.TrackerFailed():
                self._watch.note(f"note: {event.tracker} is off, training goes on: {event.why}")

    def _tell_epoch(self, event: EpochDone) -> None:
        from storage.views import PLAIN

        metrics = event.metrics
        if metrics.accuracy is not None:
            view = "" if metrics.view == PLAIN else f" ({metrics.view})"
            self._watch.detail(f"epoch {metrics.epoch}{view} accuracy {metrics.accuracy:.2%}")
        if metrics.epoch == 1:
            self._note_idle_terms(event.student, metrics.shares)

    def _note_idle_terms(self, student: str, shares: dict[str, float]) -> None:
        """Tell of terms that teach next to nothing; a weight that is off by a hundred is easily written."""
        for name, share in shares.items():
            if share < IDLE_SHARE:
                self._watch.note(
                    f"note: {student} learns next to nothing from {name}: {share:.2%} of the gradient in the first "
                    "step; raise its weight, or drop it"
                )


def _print_plan(plan: DryRun, as_json: bool) -> None:
    from dataclasses import asdict

    import polars as pl

    from jobs import terminal
    from jobs.tables import print_memory, print_table

    students = [asdict(student) for student in plan.students]
    if as_json:
        terminal.print_json({"students": students, "memory": None if plan.memory is None else asdict(plan.memory)})
        return
    print_table(pl.DataFrame(students))
    if plan.memory is not None:
        memory = plan.memory
        device = "" if memory.device_bytes is None else f" ({terminal.si(memory.device_bytes, 'B')} on the device)"
        print_memory(f"memory{device}", memory.host_bytes, memory.parts)
        terminal.out.print(f"rows: {memory.residency.place} ({memory.residency.why})")
    terminal.out.print("a dry run: nothing was written")


def _print_comparison(runs: Path) -> None:
    import polars as pl

    from jobs.tables import print_table
    from student_train.results import compare_runs

    table = compare_runs(runs)
    shown = table.select(
        "student",
        "parameters",
        "accuracy",
        "agreement",
        epochs=pl.col("epochs"),
        seconds=pl.col("seconds").round(1),
        status=pl.when(pl.col("error").is_null()).then(pl.col("status")).otherwise(pl.lit("failed")),
    )
    print_table(shown, title=str(runs))


def main() -> None:
    """Run the program."""
    run_program(app)
