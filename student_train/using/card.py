"""The model card of an exported student: what it is, what it learned from whom, and its figures; README.md."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from student_train.options.sections import told
from student_train.run_files.records import Held, RunRecord

NOT_FIGURES = {"kl_over"}


def model_card(record: RunRecord, kind: str, compared: str, beside: Sequence[str], *, adapter: bool) -> str:
    """Return the text of README.md.

    Args:
        record: of the run.
        kind: the class that loads it.
        compared: how its logits were compared with the student's.
        beside: where its other files are from.
        adapter: whether it is one without its base.
    """
    identity = record.identity
    student: dict[str, Any] = identity.get("student", {})
    terms = student.get("objective", [])
    figures = {
        name: value
        for name, value in record.model_dump(include=set(Held.model_fields) - NOT_FIGURES).items()
        if isinstance(value, int | float)
    }
    teachers = identity.get("teachers", {})
    data = identity.get("data", {})
    lines = [
        "---",
        f"library_name: {'peft' if adapter else 'transformers'}",
        "pipeline_tag: text-generation",
        "license: unknown",
        "tags:",
        "- distillation",
        "- stillroom",
        "---",
        "",
        f"# {record.student}",
        "",
        f"A {'LoRA adapter of a ' if adapter else ''}`{kind}`, trained by Stillroom {version('stillroom')} from a "
        "cache of soft targets.",
        "",
        "Its license is unknown: it depends on those of the data, of the teachers, and of the weights it started from. "
        "Say which before you publish it.",
        "",
        "## Lineage",
        "",
        f"- Trained on `{told(data.get('train') or ())}`, datasets "
        + ", ".join(f"`{name}` (fingerprint {value})" for name, value in identity.get("datasets", {}).items()),
        "- Teachers: "
        + (", ".join(f"`{name}` (fingerprint {value})" for name, value in teachers.items()) or "none, labels alone"),
        f"- Cache: `{identity.get('cache')}`",
    ]
    if start := identity.get("start"):
        lines.append("- Started from " + ", ".join(f"`{name}` (digest {value})" for name, value in start.items()))
    lines += ["", "## Losses", "", *(f"- {_said(term)}" for term in terms)]
    lines += ["", f"## Figures on `{told(data.get('validation') or ())}`", "", "| figure | |", "| --- | --- |"]
    lines += [f"| {name} | {value:.6g} |" for name, value in figures.items()]
    lines += ["", _when(record), "", "## Export", ""]
    lines += [f"- {compared}", *(f"- {text}" for text in beside)]
    return "\n".join(lines) + "\n"


def _said(term: dict[str, Any]) -> str:
    rest = ", ".join(f"{key} = {value}" for key, value in term.items() if key != "loss" and value is not None)
    return f"`{term.get('loss')}`" + (f" ({rest})" if rest else "")


def _when(record: RunRecord) -> str:
    """Return after how many steps it ended, and of which its weights are; records of before had epochs alone."""
    if record.steps is None or record.step is None:
        return f"After {record.epochs} epochs; weights of epoch {record.epoch}."
    return f"After {record.steps} steps; weights of step {record.step}."
