"""`student eval`, `student predict`, `student export`: what one does with a settled student.

Thin on purpose, like `jobs.cli.cache`: parse, call a room, print.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jobs.cli.arguments import DeviceOption, JsonOption, on_this_machine

if TYPE_CHECKING:
    import polars as pl

    from student_train.using.exporting.place import Exported
    from student_train.using.predicting.predict import Predicted

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="The folder of a settled student, RUNS/NAME, or its s3:// address.")
]
AnswererArgument = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A settled student's folder, that of an export, or an .onnx file; or s3://…"),
]
ArchitectureOption = Annotated[
    str | None,
    typer.Option(metavar="FILE.py:FUNCTION", help="Of a student of your own code, which runs only if you name it."),
]
CacheOption = Annotated[str | None, typer.Option(metavar="URL", help="Where its cache lies, if it has moved.")]
MOST_IN_JSON = 10_000  # predictions in one JSON value, which is held whole


def evaluate(
    run: AnswererArgument,
    dataset: Annotated[
        str,
        typer.Argument(metavar="DATASET", help="A folder or file, s3://… too, or rows of a cache: NAME or NAME/SPLIT."),
    ],
    cache: Annotated[str | None, typer.Option(metavar="URL", help="The cache of the rows; else the student's.")] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the cache, to agree with; else one that it learned from.")
    ] = None,
    labels: Annotated[str | None, typer.Option(metavar="FILE.npy", help="Labels of a .npy of inputs.")] = None,
    only_known: Annotated[
        bool, typer.Option("--only-known", help="Leave out rows of classes that the student does not know.")
    ] = False,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Keep shards of the cache there, as a job of train does.", callback=on_this_machine
        ),
    ] = None,
    keep_bytes: Annotated[int | None, typer.Option(metavar="N", min=1, help="Of all that is kept there.")] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Of chats in files: which has their template; else one of the student's."),
    ] = None,
    architecture: ArchitectureOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure a student on data that it never saw, classes matched by name."""
    from jobs.show import terminal

    def action() -> int:
        from jobs.show.evaluation import print_evaluation
        from storage.errors import BadRequest
        from student_train.using.answering import load_answerer
        from student_train.using.evaluating.evaluate import as_values, evaluate_rows, find_rows
        from student_train.using.evaluating.rows import Keep
        from student_train.using.settled import folders_of

        if (keep is None) != (keep_bytes is None):
            raise BadRequest("--keep FOLDER and --keep-bytes N, what it may hold, go together")
        kept = None if keep is None or keep_bytes is None else Keep(keep.absolute(), keep_bytes)
        _check_order(run, dataset)
        place = _at_hand(run)
        answerer = load_answerer(place, device=device, architecture=architecture)
        rows = find_rows(
            answerer,
            dataset,
            cache=cache,
            teacher=teacher,
            labels=labels,
            keep=kept,
            tokenizer=tokenizer,
            folders=folders_of(place),
        )
        with terminal.watching("rows") as watch:
            watch.begin(answerer.name, rows.num_rows)
            found = evaluate_rows(answerer, rows, only_known=only_known, advance=watch.advance)
        if as_json:
            terminal.print_json({"student": answerer.name} | as_values(found))
        else:
            print_evaluation(answerer.name, found)
        return found.exit_code

    terminal.run(action, as_json=as_json, answers=True)


