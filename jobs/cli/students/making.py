"""`student make`: a student made from a teacher. Calls the room, prints.

The one command of this program that loads a teacher; what it writes, `student train` starts from, which never does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jobs.cli.arguments import JsonOption, on_this_machine
from storage.errors import BadRequest

if TYPE_CHECKING:
    from teacher_cache.making.make import Made
    from teacher_cache.making.sizes import Target

make_app = typer.Typer(
    help="Make a student from a teacher, which is read once; train it with start = FOLDER.", no_args_is_help=True
)

TeacherArgument = Annotated[
    str, typer.Argument(metavar="JOB.cache.toml:NAME", help="The cache job, and the name of the teacher in it.")
]
OutOption = Annotated[
    Path, typer.Option("-o", "--out", metavar="FOLDER", help="The folder to write.", callback=on_this_machine)
]
FlopsOption = Annotated[float | None, typer.Option(metavar="SHARE", help="Of the teacher's operations for a row.")]
ParametersOption = Annotated[float | None, typer.Option(metavar="SHARE", help="Of the teacher's parameters.")]
LatencyOption = Annotated[float | None, typer.Option(metavar="SHARE", help="Of the teacher's time for one row here.")]
RowsOption = Annotated[int, typer.Option(min=1, metavar="N", help="Rows of the cache to look at.")]
SeedOption = Annotated[int, typer.Option(min=0, metavar="N", help="Of what is drawn: rows, and units where they are.")]
DatasetOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which dataset it will be trained on, where there are several.")
]
# Those of teacher_cache.making.ways.scores.By, which a test compares.
ByOption = Annotated[
    Literal["magnitude", "taylor", "activation", "first", "random"],
    typer.Option(metavar="WHICH", help="Which units stay: magnitude, taylor, activation, first or random."),
]
OfOption = Annotated[  # likewise teacher_cache.making.ways.prune.Of
    Literal["units", "channels", "neurons", "heads", "blocks"],
    typer.Option(metavar="WHAT", help="Units (channels and neurons), channels, neurons, heads or blocks are left out."),
]


@make_app.command("copy")
def copy_(
    teacher: TeacherArgument,
    out: OutOption,
    every: Annotated[int | None, typer.Option(min=1, metavar="N", help="Every n-th block; else all.")] = None,
    blocks: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="These blocks alone, by the names of their layers.")
    ] = None,
    width: Annotated[float, typer.Option(metavar="SHARE", help="Of the channels and neurons of each layer.")] = 1.0,
    units: Annotated[Literal["first", "strongest"], typer.Option(help="Which of them.")] = "first",
    rows: RowsOption = 256,
    seed: SeedOption = 0,
    dataset: DatasetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the whole teacher, some of its blocks, or a narrower one, with its own weights."""

    def options() -> Any:
        from teacher_cache.making.ways.copying import CopyOptions

        if every is not None and blocks is not None:
            raise BadRequest("--every and --blocks exclude each other", do="drop one")
        if not 0 < width <= 1:
            raise BadRequest("no such share of the units", found=f"--width {width:g}", expected="above 0, at most 1")
        if units == "strongest" and width == 1:
            raise BadRequest(
                "--units says which units stay, and all do",
                found="--units strongest without --width",
                do="--width 0.5, or leave --units out",
            )
        return CopyOptions(every, _names(blocks), width, units)

    _make("copy", teacher, out, options, rows=rows, seed=seed, dataset=dataset, as_json=as_json)


