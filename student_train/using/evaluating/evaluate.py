"""The story of `student eval`: rows whose classes are matched by name, answers, figures; as training measures them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storage.errors import BadRequest, MissingSource, RowsMissing
from student_train.comparing.figures import interval
from student_train.feed.batches import Batch
from student_train.feed.selection import NO_CLASS
from student_train.run_files.records import Measured
from student_train.running.measuring.evaluate import Sums, sites_of
from student_train.stepping.parallel import ALONE
from student_train.tasks import task_of
from student_train.using.answering import Answerer
from student_train.using.evaluating.counting import Counts
from student_train.using.evaluating.elsewhere import rows_elsewhere
from student_train.using.evaluating.matching import match_classes
from student_train.using.evaluating.rows import LabelledRows, rows_of_cache

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
    answerer: Answerer, dataset: str, *, cache: str | None, teacher: str | None, labels: Path | None
) -> LabelledRows:
    """Return the rows that a DATASET of the command line means.

    Args:
        answerer: who is to be measured.
        dataset: a folder or file, or rows of a cache, "<dataset>" or "<dataset>/<split>".
        cache: where those lie; None: where the run's own do, if it is no path.
        teacher: to agree with, of rows of a cache.
        labels: of a .npy.

    Raises:
        BadRequest: it could be either; or it is neither.
    """
    path, record = Path(dataset), answerer.record
    known = record.cache if record is not None else None
    preferred = dict(record.identity.get("teachers", {})) if record is not None else {}
    own = {rows.partition("/")[0] for rows in (record.identity.get("datasets", {}) if record is not None else ())}
    if cache is None and path.exists():
        if dataset.partition("/")[0] in own and not dataset.startswith((".", "/")):
            raise BadRequest(
                f"{dataset} is a path here, and also a dataset of the student's cache",
                found=f"{path.absolute()}, and {dataset} in {known}",
                do=f"./{dataset}, if you mean the path; --cache {known}, if you mean that",
            )
        if teacher is not None:
            raise BadRequest("no teacher has been asked about the files of a folder", found=f"--teacher {teacher}")
        return rows_elsewhere(path, answerer, labels)
    if cache is None and (known is None or dataset.startswith((".", "/")) or path.suffix):
        raise MissingSource(
            f"there is no {dataset}",
            expected="a folder, a file, or rows of a cache: DATASET or DATASET/SPLIT",
            do=None if known else "--cache URL, of a cache that has them",
        )
    if labels is not None:
        raise BadRequest("--labels is of a .npy file", found=f"{dataset} of a cache, whose rows have their labels")
    return rows_of_cache(str(cache or known), dataset, answerer.blueprint, answerer.device, teacher, preferred)


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
        BadRequest: classes cannot be matched by name, or no row has a label.
    """
    task = task_of(answerer.blueprint)
    if not task.asked.has_classes:
        raise BadRequest(
            f"{answerer.name} answers with vectors, which are measured against a teacher's alone",
            do="student compare has its figures on the held rows",
        )
    classes = answerer.blueprint.classes
    matched = match_classes(rows.classes, classes, rows.name, only_known=only_known) if _named(answerer) else None
    sums = Sums(1, answerer, {rows.name: 1})
    counts = None if task.report.token_classes else Counts(classes, answerer.blueprint.num_classes)
    labelled = 0
    with torch.inference_mode():
        for batch, tops_B in rows.batches(_batch_rows(answerer)):
            assert batch.labels_B is not None
            labels_B = batch.labels_B if matched is None else matched.labels(batch.labels_B.cpu())
            own_tops_B = tops_B if tops_B is None or matched is None else matched.labels(tops_B)
            labelled += int((labels_B != NO_CLASS).sum())
            _add(answerer, batch, labels_B.to(answerer.device), own_tops_B, sums, counts)
            advance(len(batch.shown))
    if not labelled:
        raise BadRequest(f"no row of {rows.told} has a label that the student knows")
    (figures,) = sums.figures(ALONE)
    if counts is not None and figures.macro_f1 is None:
        figures = figures.model_copy(update={"macro_f1": counts.macro_f1})
    independent = task.report.independent and figures.accuracy is not None
    return Evaluation(
        rows.told,
        figures,
        labelled,
        interval(figures.accuracy or 0.0, labelled) if independent else None,
        rows.teacher,
        counts,
        (*rows.notes, *(() if matched is None else matched.notes)),
        rows.unreadable(),
    )


def _named(answerer: Answerer) -> bool:
    """Return whether labels are of classes with names; ids of tokens the tokenizer stands for."""
    return answerer.blueprint.asked.label_array is None


def _add(
    answerer: Answerer, batch: Batch, labels_B: Tensor, tops_B: Tensor | None, sums: Sums, counts: Counts | None
) -> None:
    if answerer.blueprint.asked.label_array is not None:
        if answerer.student is None:
            raise BadRequest(
                f"{answerer.name} answers for whole texts at once, and is not measured position by position",
                do="name the folder of the run",
            )
        for logits_BC, own_B, rows_B, _ in sites_of(answerer.student, batch):
            none_B = torch.full_like(own_B, NO_CLASS)
            sums.add(logits_BC[None], own_B, none_B[None], torch.zeros_like(rows_B))
        return
    logits_BC = answerer.answer(answerer.arguments(batch.shown))
    tops = torch.full_like(labels_B, NO_CLASS) if tops_B is None else tops_B.to(answerer.device)
    sums.add(logits_BC[None], labels_B, tops[None], torch.zeros_like(labels_B))
    if counts is not None:
        counts.add(logits_BC, labels_B)


def _batch_rows(answerer: Answerer) -> int:
    return max(1, min(MOST_ROWS, BATCH_BYTES // (4 * prod(answerer.blueprint.input_shape))))


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
