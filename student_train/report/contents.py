"""What the page says, put together from runs, their predictions and their cache; nothing here knows HTML.

Students are compared row by row only where they were measured on the same rows: those of most runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from storage.cache import Cache
from storage.cache.standing import standings
from storage.errors import StillroomError
from storage.format.stores.mirror import as_text
from student_train.comparing.compared import Compared, compare_settings
from student_train.comparing.figures import Gain
from student_train.comparing.runs import ShownRun, gather_runs
from student_train.comparing.settings import MEASURED, Setting
from student_train.report import measures
from student_train.report.caches import CacheFacts, cache_facts, open_cache
from student_train.report.canvas import COLOURS
from student_train.report.gallery import Card, Shower
from student_train.report.rows import Comparison, TeacherRow, compare_rows, teacher_row
from student_train.tasks import TASKS, ReportFacts

MOST_CACHES = 3  # that are described
MOST_CLASSES = 24  # that are shown
FEW_STUDENTS = 8
MOST_GALLERIES = 3  # of single students
MOST_CARDS = 12  # of one gallery


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
        compared: their settings; apart, where they were measured on other rows.
        colours: of the students of highlighted settings, by name.
        comparison: row by row.
        teacher: whom they are compared with.
        classes, num_classes: those that are shown, and how many there are.
        confusions, tokens: rows of tables, of the best student.
        galleries: where students fail.
        caches: what they say of themselves.
        warnings: teachers that are hardly better than chance, by the caches.
        notices: what is left out of the page, and why.
    """

    folder: Path
    runs: list[ShownRun]
    compared: list[Compared]
    colours: dict[str, str] = field(default_factory=dict)
    comparison: Comparison | None = None
    teacher: TeacherRow | None = None
    classes: list[ClassRow] = field(default_factory=list)
    num_classes: int = 0
    confusions: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[dict[str, Any]] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    caches: list[CacheFacts] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def named(self) -> str:
        """What a user calls the folder: an address, of a copy."""
        return as_text(self.folder)

    @property
    def first(self) -> Compared:
        """Return the settings that the page is about: those of the rows on which most runs were measured."""
        return self.compared[0]

    @property
    def main(self) -> list[ShownRun]:
        """Return the students of those, those of the best setting first."""
        return [run for setting in self.first.settings for run in setting.runs]

    @property
    def gain(self) -> Gain:
        """Return by which they are compared."""
        return self.first.gain

    @property
    def best(self) -> Setting | None:
        """Return the best setting."""
        return self.first.best

    @property
    def tops(self) -> dict[str, str]:
        """Return the colours of highlighted settings, by name."""
        return {s.name: self.colours[s.first.name] for s in self.first.settings if s.first.name in self.colours}

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
    contents = Contents(folder, runs, compare_settings(runs))
    able = [s for s in contents.first.settings if s.is_measured and s.mean(contents.gain.column) is not None]
    for setting, colour in zip(able, COLOURS, strict=False):  # the few best
        contents.colours |= {run.name: colour for run in setting.runs}
    contents.notices += [f"{run.name}: {getattr(fault, 'what', fault)}" for run in runs for fault in run.faults]
    if len(contents.main) < len(runs):
        others = [run.name for run in runs if run.identity and run not in contents.main]
        if others:
            contents.notices.append(
                f"measured on other rows than the {len(contents.main)} of this page, with a table of their own: "
                + _named(others)
            )
    caches = _open_caches(contents, cache_url)
    _compare(contents, [run for run in contents.main if run.status in MEASURED], caches)
    _describe(contents, caches)
    return contents


def _named(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


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
    firsts = [setting.first.name for setting in contents.first.settings if setting.name in contents.tops]
    found = contents.comparison = compare_rows(runs, firsts)
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
    shower = Shower(caches.get(held.cache), held.datasets, contents.task)
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
        rows = [row for role in ("train", "validation") for run in runs for row in run.rows_of(role)]
        try:
            contents.caches.append(cache_facts(cache, list(dict.fromkeys(rows))))
            catalogue, used = cache.catalogue(), {row.partition("/")[0] for row in rows}
            for each in standings(catalogue, catalogue.ledger()):
                if each.is_near_chance and each.dataset in used:
                    contents.warnings.append(each.note.removeprefix("warning: "))
        except StillroomError as error:
            contents.notices.append(f"what {cache.url} says of itself is left out: {error.what}")
