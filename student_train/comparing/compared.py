"""Settings that were measured on the same held rows, beside their teachers and chance.

Predictions are read one run at a time, so that thousands of students take no more memory than two.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from storage.errors import StillroomError
from storage.format.sealed import read_json
from storage.tasks import TASKS
from storage.tasks.base import MOST_COUNTED, perplexity_of
from storage.tasks.base import Answered as Counted
from storage.tasks.regression import HARDLY
from student_train.comparing.answers import DATASET, Answers, read_answers
from student_train.comparing.effects import Effect, effects_of
from student_train.comparing.figures import GAINS, Gain
from student_train.comparing.noise import Answered, Difference, Scores, SeedNoise, difference, pooled
from student_train.comparing.runs import ShownRun
from student_train.comparing.settings import Setting, Varied, settings_of, varied_of
from student_train.options.sections import datasets_of, told

BLUEPRINT_FILE = "student.json"


class Teacher(NamedTuple):
    """A teacher on the held rows; None where nobody knows.

    Attributes:
        figures: "accuracy" and "cross_entropy", of language models "perplexity".
        behind: by how much it is worse than the best setting; most are better.
        by_dataset: its figures on the rows of each, where they are of several.
    """

    name: str
    figures: dict[str, float | None]
    behind: Difference | None
    by_dataset: dict[str, dict[str, float | None]]


@dataclass
class Compared:
    """Settings that were measured on the same rows.

    Attributes:
        rows: of the cache, such as "digits/validation"; None: nobody knows.
        num_rows: how many were held.
        sites: how many of them a difference is measured on, and what they are called: of tokens the first positions,
            those that have a label.
        task: by name.
        gain: by which they are compared.
        settings: the best first.
        behind: by how much each is worse than the best, by name; of the best itself nothing.
        noise: that seeds bring; None: no setting has two.
        teachers: those of whom answers on these rows are known.
        chance: the figure of one who knows nothing but how common each class is; None: unknown.
        num_classes: of the task; 0: unknown.
        num_labels, label_counts: held sites with a label, and of each class; of too many classes they are not counted.
        near_chance: who is hardly better than it, "teacher <name>" or a setting, with that in words.
        faults: of files that cannot be read, by name of the student.
        alone: where students have several teachers, the one with whom they are compared, by the names of all.
    """

    rows: str | None
    num_rows: int | None
    task: str
    gain: Gain
    settings: list[Setting]
    sites: tuple[int, str] = (0, "rows")
    behind: dict[str, Difference] = field(default_factory=dict)
    noise: SeedNoise | None = None
    teachers: list[Teacher] = field(default_factory=list)
    chance: float | None = None
    num_classes: int = 0
    num_labels: int = 0
    label_counts: list[int] = field(default_factory=list)
    near_chance: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    alone: dict[tuple[str, ...], str] = field(default_factory=dict)

    @property
    def best(self) -> Setting | None:
        """Return the best setting that can be compared."""
        able = (each for each in self.settings if each.is_measured and each.mean(self.gain.column) is not None)
        return next(able, None)

    @property
    def labels_alone(self) -> Setting | None:
        """Return the best setting without a teacher: one of the best's own architecture and size, if there is one."""
        best, alone = self.best, [each for each in self.settings if each.labels_alone and each.is_measured]
        if best is None or not alone:
            return None
        size = best.first.figures["architecture"], best.first.figures["parameters"]
        like = (e for e in alone if (e.first.figures["architecture"], e.first.figures["parameters"]) == size)
        return next(like, alone[0])

    @property
    def taught(self) -> Setting | None:
        """Return the best setting that had a teacher."""
        return next((each for each in self.settings if not each.labels_alone and each.is_measured), None)

    @property
    def kl_over(self) -> list[str]:
        """Return against which teachers, and over which classes, its students' KL divergences are."""
        runs = (run for setting in self.settings for run in setting.runs)
        told = (None if run.record is None or run.record.kl is None else run.record.kl_over for run in runs)
        return list(dict.fromkeys(over for over in told if over is not None))

    @cached_property
    def datasets(self) -> dict[str, int]:
        """Return how many held rows are of each dataset, in the order of the job; empty: they are of one.

        Empty too of runs from before figures were taken by dataset.
        """
        run = next((run for setting in self.settings for run in setting.runs if run.by_dataset), None)
        if run is None:
            return {}
        return {of: run.by_dataset[of].rows for of in datasets_of(run.rows_of("validation")) if of in run.by_dataset}

    @cached_property
    def beside(self) -> dict[str, str | None]:
        """Return the teachers that students of several are measured against, by name, and over which classes.

        Empty where each has one alone, and of runs from before figures were taken by teacher.
        """
        over: dict[str, dict[str, None]] = {}
        for run in (run for setting in self.settings for run in setting.runs):
            for name, own in run.by_teacher.items():
                over.setdefault(name, {}).update({} if own.over is None else {own.over: None})
        return {name: " or ".join(several) or None for name, several in over.items()}

    @cached_property
    def varied(self) -> list[Varied]:
        """Return what varies between the settings."""
        return varied_of(self.settings)

    @cached_property
    def effects(self) -> list[Effect]:
        """Return what each of them does."""
        return effects_of(self.settings, self.varied, self.gain)


