"""What a teacher says of the rows of a pilot, how fast, and what its features would take.

Shapes: B rows of a batch, N sites measured, V columns of logits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from storage.cache.watcher import Watcher
from storage.errors import BadTeacher
from storage.format.arrays import pack
from storage.tasks import task_of
from teacher_cache.building.prepared import PreparedDataset, Stage
from teacher_cache.pilot.rows import SpreadRows, choose_sites, read_spread, sites_per_row
from teacher_cache.teachers.model import Heard, Teacher
from teacher_cache.teachers.options import TeacherOptions

if TYPE_CHECKING:
    from torch import Tensor

    from teacher_cache.pilot.fidelity import PilotAnswers

MIN_ROWS_OF_A_DATASET = 32
WARM_UP_ROWS = 8


class TimedAnswers(NamedTuple):
    """What a teacher said of some rows, and what it took.

    Attributes:
        answers: of the sites that are measured.
        seconds: of its forward passes; its head is asked where a build asks it.
        sites: how many of the rows' it answered, one at least: of so many something is stored.
        feature_bytes: of its features, as stored.
        per_row: by dataset, how many of a row's sites it answers, in the mean.
    """

    answers: PilotAnswers
    seconds: float
    sites: int
    feature_bytes: int
    per_row: dict[str, float]

    def targets(self, dataset: PreparedDataset) -> int:
        """Return about how many targets a dataset has in one view."""
        return max(1, round(dataset.guess_rows(dataset.rows.num_rows) * self.per_row[dataset.spec.name]))


def num_sites(dataset: PreparedDataset) -> int:
    """Return how many sites a dataset has, answered or not."""
    return dataset.guess_rows(dataset.rows.num_rows) * sites_per_row(dataset)


def ask(
    teacher: Teacher, options: TeacherOptions, stages: Sequence[Stage], wanted: int, watcher: Watcher
) -> TimedAnswers:
    """Ask a teacher about rows of each dataset, in proportion to their sizes, in the first view of each.

    Raises:
        BadTeacher: what it says is no logits of the dataset's classes, or not finite.
        MissingSource: no row can be read.
    """
    parts: list[TimedAnswers] = []
    per_row: dict[str, float] = {}
    for stage, share in shares_of(stages, wanted):
        name = stage.dataset.spec.name
        rows = read_spread(stage, share)
        watcher.begin(f"{options.name}: {stage.dataset.spec.name}", len(rows.shown_B))
        chosen_N = choose_sites(task_of(stage.dataset.spec), rows.labels, share)
        parts += ask_rows(teacher, options, stage, rows, chosen_N, watcher.advance)
        per_row[name] = int(task_of(stage.dataset.spec).answered_sites(rows.labels).sum()) / len(rows.labels)
    return TimedAnswers(
        joined([part.answers for part in parts]),
        seconds=sum(part.seconds for part in parts),
        sites=sum(part.sites for part in parts),
        feature_bytes=sum(part.feature_bytes for part in parts),
        per_row=per_row,
    )


def shares_of(stages: Sequence[Stage], wanted: int) -> list[tuple[Stage, int]]:
    """Return the first view of each dataset, by name, and how many of the wanted sites are of it."""
    # Reversed, so that of several views of a dataset the first stays.
    firsts = {stage.dataset.spec.name: stage for stage in reversed(stages)}
    total = sum(num_sites(stage.dataset) for stage in firsts.values())
    return [
        (stage, max(MIN_ROWS_OF_A_DATASET, round(wanted * num_sites(stage.dataset) / total)))
        for _, stage in sorted(firsts.items())
    ]


def joined(parts: Sequence[PilotAnswers]) -> PilotAnswers:
    """Return the answers of all batches as one."""
    import torch

    from teacher_cache.pilot.fidelity import PilotAnswers

    logits_NV, labels_N, keys_N = (
        torch.cat([getattr(part, field) for part in parts]) for field in ("logits_NV", "labels_N", "keys_N")
    )
    return PilotAnswers(logits_NV, parts[0].num_classes, labels_N, keys_N)


def ask_rows(
    teacher: Teacher,
    options: TeacherOptions,
    stage: Stage,
    rows: SpreadRows,
    chosen_N: Tensor,
    tick: Callable[[int], None] | None = None,
) -> list[TimedAnswers]:
    """Return the answers to the rows of one dataset, batch by batch, with a `tick` of how many after each.

    Without one they are asked to be timed, and the first batch, which pays for what is set up once, is no other.
    """
    import torch

    per_row, dataset = rows.labels[0].numel(), stage.dataset.spec  # of rows of their own length, as the longest here
    task = task_of(dataset)
    if tick is not None:  # the first batch pays for what is set up once
        teacher.hear(rows.shown_B[:WARM_UP_ROWS], task.answered_sites(rows.labels[:WARM_UP_ROWS]), dataset)
    assert stage.spec is not None
    parts, start, classes = [], 0, stage.spec.num_classes
    for batch in map(SpreadRows, *(values.split(teacher.batch_size) for values in rows)):
        stop = start + len(batch.shown_B) * per_row
        inside_N = chosen_N[(chosen_N >= start) & (chosen_N < stop)] - start
        answered = task.answered_sites(batch.labels)
        sites = max(1, int(answered.sum()))
        answered.view(-1)[inside_N] = True  # where no site has a label, all may be chosen
        if not answered.any():
            answered.view(-1)[0] = True  # a teacher is asked about something
        picked_P = torch.zeros(answered.numel(), dtype=torch.bool).index_fill_(0, inside_N, 1)[answered.flatten()]
        began = time.monotonic()
        heard = teacher.hear(batch.shown_B, answered, dataset)
        parts_NV = [_scores(teacher, heard, at, picked_P[at], stage) for at in teacher.blocks(len(picked_P), classes)]
        if heard.hidden.device.type == "cuda":
            torch.cuda.synchronize()  # a call returns before the device is done
        seconds = time.monotonic() - began
        stored = {
            f"feature/{name}": options.features[name].encode(values).cpu().numpy()
            for name, values in heard.features.items()
        }
        # Packed by batches, not by shards: a little more metadata than a build would store.
        feature_bytes = sum(map(len, pack(stored).values())) if stored else 0
        answers = _checked(torch.cat(parts_NV), batch, inside_N, stage)
        parts.append(TimedAnswers(answers, seconds, sites, feature_bytes, {}))
        start = stop
        if tick is not None:
            tick(len(batch.shown_B))
    return parts


def _scores(teacher: Teacher, heard: Heard, at: slice, picked_P: Tensor, stage: Stage) -> Tensor:
    """Return the logits of those of a block's sites that are measured, after checking that the block is logits."""
    from teacher_cache.work.checks import refuse_probabilities

    assert stage.spec is not None
    logits_PV = teacher.scores(heard.hidden[at], stage.dataset.spec).float()
    refuse_probabilities(logits_PV, stage.spec)
    return logits_PV[picked_P.to(logits_PV.device)]


