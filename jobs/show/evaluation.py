"""Print the figures of one student on some rows: all of them, then each class, then what is taken for what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
from rich.text import Text

from jobs.show.tables import print_reason, print_table
from jobs.show.terminal import errors, out
from student_train.comparing.figures import in_units

if TYPE_CHECKING:
    from student_train.using.evaluating.counting import Counts
    from student_train.using.evaluating.evaluate import Evaluation

MOST_CLASSES = 30  # of which each has a line; of more those with the lowest F1
MOST_MISTAKES = 10
SHOWN_REASONS = 5


def print_evaluation(name: str, found: Evaluation) -> None:
    """Print figures."""
    out.print(Text(f"{name}: {found.told}, {found.rows:,} measured"), soft_wrap=True)
    for note in found.notes:
        out.print(Text(f"note: {note}"), soft_wrap=True)
    out.print(Text("\n" + "\n".join(f"{what:<22} {value}" for what, value in _lines(found))))
    if found.counts is not None:
        _print_classes(found.counts)
    if found.unreadable:
        errors.print(Text(f"{len(found.unreadable):,} samples could not be read, and are not measured:"))
        for sample, why in found.unreadable[:SHOWN_REASONS]:
            print_reason(errors, sample, why)
        if (more := len(found.unreadable) - SHOWN_REASONS) > 0:
            errors.print(Text(f"  and {more:,} more; --json has all"))


def _lines(found: Evaluation) -> list[tuple[str, str]]:
    figures, counts = found.figures, found.counts
    lines: list[tuple[str, str | None]] = [
        ("accuracy", _share(figures.accuracy, found.interval)),
        ("top-5 accuracy", _share(None if counts is None else counts.top_5)),
        ("macro-F1", _share(figures.macro_f1)),
        ("cross-entropy", None if figures.cross_entropy is None else f"{figures.cross_entropy:.4f} nats"),
        ("perplexity", None if figures.perplexity is None else f"{figures.perplexity:,.4g}"),
        ("calibration error", _share(figures.calibration_error)),
        (f"agreement with {found.teacher}", _share(figures.agreement)),
        (f"KL from {found.teacher}", None if figures.kl is None else f"{figures.kl:.4f} nats"),
        (f"cosine to {found.teacher}", None if figures.cosine is None else f"{figures.cosine:.4f}"),
        ("Spearman of cosines", None if figures.spearman is None else f"{figures.spearman:.4f}"),
        ("same nearest", _share(figures.retrieval)),
        (
            "RMSE" if not figures.rmse_of else "RMSE in deviations",
            None if figures.rmse is None else in_units(figures.rmse),
        ),
        *((f"  of {name}", in_units(off)) for name, off in figures.rmse_of.items()),
        ("R²", None if figures.r2 is None else f"{figures.r2:.4f}"),
        (f"RMSE of {found.teacher}", None if figures.teacher_rmse is None else in_units(figures.teacher_rmse)),
    ]
    for name, beside in figures.by_teacher.items():
        if name != found.teacher:
            lines += [
                (f"agreement with {name}", _share(beside.agreement)),
                (f"KL from {name}", None if beside.kl is None else f"{beside.kl:.4f} nats"),
                (f"cosine to {name}", None if beside.cosine is None else f"{beside.cosine:.4f}"),
                ("  Spearman of cosines", None if beside.spearman is None else f"{beside.spearman:.4f}"),
                ("  same nearest", _share(beside.retrieval)),
                (f"RMSE of {name}", None if beside.teacher_rmse is None else in_units(beside.teacher_rmse)),
            ]
    return [(what, value) for what, value in lines if value is not None]


def _share(value: float | None, interval: tuple[float, float] | None = None) -> str | None:
    if value is None:
        return None
    return f"{100 * value:.2f} %" + (
        "" if interval is None else f"   (95 %: {100 * interval[0]:.2f} to {100 * interval[1]:.2f})"
    )


def _print_classes(counts: Counts) -> None:
    table = counts.by_class()
    percent = [(100 * pl.col(name)).round(2).alias(f"{name} %") for name in ("precision", "recall", "f1")]
    shown = table.select("class", "rows", *percent)
    title = "\neach class"
    if len(shown) > MOST_CLASSES:
        shown = shown.filter(pl.col("rows") > 0).sort("f1 %", nulls_last=True).head(MOST_CLASSES)
        title = f"\nthe {MOST_CLASSES} classes of the lowest F1; --json has all"
    out.print(Text(title))
    print_table(shown)
    mistakes = counts.mistakes(MOST_MISTAKES)
    if mistakes is not None and len(mistakes):
        out.print(Text("\nmost frequent mistakes; --json has all"))
        print_table(mistakes.rename({"taken_for": "taken for"}))
