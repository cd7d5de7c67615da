"""`student chain`: students that teach the next ones. Calls the story, prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.cli.arguments import DeviceOption, JobArgument, JsonOption, LogFormatOption, MetricsOption, WaitOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.chain.chain import Ended
    from jobs.chain.foretell import Foreseen
    from jobs.files.cache_job import CacheJob
    from jobs.files.chain_job import ChainJob
    from jobs.files.student_job import StudentJob
    from jobs.show.night import Night
    from student_train.feed.devices import Device
    from student_train.running.train import Summary
    from teacher_cache.building.stages import BuildReport


FIGURES = ("accuracy", "cross_entropy")


def chain(
    job: JobArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; do nothing.")] = False,
    wait: WaitOption = False,
    device: DeviceOption = "auto",
    log_format: LogFormatOption = "text",
    metrics_file: MetricsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train students that learn from one another: each generation is asked about all rows, and teaches the next."""
    from jobs.show import terminal
    from jobs.show.night import Night

    night = Night("student chain", job, log_format, None if dry_run else metrics_file)

    def action() -> int:
        from jobs.files.chain_job import ChainJob
        from jobs.files.reading import read_job

        read = read_job(job, ChainJob)
        if dry_run:
            from jobs.chain.foretell import foretell

            _print_foreseen(foretell(read, device), as_json)
            return 0
        return _chain(read, device, wait, as_json, night)

    terminal.run(action, as_json=as_json, night=night)


def _chain(job: ChainJob, device: Device, wait: bool, as_json: bool, night: Night) -> int:
    """Ask and train generation after generation, print what became of each, and return the exit code."""
    from jobs.chain.chain import run_chain
    from jobs.cli.students.training import train_job
    from jobs.cluster.attendance import Attendance
    from jobs.show import terminal
    from jobs.show.train_events import tell_summary

    def build(asking: CacheJob) -> BuildReport:
        return _build(job, asking, device, wait, night)

    def train(students: StudentJob) -> Summary:
        from student_train.stepping.parallel import ALONE

        with terminal.watching("steps", night) as watch, terminal.deferred_signals() as stop:
            summary = train_job(
                students, students.request(device, ALONE), watch, stop, night, Attendance(watch.note), wait=wait
            )
        tell_summary(summary, night)
        return summary

    with terminal.watching("students", night) as watch:
        ended = run_chain(job, build, train, watch.note)
    if as_json:
        terminal.print_json(_values(job, ended))
    else:
        _print(job, ended)
    return ended.exit_code


def _build(job: ChainJob, asking: CacheJob, device: Device, wait: bool, night: Night) -> BuildReport:
    from jobs.cli.caches.choosing import choose_cluster
    from jobs.cli.caches.reports import tell_report
    from jobs.cluster.attendance import Attendance
    from jobs.cluster.builds import carry_out, lay_out_build
    from jobs.show import terminal
    from teacher_cache.building.survey import prepare_build

    cluster = choose_cluster(asking.cluster, None)
    request = asking.request(job.job, device=device, threads=cluster.num_threads)
    prepared, pools = lay_out_build(prepare_build(request), cluster, device)
    with terminal.watching("rows", night) as watch:
        _, report = carry_out(prepared, cluster, pools, watch, night, Attendance(watch.note), wait=wait)
        tell_report(asking.cache, report, night)
        for message in (*report.refused, *report.failed):
            watch.note(message)
        for name, rows in report.quarantined.items():
            if len(rows):
                watch.note(f"{name}: {len(rows)} of its samples cannot be read and are left out")
    return report


def _values(job: ChainJob, ended: Ended) -> dict[str, Any]:
    return {
        "runs": str(job.runs),
        "generations": [
            {
                "students": [record.model_dump(mode="json", exclude={"identity"}) for record in summary.records],
                "failed": {name: str(error) for name, error in summary.errors.items()},
            }
            for _, summary in ended.trained
        ],
        "exit_code": ended.exit_code,
    }


def _print(job: ChainJob, ended: Ended) -> None:
    """Print the students of each generation, and whom they learned from."""
    import polars as pl

    from jobs.files.chain_job import told_teachers
    from jobs.show import terminal
    from jobs.show.tables import print_table

    rows = []
    for number, (generation, summary) in enumerate(ended.trained, start=1):
        records = {record.student: record for record in summary.records}
        for student in generation.students:
            record = records.get(student.name)
            figures = {} if record is None else record.model_dump(include={"accuracy", "cross_entropy"})
            rows.append(
                {
                    "gen.": number,
                    "student": student.name,
                    "learns from": told_teachers(student),
                    **{name: None if (value := figures.get(name)) is None else round(value, 4) for name in FIGURES},
                    "parameters": None if record is None else record.parameters,
                }
            )
    if rows:
        table = pl.DataFrame(rows, infer_schema_length=None)
        print_table(table.drop(name for name in FIGURES if table[name].is_null().all()))
    terminal.out.print(f"student compare {job.runs}    # with intervals and agreement", markup=False, soft_wrap=True)


def _print_foreseen(found: Sequence[Foreseen], as_json: bool) -> None:
    import polars as pl

    from jobs.show import terminal
    from jobs.show.tables import print_table

    if as_json:
        terminal.print_json({"students": [each._asdict() for each in found]})
        return
    waiting = {each.generation: each.shards for each in found}
    print_table(pl.DataFrame([each._asdict() for each in found]).drop("shards").rename({"generation": "gen."}))
    for number, shards in waiting.items():
        if shards:
            terminal.out.print(f"generation {number} waits for {shards} shard{'s' * (shards != 1)} of the cache")
    terminal.out.print("a dry run: nothing was written")