def _checked(picked_NV: Tensor, batch: SpreadRows, sites_N: Tensor, stage: Stage) -> PilotAnswers:
    """Return the answers at some sites of a batch, after checking that they are answers."""
    from teacher_cache.pilot.fidelity import PilotAnswers
    from teacher_cache.work.checks import check_classes, logits_right

    assert stage.spec is not None
    device, labels_N = picked_NV.device, batch.labels.flatten()[sites_N]
    check_classes(picked_NV, labels_N, stage.spec, stage.dataset.spec)
    keys = task_of(stage.dataset.spec).site_keys(batch.keys_B, batch.labels.shape[1:])
    right_N = logits_right(picked_NV, stage.spec.num_classes)
    if not right_N.all():
        raise BadTeacher(
            f"teacher {stage.spec.name} gave NaN, +inf or nothing but -inf as logits",
            found=f"in {int((~right_N).sum())} of {len(right_N)} rows of {stage.dataset.spec.name}",
            expected="finite values, or -inf for a class that can never be; a build refuses such shards",
            do="run it in fp32 or bf16 if it overflows in fp16, or look at those rows",
        )
    return PilotAnswers(
        picked_NV,
        stage.spec.num_classes,
        labels_N.to(device),
        keys.flatten()[sites_N].to(device),
    )
