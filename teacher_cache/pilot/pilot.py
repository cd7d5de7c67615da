"""The story of a pilot: a few hundred rows, every encoding that the job could use, and what the big run would cost.

Nothing is written, and no cache is needed: rows come straight from the sources. What is measured on them holds for the
dataset as far as they are like it; they are spread over it, not drawn, so that a pilot repeats.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from storage.cache.watcher import Watcher
from storage.encodings import AnyEncoding
from storage.encodings.naming import as_toml
from storage.errors import BadRequest
from storage.tasks import task_of
from storage.views import PLAIN
from teacher_cache.building.prepared import BuildRequest, PreparedBuild, Stage
from teacher_cache.building.survey import prepare_afresh
from teacher_cache.pilot.answers import TimedAnswers, ask
from teacher_cache.pilot.cost import cost_of
from teacher_cache.pilot.foretell import foretell
from teacher_cache.pilot.ingested import measure_rates
from teacher_cache.pilot.ladder import FidelityOptions, ladder
from teacher_cache.pilot.scale import Rates, ScaleOptions
from teacher_cache.pilot.worth import Pace, Worth, weigh
from teacher_cache.teachers.loading import load_teacher
from teacher_cache.teachers.options import TeacherOptions

if TYPE_CHECKING:
    from teacher_cache.pilot.fidelity import Fidelity


NEARLY = 0.9  # of the entropy of a uniform guess


@dataclass(frozen=True)
class PilotRequest:
    """What a pilot is asked for.

    Attributes:
        build: of the job, as `cache build` would ask it.
        fidelity: the job's budget.
        rows: to measure on, of each teacher; of rows with several sites, sites.
        workers: of the big run.
        epochs: of each student.
        scale: another size of the job, which is to be told of; None: of none.
    """

    build: BuildRequest
    fidelity: FidelityOptions
    rows: int
    workers: int
    epochs: int
    scale: ScaleOptions | None = None


class Trial(NamedTuple):
    """One encoding, measured.

    Attributes:
        bytes_per_row: of soft targets as they are stored, statistics and the arrays' metadata included.
        pace: seconds of one row.
        worth: of a cache of all rows in this encoding.
    """

    encoding: AnyEncoding
    bytes_per_row: float
    fidelity: Fidelity
    pace: Pace
    worth: Worth


@dataclass(frozen=True)
class Pilot:
    """What was found of one teacher. Its rows are sites (storage.tasks): of tokens, positions with a label.

    Attributes:
        teacher, datasets: names.
        num_classes: of the targets.
        unit: what a site is called: "row", "token".
        rows_measured: on how many all this rests.
        rows: of the datasets.
        stored_rows: in all their views.
        view: which one was measured.
        mixes: whether it mixes images, which then have no label to be calibrated against.
        rows_per_s: of the teacher alone, in one process.
        device: where it ran.
        feature_bytes_per_row: stored beside, whatever the encoding.
        calibration: expected calibration error of the teacher itself.
        standing: how the teacher stands beside chance on the measured rows, in words; None: none of them has a label.
        is_near_chance: whether it is hardly better.
        look_at: then, with what.
        entropy: mean of the teacher's distributions, nats.
        task: of the datasets, by name.
        foretold_s, took_s: what measuring this teacher was to take from when it was foretold on, and took.
        max_kl: the budget, nats.
        own: the job's encoding.
        trials: smallest first.
        skipped: encoding → why it cannot be used.
        rates: what a row takes before a teacher is asked about it; None: another size was not asked for.
    """

    teacher: str
    datasets: tuple[str, ...]
    num_classes: int
    unit: str
    rows_measured: int
    rows: int
    stored_rows: int
    view: str
    mixes: bool
    rows_per_s: float
    device: str
    feature_bytes_per_row: float
    calibration: float | None
    standing: str | None
    is_near_chance: bool
    look_at: str
    entropy: float
    task: str
    foretold_s: float
    took_s: float
    max_kl: float
    own: AnyEncoding
    trials: tuple[Trial, ...]
    skipped: tuple[tuple[AnyEncoding, str], ...]
    rates: Rates | None = None

    @property
    def is_nearly_uniform(self) -> bool:
        """Whether the teacher says little more than that all classes are alike.

        What it says is then in no few classes, and only dense targets come near it, at many times the bytes: for
        nothing worth learning.
        """
        return self.num_classes > 1 and self.entropy > NEARLY * math.log(self.num_classes)

    @property
    def recommended(self) -> Trial | None:
        """The smallest encoding within the budget; None if there is none.

        Of a nearly uniform teacher none that is larger than the job's own.
        """
        # Draws alone have no KL: by it they are never recommended.
        within = [trial for trial in self.trials if trial.fidelity.kl is not None and trial.fidelity.kl <= self.max_kl]
        if within and self.is_nearly_uniform:
            own = next((trial.bytes_per_row for trial in self.trials if trial.encoding == self.own), 0.0)
            within = [trial for trial in within if trial.bytes_per_row <= own]
        return within[0] if within else None

    @property
    def cheaper(self) -> Trial | None:
        """The nearest encoding of at most a fourth of the recommended one's bytes; None if there is none."""
        best = self.recommended
        if best is None:
            return None
        small = [t for t in self.trials if t.fidelity.kl is not None and t.bytes_per_row <= best.bytes_per_row / 4]
        return min(small, key=lambda trial: trial.fidelity.kl or 0.0, default=None)


