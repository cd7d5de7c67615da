"""What `student train` is asked for, and each of its students once it is checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.cache import Cache
from storage.encodings import Encoding
from student_train.feed.batches import ArrayKey, Needs
from student_train.feed.devices import Device
from student_train.feed.order import count_steps
from student_train.feed.selection import Selection
from student_train.options.sections import DataOptions, FleetOptions, StudentOptions, TrackOptions
from student_train.options.training import Figure
from student_train.preparing.against import Against, OfSeveral
from student_train.run_files.checkpoint import position_of
from student_train.run_files.folder import RunFolder
from student_train.run_files.position import Position
from student_train.run_files.records import RunRecord
from student_train.stepping.parallel import ALONE, Parallel
from student_train.students import Blueprint
from student_train.tasks import TASKS


@dataclass(frozen=True)
class Request:
    """What `student train` is asked for.

    Attributes:
        cache: where rows are.
        runs: folder of the runs, one below it for each student.
        data: which rows.
        students: in the job's order.
        device: where.
        fleet: how they are trained together.
        parallel: this process among those that train them.
    """

    cache: Cache
    runs: Path
    data: DataOptions
    students: tuple[StudentOptions, ...]
    device: Device = "auto"
    fleet: FleetOptions = field(default_factory=FleetOptions)
    parallel: Parallel = ALONE

    @property
    def together(self) -> FleetOptions:
        """Return how its students are trained together; on several processes each by itself, tracked by the first."""
        if self.parallel.size == 1:
            return self.fleet
        alone = {"stacking": "never", "cuda_graphs": "never"}
        return self.fleet.model_copy(update=alone if self.parallel.writes else alone | {"track": TrackOptions()})


@dataclass(frozen=True)
class PreparedRun:
    """A student that was checked and can be trained; a Run once its rows are at hand.

    Attributes:
        options: its section of the job, in which nothing is left open.
        blueprint: what it is.
        needs: of its losses.
        encodings: of the teachers whose soft targets it needs.
        feature_shapes: of one row of each feature that it needs.
        train, held: rows to learn from, and to be measured on.
        agree_with: the teacher whose top classes of the held rows are known, or None.
        files: of its run, as this process writes them.
        settled: its record, if it needs no more training.
        lost: files of its result that are gone though its record has them: it is trained from its first step.
        tokenizer: the `tokenizer.json` that made its rows, which it keeps; None: there is none.
        warnings: of teachers that it learns from and that are near chance.
        against: the teacher that it is measured against site by site, where its task is.
        why_not_against: why there is none, where one was due.
        several: its teachers, where it has several, as far as it can be measured against them.
        decided: what the job leaves open and was decided here (`left_open.py`), and what cannot be measured, in words.
        started: what it takes of the weights that it starts from, in words; None: it is drawn, or was not looked at.
        made: what the student that it starts from was made from (`student make`); None: it is not of a teacher.
    """

    options: StudentOptions
    blueprint: Blueprint
    needs: Needs
    encodings: dict[str, Encoding]
    feature_shapes: dict[ArrayKey, tuple[int, ...]]
    train: Selection
    held: Selection
    agree_with: str | None
    files: RunFolder
    settled: RunRecord | None
    lost: tuple[str, ...] = ()
    tokenizer: bytes | None = None
    warnings: tuple[str, ...] = ()
    against: Against | None = None
    why_not_against: str | None = None
    several: tuple[OfSeveral, ...] = ()
    decided: tuple[str, ...] = ()
    started: str | None = None
    made: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Return the student's name."""
        return self.options.name

    @property
    def folder(self) -> Path:
        """Return the folder of its run."""
        return self.files.path

    @property
    def steps_an_epoch(self) -> int:
        """Return the steps of a whole epoch."""
        return count_steps(self.train.num_rows, self.options.batch_size)

    @property
    def total_steps(self) -> int:
        """Return the steps of the whole run."""
        return self.options.total_steps(self.steps_an_epoch)

    @property
    def total_epochs(self) -> int:
        """Return the epochs of the whole run, of which the last may be cut short."""
        return -(-self.total_steps // self.steps_an_epoch)

    @property
    def best_by(self) -> Figure:
        """Return the figure by which its weights are best: the job's, or the task's where held rows have labels."""
        if self.options.best_by is not None:
            return self.options.best_by
        task = TASKS[self.blueprint.asked.name]
        return task.best_by if self.held_are_labelled or not task.asked.has_classes else "agreement"

    @property
    def held_are_labelled(self) -> bool:
        """Whether some held row has a label, as far as is known: of labels in an array nothing is read yet."""
        return self.blueprint.asked.label_array is not None or bool(self.held.labelled_mask.any())

    @property
    def held_needs(self) -> Needs:
        """Return what must be read of the held rows: labels, and what it is measured against."""
        needs = Needs(labels=True)
        for against in (self.against, *(each.against for each in self.several)):
            needs = needs if against is None else needs | against.needs
        return needs

    @property
    def why_anew(self) -> str:
        """Return what is told of one whose result is lost."""
        are = "are" if self.lost[1:] else "is"
        return f"trained before, but {' and '.join(self.lost)} {are} gone; it is trained from its first step"

    @property
    def position(self) -> Position | None:
        """Return where its interrupted run is, from where it goes on; None where it begins."""
        return None if self.lost else position_of(self.folder, self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        """Return what it is made from; a checkpoint of anything else is refused."""
        return self.files.identity
