"""What an ingest takes of a row, and its lines in commits: measured on some rows of a dataset, which are not kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from storage.format.arrays import pack
from storage.format.sealed import seal
from storage.inputs.ragged import split_offsets
from teacher_cache.pilot.answers import num_sites
from teacher_cache.pilot.cost import bytes_per_row
from teacher_cache.pilot.rows import runs_of
from teacher_cache.pilot.scale import Rates
from teacher_cache.work.ingest import decode_rows

if TYPE_CHECKING:
    from teacher_cache.building.prepared import Stage
    from teacher_cache.pilot.answers import TimedAnswers
    from teacher_cache.pilot.fidelity import PilotAnswers

ROWS = 256  # at most: as many runs of neighbours as there may be
PROOF_BYTES = 2_500.0  # of a commit, whatever its rows: digests of its arrays, and where it was made


def measure_rates(stages: Sequence[Stage], asked: TimedAnswers) -> Rates:
    """Return what a row takes before a teacher is asked about it: of the largest dataset, the others are like it.

    Raises:
        MissingSource: the source is not what it was a moment ago.
    """
    stage = max(stages, key=lambda each: num_sites(each.dataset))
    dataset, name = stage.dataset, stage.dataset.spec.name
    rows = dataset.guess_rows(dataset.rows.num_rows)
    per_shard = max(1.0, rows / len(stage.shards))
    extents = [extent for run in runs_of(stage, ROWS) for extent in dataset.rows.slice(*run)]
    began = time.monotonic()
    arrays, columns, _ = decode_rows(dataset.source, dataset.spec, extents)
    decoded_s = time.monotonic() - began
    count = len(columns["error"])
    table = pa.table({"row": np.arange(count), **columns})
    own_s = decoded_s / count
    segments = dataset.rows.segments
    planned = segments[-1].rows_per_shard
    return Rates(
        ingest_s=own_s,
        ingest_bytes=bytes_per_row(pack(split_offsets(arrays)), count, per_shard),
        commit_bytes=(
            _line_bytes(table) + PROOF_BYTES / per_shard,
            _line_bytes(_answered(asked.answers)) + PROOF_BYTES / per_shard,
        ),
        sites=asked.per_row[name],
        views=sum(each.dataset.spec.name == name for each in stages),
        rows_per_shard=max(1, dataset.guess_rows(planned)),
    )


def _answered(answers: PilotAnswers) -> pa.Table:
    """Return the table of a commit with a row for each answer."""
    log_p_NC = answers.dense.logits_BC.log_softmax(dim=1)
    top = log_p_NC.max(dim=1)
    labels_N1 = answers.labels_N.clamp(min=0)[:, None]
    columns = {
        "top": top.indices,
        "top_probability": top.values.exp(),
        "entropy": -(log_p_NC.exp() * log_p_NC.clamp(min=-1e4)).sum(dim=1),
        "label_log_probability": log_p_NC.gather(1, labels_N1)[:, 0],
    }
    return pa.table(
        {"row": np.arange(len(labels_N1)), **{name: values.cpu().numpy() for name, values in columns.items()}}
    )


def _line_bytes(table: pa.Table) -> float:
    """Return the bytes of one row of a table, as a commit has it."""
    return (len(seal(table, {})) - len(seal(table[:0], {}))) / len(table)
