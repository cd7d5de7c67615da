"""The training loop: all students that learn from the same rows, from one pass over them after another.

Each batch is read, decoded, shown and moved once, then every student of that batch size steps on it. Students begin
where their checkpoints are, leave when they have had their epochs, and do not notice each other: one that diverges or
fails is marked and leaves, the others go on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from student_train.evaluate import evaluate
from student_train.events import EpochDone, PassDone, Report, StudentStarted
from student_train.feed.feed import Feed
from student_train.feed.order import Cut
from student_train.fleet import Fleet, Outcome
from student_train.halving import Halving
from student_train.needs import Batch
from student_train.results import Held
from student_train.trainee import Trainee
from student_train.unit import Stacking, Unit, arrange


def train_together(
    trainees: Sequence[Trainee],
    train: Feed,
    held: Feed,
    *,
    seed: int,
    stacking: Stacking,
    halving: Halving | None,
    report: Report,
    stop: Callable[[], bool],
) -> Outcome:
    """Train students from one feed until each is done.

    Args:
        trainees: students of the same rows, wherever each of them is.
        train: rows to learn from, with all that any of them needs.
        held: rows to evaluate on.
        seed: of the order of rows.
        stacking: whether students of one architecture become one program.
        halving: early decisions among them, or None.
        report: told of steps and epochs.
        stop: asked after every step; if it says so, checkpoints are written and the job can go on later.

    Raises:
        Interrupted: `stop` said so.
        StorageFailure: the disk refused; what is written stays good.
    """
    for trainee in trainees:
        parameters = trainee.learner.num_parameters
        report(StudentStarted(trainee.name, parameters, trainee.total_steps, trainee.done_steps))
    fleet = Fleet(arrange(trainees, stacking, report), held, report, stop)
    fleet.begin()
    with fleet.failing_together():
        fleet.finish_those_that_ended()
        while fleet.units:
            _one_epoch(fleet, train, held, seed=seed, halving=halving, report=report, stop=stop)
    report(PassDone())
    return fleet.outcome


def _one_epoch(
    fleet: Fleet,
    train: Feed,
    held: Feed,
    *,
    seed: int,
    halving: Halving | None,
    report: Report,
    stop: Callable[[], bool],
) -> None:
    """Let the students who are furthest behind have an epoch: its steps, its figures, and who goes on."""
    # The epoch of whoever is behind. A unit that is ahead, since a kill left its students so, waits for the pass.
    epoch = min(unit.epoch for unit in fleet.units)

    clock = time.monotonic()
    present = [unit for unit in fleet.units if unit.epoch == epoch]
    for batch_size, step, batches in _batches(train, present, seed=seed, epoch=epoch):
        for unit in fleet.at(epoch, step, batch_size):
            fleet.take(unit, [batches[train.view_of(epoch + view)] for view in unit.views])
        fleet.progress(epoch)
        stopping = stop()
        if stopping or fleet.due_for_checkpoint(epoch):
            clock = fleet.lap(epoch, clock)
            if stopping:
                raise fleet.interrupt()
            fleet.checkpoint(epoch, every_student=False)
        if not fleet.units:
            break
    fleet.check(epoch)  # waits for the device, so that the clock is right
    clock = fleet.lap(epoch, clock)

    measured = fleet.without_recordings_if_need_be(
        lambda: _measure([unit for unit in fleet.units if unit.epoch == epoch], held, stop)
    )
    fleet.lap(epoch, clock, training=False)
    if measured is None:
        raise fleet.interrupt()
    for unit, figures in measured:
        losses = zip(unit.tally.means(), unit.tally.shares(), unit.tally.steps(), strict=True)
        unit.begin_epoch()
        for trainee, own, (means, shares, steps_SK) in zip(list(unit.trainees), figures, losses, strict=True):
            view = train.view_of(epoch + trainee.options.first_view)
            with fleet.failing(trainee):
                trainee.end_epoch(own, view=view, means=means, shares=shares, steps_SK=steps_SK)
                report(EpochDone(trainee.name, trainee.history[-1]))

    if halving is not None:
        fleet.set_aside(halving, epoch + 1)
    fleet.checkpoint(epoch + 1, every_student=True)
    fleet.finish_those_that_ended()


def _measure(units: Sequence[Unit], held: Feed, stop: Callable[[], bool]) -> list[tuple[Unit, list[Held]]] | None:
    """Return the figures of all students of some units, or None if `stop` said so."""
    found: list[tuple[Unit, list[Held]]] = []
    for size in sorted({unit.batch_size for unit in units}):
        alike = [unit for unit in units if unit.batch_size == size]
        tops = [[trainee.run.tops_N for trainee in unit.trainees] for unit in alike]
        parallel = alike[0].trainees[0].run.parallel
        if parallel.size > 1:
            for unit in alike:
                unit.synchronise()
        steppers = [unit.stepper for unit in alike]
        figures = evaluate(steppers, held, tops, batch_size=size, stop=stop, parallel=parallel)
        if figures is None:
            return None
        found += zip(alike, figures, strict=True)
    return found


def _batches(
    train: Feed, units: Sequence[Unit], *, seed: int, epoch: int
) -> Iterator[tuple[int, int, dict[str, Batch]]]:
    """Yield (batch size, step, the batch in each view that is needed) of an epoch, from where the units are."""
    first_steps: dict[tuple[int, str], int] = {}
    for unit in units:
        for view in unit.views:
            key = (unit.batch_size, train.view_of(epoch + view))
            first_steps[key] = min(unit.step, first_steps.get(key, unit.step))
    sizes = Counter(size for size, _ in first_steps)
    least = {size: min(step for (other, _), step in first_steps.items() if other == size) for size in sizes}
    keys = list(first_steps)
    waiting: dict[tuple[int, int], dict[str, Batch]] = {}
    cuts = [Cut(size, view, least[size]) for size, view in keys]  # all views of one batch size in step
    for cut, step, batch in train.shared(cuts, seed=seed, epoch=epoch):
        size, shown = keys[cut]
        there = waiting.setdefault((size, step), {})
        there[shown] = batch
        if len(there) == sizes[size]:
            yield size, step, waiting.pop((size, step))