def predict(
    run: AnswererArgument,
    inputs: Annotated[
        str,
        typer.Argument(
            metavar="INPUTS",
            help="A folder of images, a table, lines of text (- for standard input), or a .npy; or its s3:// address.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="A .csv or .parquet; else they are printed.")
    ] = None,
    top: Annotated[int, typer.Option(metavar="K", min=1, help="How many of the likeliest classes.")] = 1,
    column: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Of a table: its text; or, once for each, its numbers.")
    ] = None,
    architecture: ArchitectureOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Answer a stream of samples, in their order: class and probability of each; memory does not grow with them."""
    from jobs.show import terminal

    def action() -> int:
        from storage.errors import BadRequest
        from student_train.using.answering import load_answerer
        from student_train.using.predicting.predict import predict_samples
        from student_train.using.predicting.samples import find_samples
        from student_train.using.predicting.writing import check_out, writing

        if out is not None:
            check_out(out)
        _check_order(run, inputs)
        answerer = load_answerer(_at_hand(run), device=device, architecture=architecture)
        asked = answerer.blueprint.asked
        if out is None and not as_json and not (asked.has_classes or asked.numbers):
            raise BadRequest(
                f"{answerer.name} answers with vectors, of which none is a line to read",
                found=f"{answerer.blueprint.num_classes} numbers of each sample",
                do="-o FILE.parquet, or -o FILE.csv",
            )
        samples = find_samples(inputs, answerer.blueprint, column or ())
        for note in samples.notes:
            terminal.errors.print(f"note: {note}", markup=False)
        printed: list[pl.DataFrame] = []
        if out is None:
            found = predict_samples(answerer, samples, partial(_keep, printed) if as_json else _print_lines, top=top)
        else:
            with terminal.watching("samples") as watch, writing(out) as write:
                watch.begin(answerer.name, samples.count)
                found = predict_samples(answerer, samples, write, top=top, advance=watch.advance)
        if as_json:
            said = {"student": answerer.name, "inputs": samples.told, "out": None if out is None else str(out)}
            predictions = {"predictions": [row for frame in printed for row in frame.to_dicts()]}
            terminal.print_json(said | _as_values(found) | (predictions if out is None else {}))
        else:
            _print_end(found, out)
        return found.exit_code

    terminal.run(action, as_json=as_json, answers=True)


def _check_order(run: str, inputs: str) -> None:
    """Raise BadRequest if what is to be answered is a student, and what is to answer it none."""
    from storage.errors import BadRequest
    from student_train.using.settled import is_student

    if is_student(Path(inputs)) and Path(run).exists() and not is_student(Path(run)):
        raise BadRequest(
            "the arguments look swapped",
            found=f"{run}, which is no student, and {inputs}, which is one",
            expected="the student first",
            do=f"student … {inputs} {run}",
        )


def _at_hand(run: str) -> Path:
    """Return where a student lies on this machine; of one in a bucket tell what was copied."""
    from jobs.show import terminal
    from student_train.using.settled import run_at_hand

    path, told = run_at_hand(run)
    for note in told:
        terminal.errors.print(f"note: {note}", markup=False)
    return path


def _keep(kept: list[pl.DataFrame], frame: pl.DataFrame) -> None:
    """Keep predictions for one JSON value. Raises BadRequest: they are too many for one."""
    from storage.errors import BadRequest

    kept.append(frame)
    if sum(map(len, kept)) > MOST_IN_JSON:
        raise BadRequest(f"more than {MOST_IN_JSON:,} predictions in one JSON value", do="-o FILE.parquet")


def _as_values(found: Predicted) -> dict[str, Any]:
    return {
        "rows": found.rows,
        "unreadable": found.unreadable,
        "reasons": [{"sample_id": name, "error": why} for name, why in found.reasons],
        "classes": dict(found.counts),
        "notes": list(found.notes),
        "exit_code": found.exit_code,
    }


def _print_lines(frame: pl.DataFrame) -> None:
    """Print a line for each sample; its id is last, for nobody knows how long it is."""
    from jobs.show import terminal
    from storage.errors import printable

    names = frame.columns[1:-1]
    kinds = len(names) // 2
    for sample_id, *answers, error in frame.iter_rows():
        name = printable(sample_id, one_line=True)
        if error is None and "class" not in names:
            line = (
                "  ".join(f"{named} {number:<12,.6g}" for named, number in zip(names, answers, strict=True))
                + f"  {name}"
            )
        elif error is None:
            said = [(printable(answers[2 * k], one_line=True), answers[2 * k + 1]) for k in range(kinds)]
            line = "  ".join(f"{named:<16} {share:7.1%}" for named, share in said) + f"  {name}"
        else:
            line = f"{'no answer':<24}  {name}: {printable(error, one_line=True)}"
        terminal.out.print(line, markup=False, soft_wrap=True)


def _print_end(found: Predicted, out: Path | None) -> None:
    from jobs.show import terminal
    from jobs.show.tables import print_reason

    if out is not None:
        shown = ", ".join(f"{rows:,} {name}" for name, rows in found.counts[:8])
        rest = f" and {len(found.counts) - 8} classes more" if len(found.counts) > 8 else ""
        terminal.out.print(f"{out}: {found.rows:,} rows{': ' * bool(shown)}{shown}{rest}", markup=False, soft_wrap=True)
    for note in found.notes:
        terminal.errors.print(f"note: {note}", markup=False)
    if found.unreadable:
        terminal.errors.print(f"{found.unreadable:,} of {found.rows:,} could not be read and have no answer:")
        for name, why in found.reasons:
            print_reason(terminal.errors, name, why)
        if more := found.unreadable - len(found.reasons):
            terminal.errors.print(f"  and {more:,} more, each with its reason in `error`", markup=False)


def export(
    run: RunArgument,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FOLDER", help="The folder to write.", callback=on_this_machine)
    ],
    form: Annotated[
        Literal["safetensors", "onnx", "pt2", "transformers"],
        typer.Option(
            "--format",
            metavar="FORMAT",  # four names in < > are broken within one at 80 columns
            help="onnx, safetensors, pt2, or transformers: of a language model, an encoder or classifier of texts "
            "(sentence-transformers loads the folder too), a classifier of pictures.",
        ),
    ] = "transformers",
    quantize: Annotated[
        Literal["int8"] | None, typer.Option(help="Of onnx: weights and activations, calibrated on held rows.")
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The adapter alone, for peft; else merged into its base.")
    ] = False,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Chat template and the like, of the same tokenizer.")
    ] = None,
    cache: CacheOption = None,
    architecture: ArchitectureOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a student for another library, after comparing what both say of held rows."""
    from jobs.show import terminal

    def action() -> int:
        from storage.errors import BadRequest
        from student_train.using.exporting.hub.transformers import export_transformers
        from student_train.using.exporting.models import export_model

        place = _at_hand(run)
        if form == "transformers":
            if quantize is not None or architecture is not None:
                raise BadRequest(
                    "--quantize and --architecture are of other formats than transformers", do="--format onnx"
                )
            found = export_transformers(place, out, adapter=adapter, tokenizer=tokenizer, cache=cache)
        else:
            if adapter or tokenizer is not None:
                raise BadRequest("--adapter and --tokenizer are of --format transformers", found=f"--format {form}")
            found = export_model(place, out, form, quantize=quantize, cache=cache, architecture=architecture)
        _print_exported(place, found, form, as_json)
        return 0

    terminal.run(action, as_json=as_json)


def _print_exported(run: Path, found: Exported, form: str, as_json: bool) -> None:
    """Print what was written where, and what is to be told of it."""
    from jobs.show import terminal

    if as_json:
        terminal.print_json(
            {
                "folder": str(found.folder),
                "format": form,
                "kind": found.kind,
                "difference": found.difference,
                "largest": found.largest,
                "told": list(found.told),
                "done_before": found.done_before,
                "exit_code": 0,
            }
        )
        return
    before = ", exported before" if found.done_before else ""
    article = "an " if found.kind.lower().startswith(("a", "e", "i", "o")) else "a "
    article = "" if found.kind == "safetensors" else article
    terminal.out.print(f"{found.folder}: {run.name} as {article}{found.kind}{before}", markup=False, soft_wrap=True)
    for text in found.told:
        terminal.out.print(f"  {text}", markup=False, soft_wrap=True)
