"""The runs of a folder; whatever is damaged of one is told with it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import TypeAdapter, ValidationError

from storage.errors import StillroomError
from student_train.options.sections import datasets_of, listed, share_rows
from student_train.options.terms import ObjectiveTerm
from student_train.run_files.comparison import COMPARISON, compare_run, list_runs, rank
from student_train.run_files.history import METRICS_FILE, read_metrics
from student_train.run_files.position import read_position
from student_train.run_files.records import BesideTeacher, Measured, OfDataset, RunRecord, read_job, read_record

Unit = Literal["epochs", "steps"]
TERM: TypeAdapter[ObjectiveTerm] = TypeAdapter(ObjectiveTerm)
# what its name says, or a place of its own in the text
UNTOLD = {"loss", "weight", "teacher", "teachers", "mixing", "feature", "student_layer", "temperature"}


@dataclass(frozen=True)
class ShownRun:
    """One student's run.

    Attributes:
        folder: of its files.
        figures: columns of COMPARISON.
        record: None of one that is not settled, or whose record is damaged.
        identity: what it is made from, of its record or checkpoint; empty if neither can be read.
        history: one row per evaluation, `epoch` in epochs so far, and `step`; may have none.
        job: its job file.
        by_dataset: where the held rows are of several, its figures on those of each.
        by_teacher: where it has several, its figures beside each.
        faults: what could not be read.
    """

    folder: Path
    figures: dict[str, Any]
    record: RunRecord | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    history: pl.DataFrame = field(default_factory=pl.DataFrame)
    job: str | None = None
    by_dataset: dict[str, OfDataset] = field(default_factory=dict)
    by_teacher: dict[str, BesideTeacher] = field(default_factory=dict)
    faults: tuple[StillroomError | str, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def status(self) -> str:
        return str(self.figures["status"])

    @property
    def reason(self) -> str | None:
        """Return why it was stopped, has failed, or is not quite what it seems."""
        return (None if self.record is None else self.record.error) or self.figures["error"]

    def figures_of(self, dataset: str | None) -> dict[str, Any]:
        """Return its figures on the held rows of a dataset; None: on all. Those beside a teacher by `beside`."""
        if dataset is None:
            return self.figures
        own = self.by_dataset.get(dataset)
        return {} if own is None else own.model_dump() | own.named_by_teacher

    @property
    def cache_id(self) -> str | None:
        """Return the identity of the cache that it was trained from."""
        identity = self.identity.get("cache")
        return identity if isinstance(identity, str) else None

    @property
    def held(self) -> tuple[str, ...]:
        """Return which rows it was measured on; figures of different ones are not to be compared.

        Whichever cache they lie in: one of another encoding holds the same rows.
        """
        rows = self.rows_of("validation")
        fingerprints = self._section("datasets")
        return tuple(map(str, (*rows, *map(fingerprints.get, datasets_of(rows)), self._rows)))

    def rows_of(self, role: str) -> tuple[str, ...]:
        """Return which rows of the cache were "train" or "validation", those of each dataset; none: nobody knows."""
        rows = self._section("data").get(role)
        return () if rows is None else listed(rows)

    @property
    def measures_trained_rows(self) -> bool:
        """Return whether it was measured on rows that it was trained on."""
        return share_rows(self.rows_of("train"), self.rows_of("validation"))

    @property
    def held_rows(self) -> int | None:
        """Return how many rows that is."""
        digits = self._rows.partition(",")[0]  # of "360, 9f3c…"
        return int(digits) if digits.isdecimal() else None

    @property
    def _rows(self) -> str:
        return str(self.identity.get("validation_rows", ""))

    @property
    def seed(self) -> int | None:
        """Return the seed that it was made with."""
        return self._section("student").get("seed")

    @property
    def chance(self) -> tuple[int | None, int | None]:
        """Return what drew its weights and the order of its rows: those that differ in it alone are one setting."""
        return self.seed, self._section("data").get("order_seed")

    @property
    def keys(self) -> dict[str, Any]:
        """Return what its section of the job says, seed apart: a value for each key, such as "kd.temperature".

        What lies in a term of the objective is called by its loss, as a sweep calls it; of two terms of one loss by
        position. "losses" are the names of them all.
        """
        flat: dict[str, Any] = {}
        for name, value in self._section("student").items():
            if name == "objective" and isinstance(value, list) and all(isinstance(term, dict) for term in value):
                losses = [str(term.get("loss")) for term in value]
                flat["losses"] = " + ".join(losses)
                for place, (loss, term) in enumerate(zip(losses, value, strict=True)):
                    prefix = loss if losses.count(loss) == 1 else f"objective.{place}"
                    flat |= {f"{prefix}.{key}": below for key, below in term.items() if key != "loss"}
            elif isinstance(value, dict):
                flat |= {f"{name}.{key}": below for key, below in value.items()}
            elif name != "seed":
                flat[name] = value
        return {name: value for name, value in flat.items() if value is not None}

    @property
    def unit(self) -> Unit:
        """Return in what its job says how long it is trained."""
        return "epochs" if self.keys.get("max_steps") is None else "steps"

    @property
    def so_far(self) -> str:
        """Return how long it was trained until it was measured last: "3 epochs", "40 steps, 0.31 epochs"."""
        count, done = self.figures[self.unit] or 0, self.figures["epochs_done"]
        text = f"{count} {self.unit if count != 1 else self.unit[:-1]}"
        return text if self.unit == "epochs" or done is None else f"{text}, {done:.3g} epochs"

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher had a part in it, as far as is known."""
        return bool(self._section("teachers"))

    @property
    def teachers(self) -> tuple[str, ...]:
        """Return the teachers that its objective names, in its order."""
        try:
            terms = [TERM.validate_python(term) for term in self._section("student").get("objective", ())]
        except (ValidationError, TypeError):  # of a later version
            return ()
        return tuple(dict.fromkeys(name for term in terms for name in term.teacher_names))

    @property
    def options(self) -> dict[str, str]:
        """Return what its section of the job says, a line of text for each option."""
        flat: dict[str, str] = {}
        for name, value in self._section("student").items():
            if name == "objective":
                flat[name] = objective_text(value)
            elif isinstance(value, dict):
                flat |= {f"{name}.{key}": _text(below) for key, below in value.items()}
            elif value is not None:
                flat[name] = _text(value)
        return flat

    def _section(self, name: str) -> dict[str, Any]:
        section = self.identity.get(name)
        return section if isinstance(section, dict) else {}


