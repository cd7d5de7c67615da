"""The training loop: all students that learn from the same rows, from one pass over them after another.

Each batch is read, decoded, shown and moved once, then every student of that batch size steps on it. Students begin
where their checkpoints are, leave when they have had their epochs, and do not notice each other: one that diverges or
fails is marked and leaves, the others go on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from student_train.feed.batches import Batch
from student_train.feed.feed import Feed
from student_train.feed.order import Cut
from student_train.options.sections import Choice
from student_train.run_files.records import Measured
from student_train.running.cohort import Cohort, Outcome
from student_train.running.events import EpochDone, PassDone, Report, StudentStarted, WithinEpoch
from student_train.running.halving import Halving
from student_train.running.measuring.evaluate import evaluate
from student_train.running.run import Run
from student_train.running.stacking import arrange
from student_train.running.team import Team


def train_together(
    runs: Sequence[Run],
    train: Feed,
    held: Feed,
    *,
    seed: int,
    stacking: Choice,
    halving: Halving | None,
    report: Report,
    stop: Callable[[], bool],
) -> Outcome:
    """Train students from one feed until each is done.

    Args:
        runs: students of the same rows, wherever each of them is.
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
    for run in runs:
        parameters = run.state.num_parameters
        report(StudentStarted(run.name, parameters, run.total_steps, run.done_steps))
    cohort = Cohort(arrange(runs, stacking, report), held, report, stop)
    cohort.begin()
    with cohort.failing_together():
        # a kill may have come between the last epoch and the record
        cohort.finish_those_that_ended()
        while cohort.teams:
            _one_epoch(cohort, train, held, seed=seed, halving=halving, report=report, stop=stop)
    report(PassDone())
    return cohort.outcome


def _one_epoch(
    cohort: Cohort,
    train: Feed,
    held: Feed,
    *,
    seed: int,
    halving: Halving | None,
    report: Report,
    stop: Callable[[], bool],
) -> None:
    """Let the students who are furthest behind have an epoch: its steps, its figures, and who goes on."""
    # The epoch of whoever is behind. A team that is ahead, since a kill left its students so, waits for the pass.
    epoch = min(team.epoch for team in cohort.teams)

    if cohort.due_within(epoch):  # a kill may have come between a step and its evaluation
        _measure_within(cohort, epoch, train, held, report, stop)
    clock = time.monotonic()
    present = [team for team in cohort.teams if team.epoch == epoch]
    for batch_size, step, batches in _batches(train, present, seed=seed, epoch=epoch):
        # asked for each batch anew: teams part, and leave
        for team in cohort.at(epoch, step, batch_size):
            cohort.take(team, [batches[train.view_of(epoch + view)] for view in team.views])
        cohort.progress(epoch)
        stopping = stop()  # once a step: several processes agree by a message
        if stopping or cohort.due_for_checkpoint(epoch):
            clock = cohort.lap(epoch, clock)  # a checkpoint tells the seconds up to now
            if stopping:
                raise cohort.interrupt()
            cohort.checkpoint(epoch, every_student=False)
        if cohort.due_within(epoch):
            cohort.check(epoch)  # waits for the device, so that the clock is right
            cohort.lap(epoch, clock)
            _measure_within(cohort, epoch, train, held, report, stop)
            clock = time.monotonic()
        if not any(team.epoch == epoch for team in cohort.teams):  # all have failed, or ended
            break
    cohort.check(epoch)
    cohort.lap(epoch, clock)
    _measure(cohort, epoch, train, held, report, stop, within=False)
    if halving is not None:
        cohort.set_aside(halving, epoch + 1)
    cohort.checkpoint(epoch + 1, every_student=True)  # before any result: a kill meanwhile comes back to here
    cohort.finish_those_that_ended()


def _measure_within(
    cohort: Cohort, epoch: int, train: Feed, held: Feed, report: Report, stop: Callable[[], bool]
) -> None:
    """Measure the students that are due in the middle of an epoch; those whose steps end here are finished."""
    _measure(cohort, epoch, train, held, report, stop, within=True)
    if any(run.ended for team in cohort.teams if team.epoch == epoch for run in team.runs):
        cohort.checkpoint(epoch, every_student=True)  # as after an epoch
        cohort.finish_those_that_ended()


def _measure(
    cohort: Cohort, epoch: int, train: Feed, held: Feed, report: Report, stop: Callable[[], bool], *, within: bool
) -> None:
    """Measure students in an epoch: those due in the middle of it, or at its end all. Raises Interrupted."""
    clock = time.monotonic()
    teams = [
        team
        for team in cohort.teams
        if team.epoch == epoch and (not within or any(run.due_within_epoch() for run in team.runs))
    ]
    measured = cohort.without_recordings_if_need_be(lambda: _figures(teams, held, stop))
    cohort.lap(epoch, clock, training=False)
    if measured is None:
        raise cohort.interrupt()
    for team, figures in measured:
        # before they are forgotten
        losses = zip(team.tally.means(), team.tally.shares(), team.tally.steps(), strict=True)
        due = [not within or run.due_within_epoch() for run in team.runs]  # of a stack perhaps not all
        of_team = list(zip(team.runs, due, figures, losses, strict=True))
        team.begin_row(due, whole_epoch=not within)
        for run, is_due, own, (means, shares, steps_SK) in of_team:
            if not is_due:
                continue
            view = train.view_of(epoch + run.options.first_view)
            with cohort.failing(run):
                run.measured(own, view=view, means=means, shares=shares, steps_SK=steps_SK)
                first_losses = dict(zip(run.state.objective.names, steps_SK[:1, 1:].ravel().tolist(), strict=False))
                report((WithinEpoch if within else EpochDone)(run.name, run.history[-1], first_losses))


def _figures(teams: Sequence[Team], held: Feed, stop: Callable[[], bool]) -> list[tuple[Team, list[Measured]]] | None:
    """Return the figures of all students of some teams, or None if `stop` said so."""
    found: list[tuple[Team, list[Measured]]] = []
    for size in sorted({team.rows_at_once for team in teams}):
        alike = [team for team in teams if team.rows_at_once == size]
        tops = [[run.context.tops_N for run in team.runs] for team in alike]
        against = [[run.prepared.against for run in team.runs] for team in alike]
        parallel = alike[0].runs[0].context.parallel
        steppers = [team.stepper for team in alike]
        for stepper in steppers:
            stepper.synchronise()
        several = [[run.prepared.several for run in team.runs] for team in alike]
        figures = evaluate(steppers, held, tops, against, several, batch_size=size, stop=stop, parallel=parallel)
        if figures is None:
            return None
        found += zip(alike, figures, strict=True)
    return found


def _batches(
    train: Feed, teams: Sequence[Team], *, seed: int, epoch: int
) -> Iterator[tuple[int, int, dict[str, Batch]]]:
    """Yield (batch size, step, the batch in each view that is needed) of an epoch, from where the teams are."""
    first_steps: dict[tuple[int, str], int] = {}
    for team in teams:
        for view in team.views:
            key = (team.batch_size, train.view_of(epoch + view))
            first_steps[key] = min(team.step, first_steps.get(key, team.step))
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
