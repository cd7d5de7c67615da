"""Early decisions: of the students that share a pass, only the best go on to the next rung.

Rungs are at `first_epochs`, `first_epochs`·factor, `first_epochs`·factor², … epochs. At each, the best 1/factor go on,
one at least; the others are set aside with their weights as they are.

Source: Jamieson & Talwalkar 2015 (successive halving), arXiv 1502.07943; ASHA, Li et al. 2018, arXiv 1810.05934,
decides without waiting for stragglers. Students of one pass come to a rung together, so that nobody waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from student_train.options.sections import HalvingOptions
from student_train.options.training import goodness
from student_train.run_files.records import EpochMetrics, RunRecord
from student_train.running.run import Run


@dataclass(frozen=True)
class Halving:
    """The decisions of one pass.

    Attributes:
        options: the `[halving]` of a job, with a metric.
        stopped: students that were set aside before this command began, by the same section.
    """

    options: HalvingOptions
    stopped: tuple[RunRecord, ...] = ()

    @property
    def section(self) -> dict[str, Any]:
        """Return the job's section, for the record of who is set aside."""
        return self.options.model_dump(mode="json")

    def is_rung(self, epochs: int) -> bool:
        """Return whether it is decided after so many epochs who goes on."""
        rung = self.options.first_epochs
        while rung < epochs:
            rung *= self.options.factor
        return rung == epochs

    def outrun(self, present: Sequence[Run], epochs: int) -> list[tuple[Run, str]]:
        """Return the students to be set aside after so many epochs, each with the reason; none but at a rung.

        A decision that a kill cut short is made again alike: those that it had set aside already count among the worst.
        """
        running = [run for run in present if not run.ended]  # who has had all epochs is not set aside
        before = sum(record.epochs == epochs for record in self.stopped)
        if not self.is_rung(epochs) or len(running) + before < 2:
            return []
        going_on = max(1, ceil((len(running) + before) / self.options.factor))
        # by name among equals, to be decided alike again
        ranked = sorted(running, key=lambda run: (self._badness(run.history[-1]), run.name))
        metric, after = str(self.options.metric), f"{epochs} epochs" if epochs > 1 else "1 epoch"
        return [
            (
                run,
                f"set aside after {after}: {metric} {getattr(run.history[-1], metric):.4g}, "
                f"place {place} of {len(running) + before}; the best {going_on} went on",
            )
            for place, run in enumerate(ranked, start=1)
            if place > going_on
        ]

    def _badness(self, metrics: EpochMetrics) -> float:
        assert self.options.metric is not None
        value: float | None = getattr(metrics, self.options.metric)
        assert value is not None  # checked before the first step
        return -goodness(self.options.metric, value)
