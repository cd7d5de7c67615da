"""`student bench`: ways to make a smaller student, compared. Calls the story, prints."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from jobs.cli.arguments import DeviceOption, JobArgument, JsonOption

if TYPE_CHECKING:
    from jobs.shrink.bench import Bench, Compared


def bench(job: JobArgument, device: DeviceOption = "auto", as_json: JsonOption = False) -> None:
    """Compare ways to make a smaller student of a teacher, each trained on labels alone and distilled."""
    from jobs.show import terminal

    def action() -> int:
        from jobs.files.cache_job import CacheJob
        from jobs.files.reading import read_job
        from jobs.files.shrink_job import ShrinkJob
        from jobs.show.train_progress import TrainProgress
        from jobs.shrink.bench import run_bench

        read = read_job(job, ShrinkJob)
        build = read_job(read.job, CacheJob).request(read.job, device="cpu")
        with terminal.watching("steps") as watch, terminal.deferred_signals() as stop:
            found = run_bench(read, build, device, watch.note, TrainProgress(watch).report, stop)
        page = _page(read.runs / "students")
        if as_json:
            terminal.print_json(_values(found) | {"report": page, "exit_code": found.summary.exit_code})
        else:
            _print(found, page)
        return found.summary.exit_code

    terminal.run(action, as_json=as_json)


def _page(runs: Any) -> str | None:
    """Write the report of all students, which has the Pareto fronts; None where matplotlib is not installed."""
    from student_train.report import write_report

    if find_spec("matplotlib") is None:
        return None
    return str(write_report(runs).path)


def _values(found: Bench) -> dict[str, Any]:
    from dataclasses import asdict

    failed = {name: str(error) for name, error in found.summary.errors.items()}
    return {
        "teacher": asdict(found.teacher),
        "students": [asdict(each) for each in found.compared],
        "failed": failed,
    }


def _print(found: Bench, page: str | None) -> None:
    """Print the ways side by side: size, time, and accuracy as made, trained on labels alone, and distilled."""
    import polars as pl

    from jobs.show import terminal
    from jobs.show.tables import print_table

    def row(each: Compared) -> dict[str, Any]:
        def after(objective: str) -> str:
            if objective not in each.after:
                return ""
            spread = each.spread.get(objective)
            return f"{each.after[objective]:.2%}" + ("" if spread is None else f" ± {100 * spread:.2f}")

        return {
            "student": each.name,
            "FLOPs": round(each.flops / found.teacher.flops, 3),
            "bytes": each.bytes,
            "ms/1": round(each.ms_1, 2),
            "ms/64": round(each.ms_64, 1),
            "made": f"{each.before:.2%}",
            "labels": after("labels"),
            "distilled": after("distilled"),
        }

    print_table(pl.DataFrame([row(each) for each in (found.teacher, *found.compared)]))
    terminal.out.print(
        "accuracy on the held rows: as made, trained on labels alone, and distilled; ± over seeds. FLOPs: of the "
        "teacher's",
        markup=False,
    )
    if page is not None:
        terminal.out.print(f"{page}: all of them, with Pareto fronts", markup=False, soft_wrap=True)