def compare_settings(runs: Sequence[ShownRun]) -> list[Compared]:
    """Return the settings of some runs, apart where they were measured on other rows; where the most were, first."""
    apart: dict[tuple[str, ...], list[ShownRun]] = {}
    for run in runs:
        apart.setdefault(run.held if run.identity else ("", run.name), []).append(run)
    return [_compared(of) for of in sorted(apart.values(), key=len, reverse=True)]


def _compared(runs: list[ShownRun]) -> Compared:
    sample = next(filter(None, (_answers(run, {}) for run in runs)), None)
    task = "image_classification" if sample is None else sample.task
    gain = GAINS[TASKS[task].figure]
    if all(run.figures[gain.column] is None for run in runs):
        gain = GAINS["agreement" if any(run.figures["agreement"] is not None for run in runs) else "accuracy"]
    settings = settings_of(runs, lambda run: gain.order(run.figures))
    found = Compared(told(runs[0].rows_of("validation")) or None, runs[0].held_rows, task, gain, settings)
    if sample is not None:
        counted = sample.table["top"].count() if TASKS[task].has_classes else len(sample.table)
        found.sites = (counted, f"{TASKS[task].site_name}s")
        _beside_chance(found, sample.table)
    _beside_best(found)
    found.alone = _alone(found)
    # a teacher first: what is wrong with it is wrong with its students
    found.near_chance = dict(sorted(found.near_chance.items(), key=lambda each: not each[0].startswith("teacher ")))
    return found


def _beside_chance(found: Compared, table: pl.DataFrame) -> None:
    """Add what is known of chance, and who is hardly better."""
    labels, task = table["label"].drop_nulls(), TASKS[found.task]
    runs = [run for each in found.settings for run in each.runs]
    found.num_classes = next(filter(None, (_num_classes(run, found.faults) for run in runs)), 0)
    if task.numbers:
        weak = {each.name: r2 for each in found.settings if (r2 := each.mean("r2")) is not None and r2 < HARDLY}
        found.near_chance |= {name: f"R² {r2:.3f}" for name, r2 in weak.items()}
        return
    if not found.num_classes or labels.is_empty() or found.gain.column == "agreement":
        return
    counted = found.num_classes <= MOST_COUNTED
    counts = np.bincount(labels.to_numpy(), minlength=found.num_classes).tolist() if counted else []
    found.chance = task.chance(found.num_classes, counts)
    found.label_counts, found.num_labels = counts, len(labels)
    for setting in found.settings:
        if setting.is_measured:
            _check_chance(found, setting.name, setting.mean("accuracy"), setting.mean("cross_entropy"))


def _check_chance(found: Compared, who: str, accuracy: float | None, nats: float | None) -> None:
    """Take down who is hardly better than chance."""
    if found.chance is None or accuracy is None or nats is None:
        return
    count = found.num_labels
    answered = Counted(count, round(accuracy * count), nats * count)
    text, is_near = TASKS[found.task].standing(answered, found.num_classes, found.label_counts)
    if is_near:
        found.near_chance[who] = text


def _beside_best(found: Compared) -> None:
    """Add by how much each setting is behind the best, and the best behind its teachers."""
    best, shares = found.best, found.gain.share
    if best is None:
        return
    able = [setting for setting in found.settings if setting.is_measured]
    found.noise = pooled([setting.values(found.gain.column) for setting in able], shares=shares)
    own, teachers = _answered(best, found, None), _teachers(found.settings, found)
    rows_R = None if own is None else own.rows
    for setting in found.settings:
        if setting is not best and setting.is_measured and own is not None:
            other = _answered(setting, found, rows_R)
            if other is not None:
                less = difference(own.answered, other.answered, found.noise, shares=shares)
                # of tokens a part of the positions shows the noise; the figures are of all
                whole = (best.mean(found.gain.column) or 0.0) - (setting.mean(found.gain.column) or 0.0)
                found.behind[setting.name] = less._replace(mean=found.gain.sign * whole)
    for name, table in teachers.items():
        behind, figures = None, _figures_of(table, found.gain)
        _check_chance(found, f"teacher {name}", figures["accuracy"], figures["cross_entropy"])
        scores_R = _scores(table, found.gain, "teacher_")
        if own is not None and scores_R is not None and own.rows is not None and table["row"].equals(own.rows):
            known_R = scores_R if scores_R.shape == own.shape else None
            if known_R is not None and own.answered.of_rows is not None:
                known = Answered(known_R, known_R.mean(keepdims=True), ())
                less = difference(own.answered, known, found.noise, shares=shares)
                behind = less._replace(mean=found.gain.sign * less.mean)
        found.teachers.append(Teacher(name, figures, behind, _teacher_by_dataset(table, found.gain)))


class _Own(NamedTuple):
    """What a setting answered: its scores, and of which rows; None: no predictions are left."""

    answered: Answered
    rows: pl.Series | None
    shape: tuple[int, ...]


