"""The model card of an exported student: what it is, what it learned from whom, and its figures; README.md."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from storage.errors import CorruptObject
from storage.inputs.columns import columns_of
from student_train.comparing.figures import interval
from student_train.options.sections import told
from student_train.run_files.predictions import read_predictions
from student_train.run_files.records import Held, RunRecord
from student_train.students import Blueprint
from student_train.tasks import TASKS, task_of

NOT_FIGURES = {"kl_over"}
SHARES = ("accuracy", "agreement")  # of rows, which have an interval where these are samples of their own
LICENCES = ("the data", "the teacher", "the weights that it started from", "this model")


@dataclass(frozen=True)
class Card:
    """What a card says beside what the run's record says.

    Attributes:
        kind: what was exported, in words or as the class that loads it.
        library: that loads it, as the Hub calls it.
        told: how it was compared with the student, and what lies beside it.
        job: the job that repeats the run; None: it is not at hand.
        adapter: whether it is one without its base.
        use: how it is used, as Markdown.
    """

    kind: str
    library: str
    told: tuple[str, ...]
    job: str | None = None
    adapter: bool = False
    use: str = ""


def model_card(run: Path, record: RunRecord, blueprint: Blueprint, card: Card) -> str:
    """Return the text of README.md.

    Args:
        run: the folder of the run, whose predictions say on how many rows its figures are.
        record: of the run.
        blueprint: what it is.
        card: what was exported.
    """
    identity = record.identity
    student: dict[str, Any] = identity.get("student", {})
    task = task_of(blueprint)
    data = identity.get("data", {})
    name = f"`{card.kind}`" if card.kind.isidentifier() else card.kind
    lines = [
        *_head(card, task.pipeline_tag if columns_of(blueprint.source) is None else task.tabular_tag),
        "",
        f"# {record.student}",
        "",
        f"{'A LoRA adapter of a' if card.adapter else 'A student as'} {name}, trained by Stillroom "
        f"{version('stillroom')} from a cache of soft targets. Its task: {blueprint.asked.name.replace('_', ' ')}.",
        "",
        "## Licences",
        "",
        "Its license is unknown: it depends on those below. Fill them in before you publish it, and `license:` above.",
        "",
        "| of | licence |",
        "| --- | --- |",
        *(f"| {of} | |" for of in LICENCES if "started" not in of or identity.get("start")),
        *(["", "## Use", "", card.use.rstrip()] if card.use else []),
        *_classes(blueprint),
        *_lineage(identity, data, record),
        "",
        "## Losses",
        "",
        *(f"- {_said(term)}" for term in student.get("objective", [])),
        "",
        f"## Figures on `{told(data.get('validation') or ())}`",
        "",
        "| figure | | 95 % |",
        "| --- | --- | --- |",
        *_figures(run, record),
        "",
        _when(record),
        "",
        "## Export",
        "",
        *(f"- {text}" for text in card.told),
        *(["", "## The job that repeats it", "", "```toml", card.job.rstrip(), "```"] if card.job else []),
    ]
    return "\n".join(lines) + "\n"


def _head(card: Card, pipeline_tag: str | None) -> list[str]:
    return [
        "---",
        f"library_name: {card.library}",
        *([f"pipeline_tag: {pipeline_tag}"] if pipeline_tag else []),
        "license: unknown",
        "tags:",
        "- distillation",
        "- stillroom",
        "---",
    ]


def _classes(blueprint: Blueprint) -> list[str]:
    names = blueprint.classes
    if not names:
        return []
    shown = ", ".join(names[:100]) + (f" and {len(names) - 100} more" if len(names) > 100 else "")
    return ["", "## Classes", "", f"In the order of its scores: {shown}"]


def _lineage(identity: dict[str, Any], data: dict[str, Any], record: RunRecord) -> list[str]:
    teachers = identity.get("teachers", {})
    lines = [
        "",
        "## Lineage",
        "",
        f"- Trained on `{told(data.get('train') or ())}`, datasets "
        + ", ".join(f"`{name}` (fingerprint {value})" for name, value in identity.get("datasets", {}).items()),
        "- Teachers: "
        + (", ".join(f"`{name}` (fingerprint {value})" for name, value in teachers.items()) or "none, labels alone"),
        f"- Cache: `{identity.get('cache')}`",
        f"- Student: `{record.architecture}`, {record.parameters:,} parameters, digest `{record.student_digest}`"
        if record.parameters is not None
        else f"- Student: `{record.architecture}`",
    ]
    if start := identity.get("start"):
        lines.append("- Started from " + ", ".join(f"`{name}` (digest {value})" for name, value in start.items()))
    return lines


def _figures(run: Path, record: RunRecord) -> list[str]:
    try:
        held = read_predictions(run)
    except CorruptObject:
        held = None  # the card is of the model; what is wrong with that file, `student compare` says
    independent = held is not None and TASKS[held.task].report.independent
    rows = held.num_rows if held is not None and independent else 0
    lines = []
    for name, value in record.model_dump(include=set(Held.model_fields) - NOT_FIGURES).items():
        if not isinstance(value, int | float):
            continue
        between = ""
        if rows and name in SHARES:
            low, high = interval(value, rows)
            between = f"{low:.4f} to {high:.4f}, over {rows:,} rows"
        lines.append(f"| {name} | {value:.6g} | {between} |")
    return lines


def _said(term: dict[str, Any]) -> str:
    rest = ", ".join(f"{key} = {value}" for key, value in term.items() if key != "loss" and value is not None)
    return f"`{term.get('loss')}`" + (f" ({rest})" if rest else "")


def _when(record: RunRecord) -> str:
    """Return after how many steps it ended, and of which its weights are; records of before had epochs alone."""
    seed = f" Seed {record.identity.get('student', {}).get('seed', 0)}, one of any number: figures of others differ."
    if record.steps is None or record.step is None:
        return f"After {record.epochs} epochs; weights of epoch {record.epoch}." + seed
    return f"After {record.steps} steps; weights of step {record.step}." + seed
