"""What is said of students while they train, in this process or on a worker: events into counts, notes and details."""

from __future__ import annotations

from storage.cache.watcher import Watcher
from storage.errors import si
from storage.views import PLAIN
from student_train.comparing.figures import in_units
from student_train.run_files.records import EpochMetrics
from student_train.running import events

IDLE_SHARE = 0.01  # of the gradient; below it a term is worth a note
NO_LOSS = 1e-3  # before its weight; of a divergence in nats, as of rounding


class TrainProgress:
    """Shows what happens to the students: one bar for all that share a pass."""

    def __init__(self, watch: Watcher):
        self._watch = watch
        self._done_steps = self._loaded_shards = 0
        self._students = 0  # of the pass that runs
        self._by_steps = False
        self._weighed: set[str] = set()  # students whose terms' shares were looked at
        self._best: EpochMetrics | None = None  # of its students, in its furthest epoch

    def report(self, event: events.Event) -> None:
        match event:
            case events.FeedChosen():
                self._watch.note(f"rows: {event.residency} ({event.why})")
                if event.views:
                    self._watch.note(f"views: {event.views}; epoch e shows view (e - 1) mod {event.views}")
            case events.MemoryProjected():
                on_device = "" if event.device_bytes is None else f", {si(event.device_bytes, 'B')} on the device"
                self._watch.note(f"memory: at most {si(event.host_bytes, 'B')}{on_device}")
            case events.BatchIsAllRows():
                who = _who(event.students)
                self._watch.note(f"note: {who}: batch_size is more than the {event.rows} rows; an epoch is one step")
            case events.Loading():
                if event.done_shards == 1:
                    self._watch.begin(f"{event.students}, {event.rows}", event.shards, unit="shards")
                self._watch.advance(event.done_shards - self._loaded_shards)
                self._loaded_shards = event.done_shards % event.shards
            case events.PassStarted():
                self._watch.begin(event.students, event.total_steps, event.done_steps)
                self._done_steps, self._by_steps = event.done_steps, event.by_steps
            case events.Progress():
                loss = f"{self._of_many('median ')}loss {event.loss:.4g}"
                where = f"epoch {event.epoch}/{event.epochs}"
                if self._by_steps:
                    where = f"step {event.step}/{event.steps}, {event.epochs_done:.3g} epochs,"
                self._watch.advance(event.done_steps - self._done_steps, f"{where} {loss}")
                self._done_steps = event.done_steps
            case events.PassDone():
                self._watch.complete()
                self._students, self._best = 0, None
            case _:
                self._tell_unit(event)
                self._tell_student(event)

    def _tell_unit(self, event: events.Event) -> None:
        match event:
            case events.StackingChosen():
                how = "stacked" if event.stacked else "one by one"
                self._watch.note(f"{len(event.students)} students like {event.students[0]}: {how} ({event.why})")
            case events.StackTakenApart():
                self._watch.note(f"{event.stack}: taken apart into {event.parts}, same rows again ({event.why})")
            case events.StepsNotRecorded():
                self._watch.note(f"{event.students}: steps are not recorded as CUDA graphs ({event.why})")
            case events.TeacherNearChance():
                self._watch.note(event.warning)
            case events.LeftOpen():
                self._watch.note(f"note: {_who(event.students)}: {event.note}")
            case events.NotBesideTeacher():
                self._watch.note(f"note: {_who(event.students)}: no KL to a teacher on the held rows: {event.why}")
            case events.NotKept():
                self._watch.note(f"note: {event.why}")
            case events.ShardsKept():
                read, fetched = si(event.read_bytes, "B"), si(event.fetched_bytes, "B")
                self._watch.note(f"shards: {read} from {event.folder}, {fetched} from the store")
            case events.RunsNotLocked():
                self._watch.note(f"{event.folder}: its disk has no locks; let no other command train these students")

    def _tell_student(self, event: events.Event) -> None:
        match event:
            case events.EpochDone():
                self._tell_epoch(event)
            case events.WithinEpoch():
                metrics = event.metrics
                told = _figures(metrics) or f"loss {metrics.train_loss:.4g}"
                self._watch.detail(f"{event.student} after {metrics.step} steps: {told}")
                self._note_idle_terms(event.student, metrics, event.first_losses)
            case events.StudentStarted():
                self._students += 1
            case events.StudentSkipped():
                done = "finished" if event.record.status == "finished" else "set aside"
                self._watch.note(f"{event.record.student}: {done} before, skipped")
            case events.ResultLost():
                self._watch.note(f"{event.student}: {event.why}")
            case events.StartingWeights():
                self._watch.note(f"{event.student} {event.told}")
            case events.StudentStopped():
                self._watch.note(f"{event.record.student}: {event.record.error}")
            case events.StudentFailed():
                self._watch.note(str(event.error))
            case events.TrackerFailed():
                self._watch.note(f"note: {event.tracker} is off, training goes on: {event.why}")

    def _tell_epoch(self, event: events.EpochDone) -> None:
        metrics = event.metrics
        if _figures(metrics):
            if self._best is None or _rank(metrics) >= _rank(self._best):
                self._best = metrics
            view = "" if metrics.view == PLAIN else f" ({metrics.view})"
            best = self._best if self._best.epoch == metrics.epoch else metrics
            where = f"after {metrics.step} steps{view}:" if self._by_steps else f"epoch {metrics.epoch}{view}"
            self._watch.detail(f"{where} {self._of_many('best ')}{_figures(best)}")
        self._note_idle_terms(event.student, metrics, event.first_losses)

    def _of_many(self, word: str) -> str:
        """Return a word that tells which figure it is where there are those of several students."""
        return word if self._students > 1 else ""

    def _note_idle_terms(self, student: str, metrics: EpochMetrics, first_losses: dict[str, float]) -> None:
        """Tell, once, of terms that teach next to nothing; a weight that is off by a hundred is easily written.

        One that begins with hardly a loss has hardly a gradient, whatever its weight: that of a student made of its
        teacher, which says the same.
        """
        if metrics.epoch > 1 or student in self._weighed:
            return
        self._weighed.add(student)
        for name, share in metrics.shares.items():
            if share < IDLE_SHARE:
                told = (
                    f"note: {student} learns next to nothing from {name}: {share:.2%} of the gradient in the first step"
                )
                loss = first_losses.get(name)
                if loss is None or loss >= NO_LOSS:
                    self._watch.note(f"{told}; raise its weight, or drop it")
                else:
                    self._watch.note(f"{told}, for its loss is {loss:.1g} there, as of one that says the same already")


