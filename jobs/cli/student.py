"""`student`: train students from a cache, and compare them.

Thin on purpose, like `jobs.cli.cache`: parse, call a room, print.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.arguments import (
    AllowVersionsOption,
    DeviceOption,
    JobArgument,
    JsonOption,
    LogFormatOption,
    MetricsOption,
    VersionOption,
    WaitOption,
    on_this_machine,
    run_program,
)
from jobs.cli.students import using
from jobs.cli.students.benching import bench
from jobs.cli.students.chaining import chain
from jobs.cli.students.making import make_app
from jobs.cli.students.training import train_here, train_job
from jobs.cluster.heaps import HEAPS, limit_heaps
from storage.errors import si

if TYPE_CHECKING:
    from jobs.show.night import Night
    from student_train.feed.devices import Device
    from student_train.stepping.parallel import Parallel

app = typer.Typer(
    help="Train many students from a cache of soft targets; no teacher is loaded.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(make_app, name="make")
app.command()(bench)
app.command()(chain)


@app.callback()
def _program(version: VersionOption = False) -> None:
    pass


DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, with a bound on memory; do nothing.")
]
RunsArgument = Annotated[str, typer.Argument(metavar="RUNS", help="A folder of runs, or its s3:// address.")]


@app.command()
def train(
    job: JobArgument,
    dry_run: DryRunOption = False,
    wait: WaitOption = False,
    allow_versions: AllowVersionsOption = False,
    device: DeviceOption = "auto",
    log_format: LogFormatOption = "text",
    metrics_file: MetricsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train every student of the job; settled ones are skipped, interrupted ones resume."""
    from jobs.show import terminal
    from jobs.show.night import Night

    writes = not dry_run and os.environ.get("RANK", "0") == "0"  # of several that torchrun started, the first
    night = Night("student train", job, log_format, metrics_file if writes else None)

    def action() -> int:
        from student_train.stepping.parallel import joined

        with joined() as parallel:  # others, where torchrun started this
            return _train(job, dry_run, wait, allow_versions, device, as_json, parallel, night)

    terminal.run(action, as_json=as_json, night=night)


@app.command()
def manifest(job: JobArgument, as_json: JsonOption = False) -> None:
    """Write the training of a job for Kubernetes as YAML, which Dask's operator runs."""
    from jobs.show import terminal

    def action() -> int:
        from jobs.cli.manifest import show_manifest
        from jobs.files.student_job import StudentJob

        def written(read: StudentJob) -> dict[str, str]:
            return {"runs": str(read.runs)}

        return show_manifest(job, StudentJob, ("student", "train"), (1, 1), written, as_json=as_json)

    terminal.run(action, as_json=as_json, answers=True)


@app.command()
def compare(runs: RunsArgument, as_json: JsonOption = False) -> None:
    """Show which setting is best and by how much, beside the teacher, labels alone and chance; what each key does."""
    from jobs.show import terminal

    def action() -> int:
        return _print_comparison(_at_hand(runs), as_json)

    terminal.run(action, as_json=as_json, answers=True)


@app.command()
def report(
    runs: RunsArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where to write it; else RUNS/report.html, on a disk.", callback=on_this_machine
        ),
    ] = None,
    cache: Annotated[str | None, typer.Option(metavar="URL", help="Where their cache lies, if it has moved.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML page about all students of a folder; it opens offline."""
    from jobs.show import terminal

    def action() -> int:
        from storage.errors import BadRequest
        from student_train.report import write_report

        if out is None and "://" in runs:
            raise BadRequest(f"the page about {runs} is written to a disk of this machine", do="--out FILE.html")
        written = write_report(_at_hand(runs), out, cache)
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
        size = si(written.size_bytes, "B")
        students = f"{written.students} student{'s' if written.students > 1 else ''}"
        terminal.out.print(f"{written.path}: {students}, {size}", markup=False, soft_wrap=True)
        return written.exit_code

    terminal.run(action, as_json=as_json)


app.command("eval")(using.evaluate)
app.command()(using.predict)
app.command()(using.export)


def _at_hand(runs: str) -> Path:
    """Return where runs lie on this machine; of those in a bucket tell what was copied."""
    from jobs.show import terminal
    from student_train.run_files.comparison import runs_at_hand

    path, told = runs_at_hand(runs)
    for note in told:
        terminal.errors.print(f"note: {note}", markup=False)
    return path


def _train(
    job: Path,
    dry_run: bool,
    wait: bool,
    allow_versions: bool,
    device: Device,
    as_json: bool,
    parallel: Parallel,
    night: Night,
) -> int:
    """Train a job in this process, on a cluster, or say what that would do; return the exit code."""
    from jobs.cluster.attendance import Attendance
    from jobs.files.reading import read_job
    from jobs.files.student_job import StudentJob
    from jobs.show import terminal
    from jobs.show.train_events import tell_summary
    from storage.errors import BadRequest

    if wait and parallel.size > 1:
        raise BadRequest("--wait is for one process", found=f"{parallel.size} of torchrun", do="leave it out")
    read = read_job(job, StudentJob)
    if read.cluster.kind == "kubernetes":
        from jobs.kubernetes.manifest import in_pod

        read = read.model_copy(update={"cluster": in_pod(read.cluster)})
    request = read.request(device, parallel)
    if dry_run:
        if parallel.writes:  # the others would say the same
            from jobs.cli.students.dry_run import foretell

            foretell(read, request, allow_versions=allow_versions, as_json=as_json)
        return 0
    if not parallel.writes:  # the first process shows and prints what happens in all of them
        with terminal.deferred_signals() as stop:
            return train_here(read, request, lambda event: None, stop).exit_code
    with terminal.watching("steps", night) as watch, terminal.deferred_signals() as stop:
        attendance = Attendance(watch.note, allow_versions=allow_versions)
        summary = train_job(read, request, watch, stop, night, attendance, wait=wait)
    tell_summary(summary, night)
    if as_json:
        failed = {name: str(error) for name, error in summary.errors.items()}
        records = [record.model_dump(mode="json", exclude={"identity"}) for record in summary.records]
        terminal.print_json(
            {"runs": str(read.runs), "students": records, "failed": failed, "exit_code": summary.exit_code}
        )
    else:
        _print_comparison(read.runs)
    return summary.exit_code


def _print_comparison(runs: Path, as_json: bool = False) -> int:
    """Print the students of a folder side by side; return the exit code."""
    from jobs.show import terminal
    from jobs.show.comparison import print_comparison
    from storage.errors import CorruptObject
    from storage.format.stores.mirror import as_text
    from student_train.comparing.compared import compare_settings
    from student_train.comparing.runs import gather_runs
    from student_train.comparing.values import as_values

    gathered = gather_runs(runs)
    found = compare_settings(gathered)
    damaged = any(run.faults for run in gathered) or any(each.faults for each in found)
    code = CorruptObject.exit_code if damaged else 0
    if as_json:
        faults = {run.name: [getattr(fault, "what", fault) for fault in run.faults] for run in gathered if run.faults}
        for each in found:
            faults |= {name: [*faults.get(name, []), fault] for name, fault in each.faults.items()}
        terminal.print_json(
            {
                "runs": as_text(runs),
                "students": [run.figures for run in gathered],
                "compared": [as_values(each) for each in found],
                "damaged": faults,
                "exit_code": code,
            }
        )
    else:
        print_comparison(found, gathered, as_text(runs))
    return code


def main() -> None:
    """Run the program."""
    limit_heaps(HEAPS)
    run_program(app)
