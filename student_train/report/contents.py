"""What the page says, put together from runs, their predictions and their cache; nothing here knows HTML.

Students are compared row by row only where they were measured on the same rows: those of most runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from storage.cache import Cache
from storage.errors import StillroomError
from student_train.comparing.runs import ShownRun, gather_runs
from student_train.report import measures
from student_train.report.caches import CacheFacts, cache_facts, open_cache
from student_train.report.canvas import COLOURS
from student_train.report.gallery import Card, Shower
from student_train.report.rows import Comparison, TeacherRow, compare_rows, teacher_row
from student_train.tasks import TASKS, ReportFacts

MOST_CACHES = 3  # that are described
MOST_CLASSES = 24  # that are shown
FEW_STUDENTS = 8
MOST_VARIED = 6  # options that differ, as columns of the leaderboard
MOST_GALLERIES = 3  # of single students
MOST_CARDS = 12  # of one gallery
WITH_WEIGHTS = ("finished", "stopped")  # statuses of students that can be compared


class ClassRow(NamedTuple):
    """One class: accuracy of the best student, of the teacher (None: unknown), and over all students `low` to `high`.

    Of more than FEW_STUDENTS the range is that of the middle half.
    """

    name: str
    rows: int
    student: float
    teacher: float | None
    low: float
    high: float


class Gallery(NamedTuple):
    """Rows where students fail and the teacher does not; `who` is the student whose answers are shown."""

    title: str
    who: str
    colour: str | None
    cards: list[Card]


@dataclass
class Contents:
    """All that the page shows; what is None or empty has no section.

    Attributes:
        folder: of the runs.
        runs: every run, the best first.
        main: those that were measured on the same rows.
        gain: by which they are compared: "accuracy", or where there are no labels "agreement".
        colours: of the highlighted students, by name.
        varied: options in which runs differ.
        comparison: row by row.
        teacher: whom they are compared with.
        classes, num_classes: those that are shown, and how many there are.
        confusions, tokens: rows of tables, of the best student.
        galleries: where students fail.
        caches: what they say of themselves.
        notices: what is left out of the page, and why.
    """

    folder: Path
    runs: list[ShownRun]
    main: list[ShownRun]
    gain: str
    colours: dict[str, str]
    varied: list[str]
    comparison: Comparison | None = None
    teacher: TeacherRow | None = None
    classes: list[ClassRow] = field(default_factory=list)
    num_classes: int = 0
    confusions: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[dict[str, Any]] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    caches: list[CacheFacts] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def best(self) -> ShownRun | None:
        """Return the best of those that are compared."""
        return next((run for run in self.main if run.name in self.colours), None)

    @property
    def shown(self) -> ShownRun | None:
        """Return the best of those whose predictions are known: whose classes, tokens and mistakes are shown."""
        name = None if self.comparison is None else self.comparison.first
        return next((run for run in self.main if run.name == name), None)

    @property
    def task(self) -> ReportFacts:
        """What there is to show of the task of the rows; of rows of which no prediction is left, what is of any."""
        return TASKS["image_classification" if self.comparison is None else self.comparison.held.task].report


def gather(folder: Path, cache_url: str | None = None) -> Contents:
    """Return the contents of a page about the runs below a folder.

    Args:
        folder: of the runs.
        cache_url: where their cache lies now; None: where it was.

    Raises:
        MissingSource: there is no run.
        StillroomError: `cache_url` is given, and is not their cache.
    """
    runs = gather_runs(folder)
    main = _main_runs(runs)
    gain = "accuracy" if any(run.figures["accuracy"] is not None for run in main) else "agreement"
    able = [run for run in main if run.status in WITH_WEIGHTS and run.figures[gain] is not None]
    colours = dict(zip((run.name for run in able), COLOURS, strict=False))  # the few best
    contents = Contents(folder, runs, main, gain, colours, varied_options(runs))
    contents.notices += [f"{run.name}: {getattr(fault, 'what', fault)}" for run in runs for fault in run.faults]
    if len(main) < len(runs) and (others := [run.name for run in runs if run.identity and run not in main]):
        contents.notices.append(
            f"measured on other rows than the {len(main)} that are compared below, and not to be compared with them: "
            + _named(others)
        )
    caches = _open_caches(contents, cache_url)
    _compare(contents, [run for run in main if run.status in WITH_WEIGHTS], caches)
    _describe(contents, caches)
    return contents


def varied_options(runs: Sequence[ShownRun]) -> list[str]:
    """Return the options in which runs differ, at most MOST_VARIED, those with the most values first."""
    options = [run.options for run in runs if run.options]
    names = list(dict.fromkeys(name for each in options for name in each))
    values = {name: len({each.get(name) for each in options}) for name in names}
    varied = [name for name in names if values[name] > 1]
    return sorted(varied, key=lambda name: -values[name])[:MOST_VARIED]


def _named(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _main_runs(runs: list[ShownRun]) -> list[ShownRun]:
    """Return the runs that were measured on the rows that most were; of two such sets the one with the best."""
    # of one without identity nobody knows what it was measured on
    measured = Counter(run.held for run in runs if run.identity)
    return [run for run in runs if run.identity and run.held == measured.most_common(1)[0][0]]


def _open_caches(contents: Contents, cache_url: str | None) -> dict[str, Cache]:
    """Return the caches of the runs by id, that of the main ones first."""
    urls: dict[str, str | None] = {}
    for run in (*contents.main, *contents.runs):
        if (identity := run.cache_id) is not None:
            # of the first run that has recorded it
            urls[identity] = urls.get(identity) or (None if run.record is None else run.record.cache)
    opened = {}
    for number, (identity, url) in enumerate(list(urls.items())[:MOST_CACHES]):
        # the address that is given is of the main runs' cache
        if number == 0 and cache_url is not None:
            opened[identity] = open_cache(cache_url, identity)
        elif url is None:
            contents.notices.append(
                "where the cache lies is recorded with the first student that is done; until then give --cache URL"
            )
        else:
            try:
                opened[identity] = open_cache(url, identity)
            except StillroomError as error:
                contents.notices.append(
                    f"the cache cannot be opened: {error.what}; names of classes, images or text, and what the teacher "
                    "was are left out"
                )
    if len(urls) > MOST_CACHES:
        contents.notices.append(f"the runs are of {len(urls)} caches; {MOST_CACHES} are described")
    return opened


def _compare(contents: Contents, runs: list[ShownRun], caches: dict[str, Cache]) -> None:
    """Add all that is known of single rows."""
    found = contents.comparison = compare_rows(runs, contents.colours)
    if found is None:
        if runs:
            contents.notices.append("no student left predictions: classes, calibration and failures are left out")
        return
    contents.notices += [f"{name}: {fault}" for name, fault in found.faults.items()]
    if found.absent:
        contents.notices.append(
            f"in the leaderboard and the curves only, for they left no predictions: {_named(found.absent)}"
        )
    held = found.held
    contents.teacher = teacher_row(held)
    shower = Shower(caches.get(held.cache), held.dataset, contents.task)
    if found.kept:
        best = next(iter(found.kept.values()))
        BREAKDOWNS[contents.task.breakdown](contents, found, best, shower)
        contents.confusions = [
            row | {"said": shower.class_name(row["top"]), "is": shower.class_name(row["label"])}
            for row in measures.confusions(best).to_dicts()
        ]
    contents.galleries = _galleries(contents, found, shower)
    contents.notices += shower.left_out


def _by_tokens(contents: Contents, found: Comparison, best: pl.DataFrame, shower: Shower) -> None:
    """Add the tokens on which the best student loses most beside its teacher."""
    rows = measures.costliest_tokens(best).to_dicts()
    contents.tokens = [row | {"token": shower.class_name(row["label"])} for row in rows]


def _by_classes(contents: Contents, found: Comparison, best: pl.DataFrame, shower: Shower) -> None:
    """Add how many classes have rows, and those where the best student is furthest behind its teacher."""
    accuracy = pl.col("accuracy")
    low, high = (0.0, 1.0) if found.num_students <= FEW_STUDENTS else (0.25, 0.75)
    ranges = pl.concat(found.by_class).group_by("label").agg(low=accuracy.quantile(low), high=accuracy.quantile(high))
    rows = measures.accuracy_by_class(best).join(ranges, on="label")
    # beside a teacher that is unknown, where it is least accurate
    behind = pl.col("teacher_accuracy").fill_null(1.0) - pl.col("accuracy")
    shown = rows.sort(behind, "label", descending=[True, False]).head(MOST_CLASSES)
    contents.num_classes = len(rows)
    contents.classes = [
        ClassRow(shower.class_name(r["label"]), r["rows"], r["accuracy"], r["teacher_accuracy"], r["low"], r["high"])
        for r in shown.to_dicts()
    ]


BREAKDOWNS: dict[str, Callable[[Contents, Comparison, pl.DataFrame, Shower], None]] = {
    "classes": _by_classes,
    "tokens": _by_tokens,
}


def _galleries(contents: Contents, found: Comparison, shower: Shower) -> list[Gallery]:
    galleries, sites = [], contents.task.sites
    if found.num_students > 1 and found.kept:
        best = next(iter(found.kept.values()))
        most = pl.Series(2 * found.failed > found.num_students)  # more than half of them
        counted = best.with_columns(students=pl.Series(found.failed)).filter(most)
        hardest = counted.sort("students", "teacher_top_probability", descending=True, nulls_last=True)
        noted = hardest.with_columns(note=pl.format(f"{{}} of {found.num_students} students fail", "students"))
        cards = shower.cards(noted, found.held, MOST_CARDS)
        galleries.append(Gallery(f"What most students get wrong: {len(counted):,} {sites}", "best", None, cards))
    for name, table in found.kept.items():
        failed = measures.failures(table)
        if len(failed) and len(galleries) <= MOST_GALLERIES:
            title = f"{name}: {len(failed):,} of {len(table.drop_nulls('label')):,} {sites}"
            cards = shower.cards(failed, found.held, MOST_CARDS)
            galleries.append(Gallery(title, "student", contents.colours[name], cards))
    shown = [gallery for gallery in galleries if gallery.cards]
    if not shown and found.num_students > len(found.kept):
        contents.notices.append(
            f"rows where students fail: none of the {len(found.kept)} best does; of others none is kept"
        )
    return shown


def _describe(contents: Contents, caches: dict[str, Cache]) -> None:
    """Add what the caches say of themselves."""
    for identity, cache in caches.items():
        runs = [run for run in contents.runs if run.cache_id == identity]
        rows = [run.rows_of(role) for role in ("train", "validation") for run in runs]
        try:
            contents.caches.append(cache_facts(cache, list(dict.fromkeys(row for row in rows if row is not None))))
        except StillroomError as error:
            contents.notices.append(f"what {cache.url} says of itself is left out: {error.what}")