def _who(students: tuple[str, ...]) -> str:
    return students[0] + (f" and {len(students) - 1} more" if students[1:] else "")


def _rank(metrics: EpochMetrics) -> tuple[int, float]:
    """Return what is more of the better of two students' epochs: that which is later, and then by its figure."""
    if metrics.rmse is not None:
        return metrics.epoch, -metrics.rmse
    by = metrics.spearman or metrics.accuracy or 0.0 if metrics.perplexity is None else -metrics.perplexity
    return metrics.epoch, by


def _figures(metrics: EpochMetrics) -> str:
    """Return the figures of an epoch that are shown beside the bar: "perplexity 5.12, KL 0.043", or the accuracy.

    Nothing of held rows that have neither labels nor a teacher.
    """
    if metrics.rmse is not None:
        return f"RMSE {in_units(metrics.rmse)}" + ("" if metrics.r2 is None else f", R² {metrics.r2:.4g}")
    if metrics.spearman is not None:
        return f"Spearman {metrics.spearman:.4g}, cosine {metrics.cosine:.4g}"
    if metrics.accuracy is None:
        return ""
    if metrics.perplexity is None:
        return f"accuracy {metrics.accuracy:.2%}"
    return f"perplexity {metrics.perplexity:.4g}" + _divergence(metrics)


def _divergence(metrics: EpochMetrics) -> str:
    """Return the KL from the teacher, or from each of several by name."""
    several = {name: own.kl for name, own in metrics.by_teacher.items() if own.kl is not None}
    if several:
        return ", KL " + ", ".join(f"{kl:.3g} from {name}" for name, kl in several.items())
    return "" if metrics.kl is None else f", KL {metrics.kl:.3g}"
