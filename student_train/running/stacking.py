"""Who is stacked: runs that can be one program are, where that is faster or the job asks for it.

Those that are alike (`stack_key`) could be one program. Whether they can, and whether it is faster, is decided by
timing a few steps of both on blank rows, on copies of the students. The job's `stacking` may arrive here as "never"
already: of several processes (`train.py`), or for want of memory (`preparing/weighing/projection.py`).
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch

from student_train.feed.batches import Batch
from student_train.options.sections import Choice
from student_train.preparing.weighing.blank import blank_batch
from student_train.running.events import Report, StackingChosen
from student_train.running.run import Run
from student_train.running.team import Team
from student_train.stepping.alone import Alone
from student_train.stepping.recorder import WARM_STEPS
from student_train.stepping.stack.stack import Stack, stack_key
from student_train.stepping.stepper import Stepper

TRIED_ALONE = 4  # students whose steps are timed one by one; the others are like them
TRIED_STEPS = 3  # timed, after those that warm up
TRIAL_S = 5.0  # after which no further step is tried: what takes so long is not decided by a few percent
CLEARLY_FASTER = 0.95  # of the time of one by one; a stack that gains less is not worth its memory


def arrange(runs: Sequence[Run], stacking: Choice, report: Report) -> list[Team]:
    """Return the runs in teams: those that can be one program are stacked where that is faster, or asked for."""
    recomputed = tuple(run.name for run in runs if run.options.recompute)
    if stacking == "always" and len(recomputed) > 1:
        report(StackingChosen(recomputed, False, "recompute = true: each runs its own blocks again"))
    kinds: dict[Hashable, list[Run]] = defaultdict(list)
    for run in runs:
        where = (run.epoch, run.step, run.stacked)  # who is not at the same step cannot take the next together
        kinds[run.name if stacking == "never" else (stack_key(run.options, run.prepared.blueprint), where)].append(run)
    teams = []
    for alike in kinds.values():
        stacked = len(alike) > 1 and _decide(alike, stacking, report)
        teams += [Team(alike)] if stacked else [Team([run]) for run in alike]
    return teams


def _decide(alike: Sequence[Run], stacking: Choice, report: Report) -> bool:
    """Return whether runs that are alike are to be stacked, and tell why."""
    names = tuple(run.name for run in alike)
    if alike[0].stacked is not None:
        report(StackingChosen(names, alike[0].stacked, "as they were when they stopped"))
        return alike[0].stacked
    try:
        one_by_one_s, stacked_s = _time_both(alike)
    except Exception as error:  # dropout, a user's own model, memory: by itself each student still has its chance
        first_line = (str(error).splitlines() or ["no reason given"])[0]
        why = "each draws random numbers of its own, as dropout does"
        if "randomness error mode" not in first_line:  # of vmap
            why = f"{first_line} ({type(error).__name__})"
        report(StackingChosen(names, False, f"they cannot be one program: {why}"))
        return False
    figures = f"a step of all takes {1e3 * stacked_s:.3g} ms stacked, {1e3 * one_by_one_s:.3g} ms one by one"
    stacked = stacking == "always" or stacked_s < CLEARLY_FASTER * one_by_one_s
    report(StackingChosen(names, stacked, figures if stacking == "auto" else f"the job says so; {figures}"))
    return stacked


def _time_both(alike: Sequence[Run]) -> tuple[float, float]:
    """Return the seconds of a step of all, one by one and stacked, medians of a few; on copies and blank rows."""
    first, states = alike[0], [run.state for run in alike]
    batch = blank_batch(states[0].student, first.prepared)
    views = sorted({run.options.first_view for run in alike})
    seen = [views.index(run.options.first_view) for run in alike]
    stacked_s = _time_steps(
        [Stack([state.copy() for state in states], seen, recorded=first.context.recorded)], [batch] * len(views)
    )
    alone = [Alone(state.copy(), recorded=first.context.recorded) for state in states[:TRIED_ALONE]]
    return _time_steps(alone, [batch]) * len(alike) / len(alone), stacked_s  # as if it were all of them


def _time_steps(steppers: Sequence[Stepper], batches: Sequence[Batch]) -> float:
    """Return the seconds of a step of all of them, the median of a few; they are of no use then."""
    device = batches[0].inputs.device

    def timed() -> float:
        began = time.perf_counter()
        for stepper in steppers:
            stepper.step(batches, [0.0] * len(stepper.states), 0, measure_shares=False)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # a call returns before the device is done
        return time.perf_counter() - began

    for _ in range(WARM_STEPS + 1 if device.type == "cuda" else 1):  # compiles kernels, fills caches, and records
        timed()
    found = [timed()]
    while len(found) < TRIED_STEPS and sum(found) < TRIAL_S:
        found.append(timed())
    for stepper in steppers:
        stepper.release()
    return statistics.median(found)
