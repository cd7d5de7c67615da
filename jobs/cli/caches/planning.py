"""`cache plan`: what each encoding would cost and lose, measured before the big run. Parses, calls the room, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.arguments import DeviceOption, JobArgument, JsonOption, on_this_machine

PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def plan(
    job: JobArgument,
    rows: Annotated[
        int, typer.Option(min=16, metavar="N", help="Rows to measure on, spread over the datasets; of text, tokens.")
    ] = 512,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Workers of the big run; by default the job's.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Epochs of each student.")] = 20,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Bytes against fidelity, as .png, .svg or .pdf.", callback=on_this_machine),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUE,…",
            help="What the job would cost at another size: rows=14_200_000,views=90,workers=64; docs/jobs/plan.md.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure bytes, fidelity and speed of every encoding on a few hundred rows; nothing is stored."""
    from jobs.show import terminal

    def action() -> int:
        from jobs.files.cache_job import CacheJob
        from jobs.files.reading import read_job
        from jobs.files.scale_text import read_scale
        from jobs.show.pilot.scale import machine_of, print_scale, scale_values
        from jobs.show.pilot.tables import as_values, print_pilot
        from teacher_cache.pilot.pilot import PilotRequest, run_pilot

        if plot is not None:
            _check_plot(plot)  # now, not after minutes of measuring
        size = None if scale is None else read_scale(scale)
        read = read_job(job, CacheJob)
        request = PilotRequest(
            build=read.request(job, device=device),
            fidelity=read.fidelity,
            rows=rows,
            workers=workers or read.cluster.num_workers,
            epochs=epochs,
            scale=size,
        )
        machine = machine_of(request.workers, read.cluster.time)
        with terminal.watching("done") as watch:
            pilots = run_pilot(request, watch)
        if plot is not None:
            from jobs.show.pilot.plot import draw

            draw(pilots, plot)
        if as_json:
            values = [as_values(pilot, request) | scale_values(pilot, request, machine) for pilot in pilots]
            terminal.print_json({"job": str(job), "plot": None if plot is None else str(plot), "teachers": values})
            return 0
        for pilot in pilots:
            print_pilot(pilot, request)
            print_scale(pilot, request, machine)
        if plot is not None:
            terminal.out.print(f"plot: {plot}", markup=False, soft_wrap=True)
        return 0

    terminal.run(action, as_json=as_json, answers=True)


def _check_plot(path: Path) -> None:
    """Refuse a plot that could not be written, before anything is measured."""
    from importlib.util import find_spec

    from storage.errors import BadRequest, missing_extra
    from storage.format.filesystems import check_place

    if find_spec("matplotlib") is None:
        raise missing_extra("--plot", "no matplotlib", "plots")
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise BadRequest(f"--plot {path} has no suffix of a picture", expected=", ".join(PLOT_SUFFIXES))
    if path.is_dir() or not (folder := path.resolve().parent).is_dir():
        raise BadRequest(
            f"--plot {path} cannot be written",
            found="a folder" if path.is_dir() else f"no folder {folder}",
            do="name a file in a folder that is there",
        )
    check_place(path)