def run_pilot(request: PilotRequest, watcher: Watcher) -> list[Pilot]:
    """Measure every teacher of a job.

    Raises:
        BadRequest: the job has no teacher, or `cache build` would refuse it before it starts; or its rows have no
            tokens of which another number was asked for.
        BadTeacher: a teacher's output is not what a cache could be promised.
    """
    if not request.build.teachers:
        raise BadRequest(
            f"{request.build.job} has no teacher to measure",
            found="no [[teacher]]",
            do="add one; docs/jobs/teachers.md has its keys",
        )
    for options in request.build.teachers:
        if not options.encoding.soft or not options.encoding.classes:
            asked = "vectors" if options.encoding.soft else "features alone"
            raise BadRequest(
                f"there is nothing to measure of teacher {options.name}, which is asked for {asked}",
                found=as_toml(options.encoding),
                expected="scores of classes, of which every encoding is tried",
                do=f"leave {options.name} out of a copy of the job; a build of a few rows tells how large they are",
            )
    prepared = prepare_afresh(request.build)
    if request.scale is not None and request.scale.tokens is not None:
        _check_tokens(prepared)
    pilots = []
    for options in request.build.teachers:
        stages = [
            stage for stage in prepared.stages if stage.teacher is not None and stage.teacher.name == options.name
        ]
        # Apart by number of classes: one fidelity over both would be that of neither.
        for num_classes in sorted({stage.dataset.spec.num_classes for stage in stages}):
            of_size = [stage for stage in stages if stage.dataset.spec.num_classes == num_classes]
            pilots.append(_measure_teacher(request, options, of_size, watcher))
    return pilots


def _check_tokens(prepared: PreparedBuild) -> None:
    """Raise BadRequest if a dataset has no tokens that a teacher would answer."""
    for stage in prepared.stages:
        if (unit := task_of(stage.dataset.spec).site_name) != "token":
            raise BadRequest(
                f"--scale tokens=… is not of dataset {stage.dataset.spec.name}",
                found=f"a teacher answers each {unit} of it",
                do="say rows=… in its place",
            )


def _measure_teacher(
    request: PilotRequest, options: TeacherOptions, stages: Sequence[Stage], watcher: Watcher
) -> Pilot:
    """Return what is found of one teacher over datasets with the same number of classes."""
    import torch

    from teacher_cache.pilot.fidelity import calibration_of_dense, entropy_of_dense, standing_of_dense
    from teacher_cache.teachers.loading import pick_device

    torch.set_num_threads(request.build.threads)
    device = pick_device(request.build.device)
    teacher = load_teacher(options, torch.device(device))
    foretold = foretell(teacher, options, stages, request.rows)
    began = time.monotonic()
    watcher.note(f"note: {options.name}: {foretold}")
    asked = ask(teacher, options, stages, request.rows, watcher)
    trials, skipped = _try_encodings(request, options, stages, asked, watcher)
    first, sites = stages[0], _targets(stages, asked)
    task = task_of(first.dataset.spec)
    standing, is_near_chance = standing_of_dense(asked.answers, task)
    return Pilot(
        teacher=options.name,
        datasets=tuple(sites),
        num_classes=asked.answers.num_classes,
        unit=task.site_name,
        rows_measured=len(asked.answers.labels_N),
        rows=sum(sites.values()),
        stored_rows=_stored_rows(stages, asked),
        view=first.view,
        mixes=first.view != PLAIN and first.dataset.views is not None and first.dataset.views.mixes,
        rows_per_s=asked.sites / asked.seconds,
        device=torch.cuda.get_device_name()
        if device == "cuda"
        else f"cpu, {request.build.threads} thread{'s' * (request.build.threads != 1)}",
        feature_bytes_per_row=asked.feature_bytes / asked.sites,
        calibration=calibration_of_dense(asked.answers),
        standing=standing,
        is_near_chance=is_near_chance,
        look_at=task.look_at,
        entropy=entropy_of_dense(asked.answers),
        task=task.name,
        foretold_s=foretold.total_s,
        took_s=time.monotonic() - began,
        max_kl=request.fidelity.max_kl,
        own=options.encoding,
        trials=tuple(sorted(trials, key=lambda trial: trial.bytes_per_row)),
        skipped=tuple(skipped),
        rates=None if request.scale is None else measure_rates(stages, asked),
    )


def _try_encodings(
    request: PilotRequest, options: TeacherOptions, stages: Sequence[Stage], asked: TimedAnswers, watcher: Watcher
) -> tuple[list[Trial], list[tuple[AnyEncoding, str]]]:
    """Return what every encoding takes, and which cannot be used and why."""
    trials, skipped = [], []
    tried = ladder(asked.answers.num_classes, options.encoding)
    watcher.begin(f"{options.name}: encodings", len(tried))
    # Of the smallest shards: there what a shard costs, and a row does not, weighs most.
    per_shard = min(asked.targets(stage.dataset) / len(stage.shards) for stage in stages)
    for encoding in tried:
        cost = cost_of(asked.answers, encoding, per_shard)
        watcher.advance(1)
        if isinstance(cost, str):
            skipped.append((encoding, cost))
            continue
        pace = Pace(asked.seconds / asked.sites, cost.encode_s, cost.read_s)
        worth = weigh(
            pace,
            rows=sum(_targets(stages, asked).values()),
            stored_rows=_stored_rows(stages, asked),
            bytes_per_row=cost.bytes_per_row + asked.feature_bytes / asked.sites,
            workers=request.workers,
            epochs=request.epochs,
        )
        trials.append(Trial(encoding, cost.bytes_per_row, cost.fidelity, pace, worth))
    return trials, skipped


def _targets(stages: Sequence[Stage], asked: TimedAnswers) -> dict[str, int]:
    """Return how many targets each dataset has in one view."""
    return {stage.dataset.spec.name: asked.targets(stage.dataset) for stage in stages}


def _stored_rows(stages: Sequence[Stage], asked: TimedAnswers) -> int:
    """Return how many targets there are in all views: a stage is of one of them."""
    return sum(asked.targets(stage.dataset) for stage in stages)