def _answered(setting: Setting, found: Compared, rows: pl.Series | None) -> _Own | None:
    """Return the scores of a setting, of the held rows where all of its students left predictions of `rows`."""
    counted = [run for run in setting.counted if run.figures[found.gain.column] is not None]
    if not counted:
        return None
    total_R: Scores | None = None
    means, whole = [], True
    for run in counted:
        predictions = _answers(run, found.faults)
        scores_R = None if predictions is None else _scores(predictions.table, found.gain, "")
        if predictions is None or scores_R is None or not (rows is None or predictions.table["row"].equals(rows)):
            whole = False
            continue
        rows = predictions.table["row"]
        total_R = scores_R if total_R is None else total_R + scores_R
        means.append(float(scores_R.mean()))
    if not whole or total_R is None:
        means = [run.figures[found.gain.column] for run in counted]
    seeds = tuple(run.chance if run.seed is not None else run.name for run in counted)
    of_rows = total_R / len(counted) if whole and total_R is not None else None
    shape = () if of_rows is None else of_rows.shape
    return _Own(Answered(of_rows, np.array(means), seeds), rows if of_rows is not None else None, shape)


def _scores(table: pl.DataFrame, gain: Gain, who: str) -> Scores | None:
    """Return the score of each held row; None: some have none.

    A block of tokens counts by how many of its positions have a label, so that the mean is that over all positions.
    """
    each = {
        "accuracy": (pl.col(f"{who}top") == pl.col("label")).cast(pl.Float64),
        "cross_entropy": -pl.col(f"{who}label_log_probability"),
        "agreement": (pl.col(f"{who}top") == pl.col("teacher_top")).cast(pl.Float64),
    }.get(gain.column)
    if each is None:  # a figure of pairs, of which no row has a score
        return None
    labelled = table if gain.column == "agreement" else table.filter(pl.col("label").is_not_null())
    row = [DATASET, "row"] if DATASET in table.columns else ["row"]
    known = labelled.select(*row, score=each)
    if known.is_empty() or known["score"].null_count():
        return None
    sums = known.group_by(row, maintain_order=True).agg(pl.sum("score"))["score"].to_numpy()
    return np.asarray(sums * (len(sums) / len(known)))


def _teachers(settings: Iterable[Setting], found: Compared) -> dict[str, pl.DataFrame]:
    """Return the answers of each teacher that a student was compared with, one table for each."""
    tables: dict[str, pl.DataFrame] = {}
    seen: set[str] = set()
    for setting in settings:
        run = setting.first
        teachers = json.dumps(run.identity.get("teachers", {}), sort_keys=True)
        if not run.has_teacher or teachers in seen:
            continue  # of the same teachers the answers are the same
        predictions = _answers(run, found.faults)
        if predictions is not None and predictions.teacher is not None:
            seen.add(teachers)
            tables.setdefault(predictions.teacher, predictions.table)
    return tables


def _alone(found: Compared) -> dict[tuple[str, ...], str]:
    """Return with which one of several teachers students are compared, by the names of all."""
    alone: dict[tuple[str, ...], str] = {}
    for run in (run for setting in found.settings for run in setting.counted):
        if len(run.teachers) > max(1, len(run.by_teacher)) and run.teachers not in alone:
            answers = _answers(run, found.faults)
            if answers is not None and answers.teacher is not None:
                alone[run.teachers] = answers.teacher
    return alone


def _figures_of(table: pl.DataFrame, gain: Gain) -> dict[str, float | None]:
    known = table.filter(pl.col("label").is_not_null(), pl.col("teacher_label_log_probability").is_not_null())
    tops = table.filter(pl.col("label").is_not_null(), pl.col("teacher_top").is_not_null())
    nats: Any = None if known.is_empty() else known["teacher_label_log_probability"].mean()
    right: Any = None if tops.is_empty() else (tops["teacher_top"] == tops["label"]).mean()
    in_nats = {} if gain.share else {"perplexity": None if nats is None else perplexity_of(-nats)}
    return {"accuracy": right, "cross_entropy": None if nats is None else -nats} | in_nats


def _teacher_by_dataset(table: pl.DataFrame, gain: Gain) -> dict[str, dict[str, float | None]]:
    if DATASET not in table.columns:
        return {}
    return {str(of): _figures_of(own, gain) for (of,), own in table.group_by([DATASET], maintain_order=True)}


def _answers(run: ShownRun, faults: dict[str, str]) -> Answers | None:
    try:
        return read_answers(run.folder)
    except StillroomError as error:
        faults[run.name] = error.what
        return None


def _num_classes(run: ShownRun, faults: dict[str, str]) -> int:
    path = run.folder / BLUEPRINT_FILE
    try:
        return int(read_json(path)["num_classes"])
    except (OSError, KeyError, TypeError):
        return 0  # a run that is not done has none
    except (StillroomError, ValueError) as error:
        faults[run.name] = f"{path} is not what was written: {error}"
        return 0
