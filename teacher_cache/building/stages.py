"""Run the work of one stage after another: count it, set aside what fails, keep the ledger short, say what happened.

Building and recoding share it: what they run is another matter (`teacher_cache.work`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import polars as pl

from storage.cache import Cache
from storage.cache.catalogue import Catalogue
from storage.cache.standing import Standing, classes_told, mixing_told, standings
from storage.cache.watcher import Watcher
from storage.errors import CorruptObject, Overdue, RowsMissing, StillroomError, StorageFailure, WorkerDied
from storage.format.ledger import Ledger, remember
from storage.format.rows import ShardRows
from storage.format.shards import ShardKey
from storage.views import PLAIN
from teacher_cache.building.runners import Runner
from teacher_cache.work.pieces import Done, Work
from teacher_cache.work.telling import Underway

REMEMBER_EVERY_SHARDS = 1000  # so that `cache status` stays quick beside a long build
SET_ASIDE_LIMIT = 5  # shards that fail for no known reason, or take too long, before the command stops


@dataclass
class BuildReport:
    """What a build did, or a recoding.

    Attributes:
        built: shards committed by this command, in all its stages.
        present: shards of this part that were there before.
        lost: shards that another builder committed first.
        refused, failed: message per shard that could not be built.
        overdue: how many of the refused took too long.
        quarantined: dataset → `row`, `sample_id`, `error`.
        standings: how each teacher stands beside chance.
        classes: a line for each dataset, of its classes and their rows, and one where views hardly mix them.
        answered: (dataset, teacher) of whose targets a shard is there, this command's or not.
        repeats: lines on rows whose content occurs twice, of datasets of which rows were ingested.
    """

    built: int = 0
    present: int = 0
    lost: int = 0
    rows: int = 0
    bytes: int = 0
    refused: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    overdue: int = 0
    quarantined: dict[str, pl.DataFrame] = field(default_factory=dict)
    standings: list[Standing] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    answered: set[tuple[str, str]] = field(default_factory=set)
    repeats: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 complete, 1 a failure of ours, 3 rows are missing."""
        if self.failed:
            return 1
        return RowsMissing.exit_code if self.refused or any(map(len, self.quarantined.values())) else 0


@dataclass(frozen=True)
class Stages:
    """The stages of one command, run one after another.

    Attributes:
        cache: which they fill.
        runner: runs their work.
        watcher: is told, in rows, or in what shards are planned in.
        report: what came of them so far.
        underway: rows that were counted already of shards that are not done.
    """

    cache: Cache
    runner: Runner
    watcher: Watcher
    report: BuildReport = field(default_factory=BuildReport)
    underway: dict[ShardKey, int] = field(default_factory=dict)
    _unsummarised: list[ShardKey] = field(default_factory=list, init=False)

    def run(
        self,
        name: str,
        shards: Sequence[ShardRows],
        todo: Sequence[ShardRows],
        pieces: Iterable[Work],
        on_done: Callable[[Done], None] = lambda done: None,
        *,
        unit: str | None = None,
        measure: int = 1,
    ) -> None:
        """Run what is missing of a stage.

        Args:
            name: for whoever watches.
            shards: all of the stage that this command is to see to.
            todo: those of them that are not there.
            pieces: work for those of `todo` whose turn it is; the inputs of others may not be there yet.
            on_done: called with each shard that is whole; what it raises ends the command.
            unit: of what shards are planned in, if not rows.
            measure: about how much of it a row is.

        Raises:
            StillroomError: of one shard, where all others would fail like it; shards committed so far stay.
        """
        rows, missing = (sum(shard.stop - shard.start for shard in each) for each in (shards, todo))
        sizes = {} if unit is None else {shard.shard: shard.stop - shard.start for shard in todo}
        # Others may commit some of `todo` meanwhile: those are told as lost, not as present.
        self.report.present += len(shards) - len(todo)
        self.watcher.begin(name, rows, rows - missing, unit)
        self.underway.clear()
        with contextlib.closing(self.runner(pieces)) as results:  # an error cancels what is in flight
            for work, result in results:
                # further than it was before; where it is tried again, or failed, less far
                rows = 0 if isinstance(result, Exception) else result.rows
                if unit is not None:  # all of what was planned, when it is done
                    planned = sizes[work.key.shard]
                    rows = planned if isinstance(result, Done) else min(rows * measure, planned)
                self.watcher.advance(rows - self.underway.pop(work.key, 0))
                if isinstance(result, Underway):
                    self.underway[work.key] = rows
                elif isinstance(result, Done):
                    self._count(result)
                    on_done(result)
                else:
                    self._set_aside(work, result)

    def end(self, catalogue: Catalogue, ledger: Ledger) -> BuildReport:
        """Return the report, with unreadable samples and how teachers stand, after the ledger is written.

        Args:
            catalogue: of the datasets of this command, as they are now.
            ledger: likewise.
        """
        self._summarise(ledger.compact)
        self.report.standings += standings(catalogue, ledger)
        self.report.classes += classes_told(catalogue, ledger) + mixing_told(catalogue, ledger)
        self.report.answered |= {
            (name, teacher) for name, teacher in catalogue.teachers if catalogue.view_names(name, teacher)
        }
        for name in catalogue.datasets:
            shards = ledger.of(name, None, PLAIN).filter(pl.col("quarantined") > 0)["shard"].to_list()
            if shards:
                self.report.quarantined[name] = self.cache.samples([name], ()).quarantined(name, shards)
        return self.report

    def _count(self, done: Done) -> None:
        report = self.report
        report.built += done.won
        report.lost += not done.won
        report.rows += done.rows
        report.bytes += done.bytes
        if done.won:
            self._unsummarised.append(done.key)
        if len(self._unsummarised) == REMEMBER_EVERY_SHARDS:
            self._summarise(lambda: remember(self.cache.objects, self._unsummarised, self.cache.promises.checked))
            self._unsummarised.clear()

    def _summarise(self, write: Callable[[], None]) -> None:
        """Write to the ledger, which is a memory: shards that are whole do not fail for want of it."""
        try:
            write()
        except StorageFailure as error:
            self.watcher.note(
                f"note: {self.cache.url}: the ledger was not written ({error.found}); nothing is lost, "
                "`cache status` reads each commit that it lacks"
            )

    def _set_aside(self, work: Work, error: Exception) -> None:
        """Keep a failed shard for the report; raise if every other shard would fail like it."""
        report = self.report
        if isinstance(error, RowsMissing):  # a fact about these rows alone
            report.refused.append(str(error))
            self.watcher.note(str(error))
            report.overdue += isinstance(error, Overdue)
            if report.overdue >= SET_ASIDE_LIMIT:  # of all rows, it seems, and each takes its time
                raise error
            return
        if isinstance(error, StillroomError) and not isinstance(error, CorruptObject | WorkerDied):
            raise error  # a fact about the request
        reason = error.what if isinstance(error, WorkerDied) else str(error)
        report.failed.append(f"{work.key}: {reason if isinstance(error, StillroomError) else repr(error)}")
        self.watcher.note(report.failed[-1])
        if len(report.failed) >= SET_ASIDE_LIMIT:
            raise StillroomError("too many shards fail; the build stops", found="\n".join(report.failed)) from error