def gather_runs(runs: Path) -> list[ShownRun]:
    """Return every run below a folder, the most accurate first. Raises MissingSource: there is none."""
    found = {run.name: run for run in map(read_run, list_runs(runs))}
    order = rank([run.figures for run in found.values()])["student"]
    return [found[name] for name in order]


def read_run(folder: Path) -> ShownRun:
    """Return what can be read of a run."""
    faults: list[StillroomError | str] = []
    figures = dict.fromkeys(COMPARISON) | {"student": folder.name}
    record = None
    identity: dict[str, Any] = {}
    by_dataset: dict[str, OfDataset] = {}
    by_teacher: dict[str, BesideTeacher] = {}
    try:
        record = read_record(folder)
        figures |= compare_run(folder)
        identity, last = _known(folder, record)
        if last is not None:
            by_dataset, by_teacher = last.by_dataset, last.by_teacher
            figures |= last.named_by_teacher
    except StillroomError as error:
        faults.append(error)
        figures |= {"status": "unreadable", "error": str(error)}
    history = pl.DataFrame()
    try:
        history = _history(folder)
    except StillroomError as error:
        faults.append(error)
    except Exception as error:  # a table of other columns
        faults.append(f"{folder / METRICS_FILE} cannot be read: {str(error)[:200]}")
    job = None
    try:
        job = read_job(folder, record)
    except StillroomError as error:
        faults.append(error)
    return ShownRun(folder, figures, record, identity, history, job, by_dataset, by_teacher, tuple(faults))


def objective_text(terms: Any) -> str:
    """Return an objective as a sum: "0.9 labels + 0.1 kd:wide T=2"."""
    try:
        return " + ".join(_term_text(TERM.validate_python(term)) for term in terms)
    except (ValidationError, TypeError):
        return _text(terms)


def _term_text(term: Any) -> str:
    weight = "" if term.weight == 1 else f"{term.weight:g} "
    temperature = f" T={term.temperature:g}" if getattr(term, "temperature", None) is not None else ""
    layer = f" → {term.student_layer}" if hasattr(term, "student_layer") else ""
    others = term.model_dump(mode="json", exclude_defaults=True, exclude=UNTOLD)
    return f"{weight}{term.name}{layer}{temperature}" + "".join(f" {key}={_text(v)}" for key, v in others.items())


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, separators=(", ", ": "))


def _known(folder: Path, record: RunRecord | None) -> tuple[dict[str, Any], Measured | None]:
    """Return what a run is made from, and its figures: of its record, or of its last evaluation so far."""
    if record is not None:
        return record.identity, record
    where = read_position(folder)
    if where is None:
        return {}, None
    return where.identity, where.history[-1] if where.history else None


def _history(folder: Path) -> pl.DataFrame:
    """Return one row per evaluation, with every column that the page draws."""
    metrics = read_metrics(folder)
    if metrics is None:
        return pl.DataFrame()
    wanted = {
        "epoch": pl.Float64,
        **dict.fromkeys(("accuracy", "agreement", "cross_entropy", "train_loss", "learning_rate"), pl.Float64),
    }
    if "epochs_done" in metrics.columns:  # an evaluation may be in the middle of an epoch
        metrics = metrics.with_columns(epoch="epochs_done")
    wanted |= {"kl": pl.Float64, "step": pl.Float64}  # which runs had not from the first
    absent = {name: pl.lit(None) for name in ("kl", "step") if name not in metrics.columns}
    return metrics.with_columns(**absent).select(*wanted).cast(wanted)  # type: ignore[arg-type]