@make_app.command()
def prune(
    teacher: TeacherArgument,
    out: OutOption,
    flops: FlopsOption = None,
    parameters: ParametersOption = None,
    latency: LatencyOption = None,
    by: ByOption = "magnitude",
    of: OfOption = "units",
    rows: RowsOption = 256,
    seed: SeedOption = 0,
    dataset: DatasetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Leave out channels, neurons, heads or blocks; what is written is smaller, not masked."""

    def options() -> Any:
        from teacher_cache.making.ways.prune import PruneOptions

        target = _target({"flops": flops, "parameters": parameters, "latency": latency})
        return PruneOptions(target, by, seed, of)

    _make("prune", teacher, out, options, rows=rows, seed=seed, dataset=dataset, as_json=as_json)


@make_app.command()
def lowrank(
    teacher: TeacherArgument,
    out: OutOption,
    flops: FlopsOption = None,
    parameters: ParametersOption = None,
    energy: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Instead of a size: share of the squares of singular values that layers keep."
        ),
    ] = None,
    by: Annotated[
        Literal["plain", "activations"], typer.Option(help="Errors as they are, or by what they do to rows' outputs.")
    ] = "activations",
    layers: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="These alone; else all that can be and cost something.")
    ] = None,
    rows: RowsOption = 256,
    seed: SeedOption = 0,
    dataset: DatasetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make two layers of lower rank of each linear layer and convolution, where two are smaller."""

    def options() -> Any:
        from teacher_cache.making.ways.lowrank import LowRankOptions

        if energy is not None and not 0 < energy < 1:
            raise BadRequest("no such share of the energy", found=f"--energy {energy:g}", expected="between 0 and 1")
        if energy is not None and (flops, parameters) != (None, None):
            raise BadRequest("a size and an energy exclude each other", found=f"--energy {energy:g}", do="drop one")
        target = None if energy is not None else _target({"flops": flops, "parameters": parameters}, ("energy",))
        return LowRankOptions(target, energy, by, _names(layers))

    _make("lowrank", teacher, out, options, rows=rows, seed=seed, dataset=dataset, as_json=as_json)


@make_app.command()
def quantize(
    teacher: TeacherArgument,
    out: OutOption,
    per: Annotated[
        Literal["channel", "tensor"], typer.Option(help="A step for each output of a layer, or one for all.")
    ] = "channel",
    rows: RowsOption = 256,
    seed: SeedOption = 0,
    dataset: DatasetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write weights of linear layers and convolutions as int8 codes; to train them so, see quantize = "int8"."""

    def options() -> Any:
        from teacher_cache.making.ways.quantize import QuantizeOptions

        return QuantizeOptions(per)

    _make("quantize", teacher, out, options, rows=rows, seed=seed, dataset=dataset, as_json=as_json)


def _target(given: dict[str, float | None], instead: tuple[str, ...] = ()) -> Target:
    """Return the one size that is asked for. Raises BadRequest: none, several, or no share; `instead` would do too."""
    from teacher_cache.making.sizes import Target

    said = {name: share for name, share in given.items() if share is not None}
    if len(said) != 1 or not 0 < next(iter(said.values())) < 1:
        *most, last = (f"--{name}" for name in (*given, *instead))
        raise BadRequest(
            "a student is to be of one size",
            found=", ".join(f"--{name} {share:g}" for name, share in said.items()) or "none",
            expected=f"one of {', '.join(most)} and {last}, a share of the teacher's between 0 and 1",
            do="--flops 0.5",
        )
    ((measure, share),) = said.items()
    return Target(measure, share)  # type: ignore[arg-type]


def _names(listed: str | None) -> tuple[str, ...] | None:
    if listed is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip()))
    if not names:
        raise BadRequest("no layer is named", found=repr(listed), expected="names of layers, with commas between them")
    return names


def _make(
    way: str, teacher: str, out: Path, options: Any, *, rows: int, seed: int, dataset: str | None, as_json: bool
) -> None:
    from jobs.show import terminal

    def action() -> int:
        from jobs.files.cache_job import CacheJob
        from jobs.files.reading import read_job
        from teacher_cache.making.make import MakeRequest, make

        job, colon, name = teacher.rpartition(":")
        if not colon or not name:
            raise BadRequest(
                f"{teacher} names no teacher", expected="a cache job and a teacher in it", do="JOB.cache.toml:NAME"
            )
        build = read_job(Path(job), CacheJob).request(Path(job), device="cpu")
        made = make(MakeRequest(build, name, way, options(), out, dataset=dataset, rows=rows, seed=seed))
        (_print_json if as_json else _print)(made)
        return 0

    terminal.run(action, as_json=as_json)


def _print_json(made: Made) -> None:
    from jobs.show import terminal

    terminal.print_json(
        {
            "folder": str(made.folder),
            "made": made.made,
            "teacher": made.whole._asdict(),
            "student": made.size._asdict(),
            "agreement": made.agreement,
            "rows": made.rows,
            "architecture": made.architecture,
            "told": list(made.told),
            "done_before": made.done_before,
            "exit_code": 0,
        }
    )


def _print(made: Made) -> None:
    """Print what was made: its size beside the teacher's, how often it agrees, what to train it with."""
    from jobs.show import terminal
    from storage.errors import si

    def line(text: str) -> None:
        terminal.out.print(text, markup=False, soft_wrap=True)

    before = ", made before" if made.done_before else ""
    line(f"{made.folder}: {made.made['way']} of {made.made['teacher']}{before}")
    for name, small, large in (
        ("FLOPs of a row", made.size.flops, made.whole.flops),
        ("parameters", made.size.parameters, made.whole.parameters),
        ("bytes", made.size.bytes, made.whole.bytes),
    ):
        line(f"  {small / large:.3f} of the teacher's {name}: {si(small)} of {si(large)}")
    if made.has_classes:
        line(f"  its top class is the teacher's on {made.agreement:.1%} of {made.rows} rows, before any training")
    elif made.numbers:
        line(f"  R² of its numbers beside the teacher's {made.agreement:.3f}, of {made.rows} rows, before any training")
    else:
        line(f"  cosine of its vectors to the teacher's {made.agreement:.3f}, of {made.rows} rows, before any training")
    for text in made.told:
        line(f"  {text}")
    if made.made["way"] == "quantize":
        line('its codes are not trained further: train the student that it was before with quantize = "int8"')
        return
    own = f'architecture = "{made.architecture}"' if made.architecture else ""
    line(f'train it: start = "{made.folder}"' + f"    # and {own}" * bool(own) + "    in a [[student]]")
