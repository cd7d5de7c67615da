"""The story of `student eval`: rows whose classes are matched by name, answers, figures; as training measures them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

import torch
from torch import Tensor

from storage.cache import Cache
from storage.datasets.base import Split
from storage.errors import BadRequest, MissingSource, RowsMissing
from storage.format.stores.mirror import at_hand
from storage.tasks import Task
from student_train.comparing.figures import interval
from student_train.feed.selection import NO_CLASS
from student_train.run_files.records import Measured
from student_train.running.measuring.evaluate import MEASURES, Beside
from student_train.stepping.parallel import ALONE
from student_train.tasks import task_of
from student_train.using.answering import Answerer
from student_train.using.evaluating.counting import Counts
from student_train.using.evaluating.elsewhere import makes_chats, rows_elsewhere
from student_train.using.evaluating.matching import Matched, match_classes
from student_train.using.evaluating.rows import Keep, LabelledRows, rows_of_cache

if TYPE_CHECKING:
    from student_train.stepping.stepper import Stepper
    from student_train.students import Student

CHATS_ALONE = "--tokenizer is of chats in files, whose template it has"
BATCH_BYTES = 2**25  # of float32 inputs at a time
MOST_ROWS = 256


@dataclass(frozen=True)
class Evaluation:
    """Figures on some rows.

    Attributes:
        told: what was measured, in words.
        figures: as those of training.
        rows: that have a label, sites of them where a row has many.
        interval: 95 % of the accuracy, over these rows; None where they are no samples of their own.
        teacher: whom `figures.agreement` is with.
        counts: beside them; None where classes are tokens.
        notes: what is to be told.
        unreadable: samples that could not be read, as (id, reason).
    """

    told: str
    figures: Measured
    rows: int
    interval: tuple[float, float] | None
    teacher: str | None
    counts: Counts | None
    notes: tuple[str, ...]
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """Return 3 if a sample could not be read."""
        return RowsMissing.exit_code if self.unreadable else 0


def find_rows(
    answerer: Answerer,
    dataset: str,
    *,
    cache: str | None,
    teacher: str | None,
    labels: str | None,
    keep: Keep | None = None,
    tokenizer: Path | None = None,
    folders: Sequence[Path] = (),
) -> LabelledRows:
    """Return the rows that a DATASET of the command line means.

    Args:
        answerer: who is to be measured.
        dataset: a folder or file, here or in a bucket, or rows of a cache, "<dataset>" or "<dataset>/<split>".
        cache: where those lie; None: where the run's own do, if it is no path.
        teacher: to agree with, of rows of a cache.
        labels: of a .npy, likewise here or in a bucket.
        keep: where shards of a cache are kept on this machine.
        tokenizer: of chats in files, the folder of the tokenizer with the template that made the student's rows.
        folders: in its place, those of which one may be it.

    Raises:
        BadRequest: it could be either; or it is neither.
    """
    record = answerer.record
    known = record.cache if record is not None else None
    preferred = dict(record.identity.get("teachers", {})) if record is not None else {}
    own = {rows.partition("/")[0] for rows in (record.identity.get("datasets", {}) if record is not None else ())}
    if "://" in dataset and cache is not None:
        raise BadRequest(
            "rows of a cache have a name, and no address",
            found=f"{dataset} and --cache {cache}",
            do=f"DATASET or DATASET/SPLIT, of the cache; or leave --cache out: the files at {dataset} are read then",
        )
    path, copied = at_hand(dataset)
    if cache is None and path.exists():
        name, _, split = dataset.partition("/")
        if name in own and split in ("", *get_args(Split)):
            raise BadRequest(
                f"{dataset} is a path here, and also a dataset of the student's cache",
                found=f"{path.absolute()}, and {dataset} in {known}",
                do=f"./{dataset}, if you mean the path; --cache {known}, if you mean that",
            )
        if teacher is not None:
            raise BadRequest("no teacher has been asked about the files of a folder", found=f"--teacher {teacher}")
        _check_measurable(answerer, dataset)
        if keep is not None:
            raise BadRequest("--keep is for shards of a cache", found=f"{dataset}, whose files are read as they lie")
        label_file, copied_too = (None, []) if labels is None else at_hand(labels)
        if tokenizer is not None and not makes_chats(answerer):
            raise BadRequest(CHATS_ALONE, found=f"{dataset}, and a student of other rows")
        rows = rows_elsewhere(path, answerer, label_file, folders if tokenizer is None else [tokenizer])
        notes = (*copied, *copied_too, *rows.notes)
        return replace(rows, told=rows.told.replace(str(path), dataset), notes=notes)
    if cache is None and (known is None or dataset.startswith((".", "/")) or path.suffix):
        raise MissingSource(
            f"there is no {dataset}",
            expected="a folder, a file, or rows of a cache: DATASET or DATASET/SPLIT",
            do=None if known else "--cache URL, of a cache that has them",
        )
    if tokenizer is not None:
        raise BadRequest(CHATS_ALONE, found=f"{dataset} of a cache, whose rows are made")
    if labels is not None:
        raise BadRequest("--labels is of a .npy file", found=f"{dataset} of a cache, whose rows have their labels")
    opened = Cache.open(str(cache or known)) if keep is None else keep.of(Cache.open(str(cache or known)))
    return rows_of_cache(opened, dataset, answerer.blueprint, answerer.device, teacher, preferred)


def evaluate_rows(
    answerer: Answerer,
    rows: LabelledRows,
    *,
    only_known: bool = False,
    advance: Callable[[int], None] = lambda rows: None,
) -> Evaluation:
    """Return the figures of one who answers on some rows, in float32.

    Args:
        answerer: who.
        rows: where.
        only_known: leave out rows of classes that it does not know.
        advance: told of every batch's rows.

    Raises:
        BadRequest: classes cannot be matched by name, or there are none of which to leave some out; no row has a
            label; or it answers with NaN.
    """
    task, names = task_of(answerer.blueprint), answerer.blueprint.classes
    if rows.against is None:
        _check_measurable(answerer, rows.told)
    by_name = task.asked.has_classes and task.asked.label_array is None  # ids of tokens the tokenizer stands for
    if only_known and not by_name:
        raise BadRequest(
            "--only-known leaves out rows by their class",
            found=f"{answerer.name}, whose answers are no classes with a name",
            do="leave --only-known out",
        )
    matched = match_classes(rows.classes, names, rows.name, only_known=only_known) if by_name else None
    counts = Counts(names, answerer.blueprint.num_classes) if by_name else None
    taken = _take(answerer, rows, matched, counts, advance)
    if not taken.measured and not taken.compared:
        raise BadRequest(
            f"no row of {rows.told} has a label that the student knows",
            do="rows of a cache that a teacher has answered: how often both agree is measured without labels",
        )
    figures, notes = taken.figures, [*rows.notes, *rows.told_at_end, *rows.noted()]
    if not taken.measured:  # a transfer set
        note = f"no row has a label that the student knows: how often it agrees with {rows.teacher} is all there is"
        told = (*notes, note)
        return Evaluation(rows.told, figures, taken.compared, None, rows.teacher, None, told, rows.unreadable())
    if counts is not None and figures.macro_f1 is None:
        figures = figures.model_copy(update={"macro_f1": counts.macro_f1})
    independent = task.report.independent and figures.accuracy is not None
    return Evaluation(
        rows.told,
        figures,
        taken.measured,
        interval(figures.accuracy or 0.0, taken.measured) if independent else None,
        rows.teacher,
        counts,
        (*notes, *(() if matched is None else matched.notes)),
        rows.unreadable(),
    )


def _check_measurable(answerer: Answerer, told: str) -> None:
    """Raise BadRequest if what is right of rows that no teacher has answered is not known."""
    asked = answerer.blueprint.asked
    if not (asked.has_classes or asked.numbers):
        raise BadRequest(
            f"{answerer.name} answers with vectors, which are measured against a teacher's",
            found=f"none of {told}",
            expected="rows of a cache that a teacher has answered",
            do="DATASET/SPLIT of its cache, or of another with --cache URL; student predict writes vectors of any text",
        )


class _Taken(NamedTuple):
    """What came of all rows.

    Attributes:
        figures: of them.
        measured: how many have a label that counts.
        compared: of how many a teacher's class is known.
    """

    figures: Measured
    measured: int
    compared: int


def _take(
    answerer: Answerer,
    rows: LabelledRows,
    matched: Matched | None,
    counts: Counts | None,
    advance: Callable[[int], None],
) -> _Taken:
    """Ask about all rows, a batch at a time; what is counted beside the figures goes into `counts`."""
    task, asked = task_of(answerer.blueprint), _Asked(answerer)
    several = [
        each
        if each.tops_N is None or matched is None
        else each._replace(tops_N=matched.labels(torch.from_numpy(each.tops_N)).numpy())
        for each in rows.several
    ]
    sums = MEASURES[task.figures](1, cast("Student", answerer), {rows.name: rows.num_rows or 0}, [several])
    measured = compared = start = 0
    with torch.inference_mode():
        for batch, tops_B in rows.batches(_batch_rows(answerer)):
            assert batch.labels_B is not None
            labels_B = batch.labels_B if matched is None else matched.labels(batch.labels_B.cpu())
            own_tops_B = tops_B if tops_B is None or matched is None else matched.labels(tops_B)
            stop = start + len(labels_B)
            measured += _num_measured(task.asked, labels_B)
            compared += 0 if own_tops_B is None else int((own_tops_B != NO_CLASS).sum())
            beside = Beside(
                [None if own_tops_B is None else own_tops_B.to(answerer.device)],
                [rows.against],
                torch.zeros(len(labels_B), dtype=torch.int64, device=answerer.device),
                slice(start, stop),
            )
            sums.take(cast("Stepper", asked), replace(batch, labels_B=labels_B.to(answerer.device)), beside)
            if counts is not None:
                counts.add(asked.said_BC, labels_B)
            start = stop
            advance(len(labels_B))
    (figures,) = sums.figures(ALONE)
    return _Taken(figures, measured, compared)


def _num_measured(asked: Task, labels_B: Tensor) -> int:
    """Return how many rows of a batch count: those with a label, of vectors all."""
    if asked.numbers:
        return int(labels_B.isfinite().all(dim=1).sum())
    return int((labels_B != NO_CLASS).sum()) if asked.has_classes else len(labels_B)


class _Asked:
    """One who answers, as those who measure students in training ask a stepper of one."""

    def __init__(self, answerer: Answerer):
        self._answerer = answerer
        self.states = [SimpleNamespace(exported=self)]
        self.said_BC = torch.empty(0)

    def logits(self, inputs: Tensor) -> Tensor:
        """Return (1, B, C) float32, which is kept for whoever counts more of it."""
        self.said_BC = self._checked(self._answerer.logits(inputs))
        return self.said_BC[None]

    def hidden(self, inputs: Tensor) -> Tensor:
        """Return what `scores` makes logits of; of an ONNX file, which is in one part, the logits (B, *sites, C)."""
        student = self._answerer.student
        return self._answerer.logits(inputs) if student is None else student.hidden(inputs)

    def scores(self, hidden_ND: Tensor) -> Tensor:
        """Return the logits (N, C) of some sites."""
        student = self._answerer.student
        return self._checked(hidden_ND if student is None else student.scores(hidden_ND))

    def _checked(self, logits: Tensor) -> Tensor:
        if logits.isnan().any():
            raise BadRequest(
                f"{self._answerer.name} answers with NaN", do="student predict RUN INPUTS tells to which samples"
            )
        return logits


def _batch_rows(answerer: Answerer) -> int:
    """Return how many rows are asked about at a time, whose logits are there at once where a file gives all sites'."""
    numbers = prod(answerer.blueprint.input_shape)
    if answerer.student is None and task_of(answerer.blueprint).figures == "sites":
        numbers *= answerer.blueprint.num_classes
    return max(1, min(MOST_ROWS, BATCH_BYTES // (4 * numbers)))


def as_values(found: Evaluation) -> dict[str, Any]:
    """Return an evaluation as JSON has it."""
    counts = found.counts
    return {
        "measured_on": found.told,
        "rows": found.rows,
        "figures": found.figures.model_dump(mode="json", exclude_none=True),
        "interval": None if found.interval is None else list(found.interval),
        "top_5": None if counts is None else counts.top_5,
        "teacher": found.teacher,
        "classes": None if counts is None else counts.by_class().to_dicts(),
        "confusion": None if counts is None else counts.confusion(),
        "notes": list(found.notes),
        "unreadable": [{"sample_id": name, "error": reason} for name, reason in found.unreadable],
        "exit_code": found.exit_code,
    }
