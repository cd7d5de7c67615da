"""Students that say the next token at each position.

B rows of a batch, L positions of a row, N positions of all rows that are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import polars as pl
import torch
from torch import Tensor

from storage.cache import Cache, Samples
from storage.encodings import Capability, Encoded
from storage.errors import BadRequest
from storage.inputs import inputs_of
from storage.tasks import TASKS
from student_train.feed.batches import Needs, SoftNeed
from student_train.feed.selection import NO_CLASS, Selection
from student_train.feed.shard_source import INPUTS, LABELS, ShardSource
from student_train.feed.windows import load_shard
from student_train.students import Student
from student_train.students.parts import part_size
from student_train.tasks.base import ReportFacts, StudentTask
from student_train.tasks.held import Columns

TRIED_POSITIONS = 8  # a student takes rows of any length up to its own
MOST_POSITIONS = 2**14  # of the first held blocks that are looked at one by one: there may be millions
MOST_LOGITS = 2**29  # of the teacher's that are decoded; fewer positions of a vocabulary above 32,768


class LanguageModel(StudentTask):
    """Only a part of the positions has logits at a time."""

    asked = TASKS["language_model"]
    pipeline_tag = "text-generation"
    way = "sites"
    figures = "sites"
    best_by = "cross_entropy"  # the likeliest token may be right more often while all others become worse
    report = ReportFacts(
        rows="blocks of tokens",
        sites="positions",
        independent=False,  # how far the positions of a block are samples of their own, nobody knows
        mistakes="contexts",
        breakdown="tokens",
        token_classes=True,
        in_order=True,
        accuracy=" Over tokens accuracy is that of the next token, and a row is a block.",
        teacher=" on the positions below",
        answers=(
            ", means over positions (over blocks, where old shards do not count them);"
            " accuracy is that of the decoded positions"
        ),
        chosen=", one of each block and of each token",
    )
    site_schema: ClassVar[dict[str, type[pl.DataType]]] = {"at": pl.Int64, "token": pl.Int64}
    temperature = 1.0  # as language models are distilled, and as every cache has it
    perplexity = True
    beside_teacher = True
    unsteady = "rows of tokens: how many of their positions count is another number in each batch"

    def tried_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(min(length, TRIED_POSITIONS) for length in input_shape)

    def answer(self, student: Student, inputs: Tensor) -> Tensor:
        # What follows a whole context; the scores of all positions might not fit, and nobody asks for them.
        hidden_BLD, inside_BL = student.hidden(inputs), student.blueprint.made_of.inside(inputs)
        if inside_BL is None:
            return student.scores(hidden_BLD[:, -1])
        last_B = inside_BL.sum(1).clamp(min=1) - 1
        return student.scores(hidden_BLD[torch.arange(len(last_B), device=last_B.device), last_B])

    def hidden_of_sites(self, student: Student, inputs: Tensor) -> Tensor:
        hidden_ND, inside_BL = student.hidden(inputs).flatten(0, 1), student.blueprint.made_of.inside(inputs)
        return hidden_ND if inside_BL is None else hidden_ND[inside_BL.flatten()]

    def refuse_coupling(self, student: str, dataset: str, losses: Sequence[str]) -> None:
        raise BadRequest(
            f"student {student} has losses that compare rows, and those of {dataset} are tokens",
            found=", ".join(losses),
            expected="losses that are means over positions, which are computed a part of them at a time",
            do="gamma = 0 in dist, which leaves what is within a row; or choose other losses"
            if "dist" in losses
            else "choose other losses",
        )

    def held_sites(self, cache: Cache, selection: Selection, teacher: str | None, rows: pl.DataFrame) -> pl.DataFrame:
        samples = Samples(selection.catalogue).of(selection.datasets[0])
        blocks = rows.join(samples.select("row", "shard", "sample_id"), on="row", maintain_order="left")
        return _positions(cache, selection, teacher, blocks)

    def told_of_rows(self, columns: pl.DataFrame) -> pl.DataFrame:
        # A block has a mean log-probability of its labels, and no class of its own.
        return columns.with_columns(teacher_top=None, label=0)


def _positions(cache: Cache, selection: Selection, teacher: str | None, blocks: pl.DataFrame) -> pl.DataFrame:
    """Return the positions of the first held blocks, with their tokens, labels and what the teacher said of them."""
    source = ShardSource(cache, selection)
    lengths = _first_lengths(selection)
    left = int(lengths.sum())  # positions that are still to be looked at
    taught = selection.catalogue.committed(selection.datasets[0], teacher) if teacher is not None else set()
    parts = []
    for index, shard in enumerate(selection.shards_S):
        needs = _teacher_needs(selection, teacher if shard in taught else None)  # else nothing is known of it
        arrays = load_shard(source, index, source.names(needs))
        labels_N = arrays[LABELS].flatten()[:left].long()
        labelled_N = labels_N != NO_CLASS
        columns = {"label": labels_N}
        for encoded in source.encoded(arrays).values():
            for name, values in _teacher_said(encoded, labels_N[labelled_N], needs).items():
                columns[name] = values.new_zeros(len(labels_N)).masked_scatter_(labelled_N, values)
        labelled = pl.Series(labelled_N.numpy())
        known = [pl.when(labelled).then(pl.Series(name, values.numpy())) for name, values in columns.items()]
        ids_N = inputs_of(selection.spec).ids(arrays[INPUTS].flatten()[:left].numpy())
        parts.append(pl.DataFrame({"token": ids_N}).with_columns(known))
        left -= len(labels_N)
        if not left:
            break
    positions = pl.concat(parts, how="diagonal_relaxed")  # shards that the teacher has not answered lack its columns
    at = pl.Series("at", np.concatenate([np.arange(length) for length in lengths]))
    # each block once for each of its positions
    repeated = blocks.head(len(lengths)).select(pl.all().repeat_by(pl.Series(lengths)).explode())
    return pl.concat([repeated, at.to_frame(), positions], how="horizontal")


def _first_lengths(selection: Selection) -> np.ndarray:
    """Return the lengths of the first held blocks, as many as may be looked at one position after another."""
    spec, lengths_N = selection.spec, selection.lengths_N
    if lengths_N is None:
        lengths_N = np.full(selection.num_rows, spec.input_shape[0])
    most = min(MOST_POSITIONS, MOST_LOGITS // spec.num_classes)
    return lengths_N[: max(1, int((lengths_N.cumsum() <= most).sum()))]


def _teacher_needs(selection: Selection, teacher: str | None) -> Needs:
    """Return what there is to know of a teacher's top class and of the label: not every encoding serves both."""
    if teacher is None:
        return Needs()
    wanted = (Capability("bucket", 1.0), Capability("label_probability", 1.0))
    encoding = selection.catalogue.teacher(selection.datasets[0], teacher).encoding
    return Needs(soft=frozenset(SoftNeed(teacher, need) for need in wanted if encoding.lacks(need) is None))


def _teacher_said(encoded: Encoded, labels_N: Tensor, needs: Needs) -> dict[str, Tensor]:
    """Return the teacher's columns of the first labelled positions, decoded a part of them at a time."""
    served = {need.capability.name for need in needs.soft}
    columns, size = Columns(len(labels_N)), part_size(encoded.num_classes, labels_N.device)
    for start in range(0, len(labels_N), size):
        labels_B = labels_N[start : start + size]
        targets = encoded.part(slice(start, start + len(labels_B))).decode()
        part: dict[str, Tensor] = {}
        if "bucket" in served:
            log_p_B, part["teacher_top"] = targets.top()  # type: ignore[attr-defined]
            part["teacher_top_probability"] = log_p_B.exp()
        if "label_probability" in served:
            part["teacher_label_log_probability"] = targets.label_log_p(labels_B, 1.0)
        columns.add(part)
    return columns.filled()
