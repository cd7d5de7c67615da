"""Ask a teacher about one shard, and commit its soft targets, features and per-sample statistics.

Shapes: S rows of a shard, B readable rows of it or of a batch, `sites` the axes of a row's sites (storage.tasks), P of
them that are answered.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from storage.cache import Cache
from storage.format.shards import ShardKey
from storage.format.specs import TeacherSpec, ViewsSpec
from storage.inputs import inputs_of
from storage.inputs.encoded import decode_on
from storage.tasks import NO_LABEL, task_of
from storage.views import FINGERPRINTED_ROWS, PLAIN, view_fingerprint
from storage.views.check import Readable, Seen, begin_rows, libraries, own_size, readable_rows
from teacher_cache.work.answering import answer_rows, send_ahead
from teacher_cache.work.batch import Question
from teacher_cache.work.checks import refuse_shard
from teacher_cache.work.pieces import LOCK, TURNS, AskWork, Done, commit_shard, provenance
from teacher_cache.work.promising import promise_teacher, promise_weights
from teacher_cache.work.rows import answered_sites, draw_keys, labels_of, lay_down, off_by, spread_rows
from teacher_cache.work.surroundings import surroundings

if TYPE_CHECKING:
    from torch import Tensor


def ask_shard(work: AskWork) -> Done:
    """Ask a teacher about every readable sample of one shard, and commit its soft targets and features.

    Raises:
        BadTeacher: its output is not what the cache was promised.
        StaleCache: its files are not those that the cache was promised.
        RowsMissing: it said NaN or infinity for some rows; the shard is refused.
    """
    import torch

    from teacher_cache.teachers.loading import cached_teacher, pick_device

    cache, key = Cache.open(work.cache), work.key
    assert key.teacher is not None
    dataset, spec = cache.dataset(key.dataset), TeacherSpec.model_validate_json(work.promise)
    ingest = cache.commit(ShardKey(key.dataset, None, PLAIN, key.shard), with_table=True)
    readable = readable_rows(ingest.table)
    readable_S, views = readable.mask_S, None if key.view == PLAIN else cache.views(key.dataset)
    if dataset.encoded:
        decode_on(work.threads)
    with TURNS:
        # Read, and sent to the device, before the lock is taken: meanwhile another shard is asked about.
        seen, device = Seen(dataset, cache.rows_of(ingest), own_size(dataset, spec)), work.device
        labels_B, device = labels_of(cache, key, ingest, readable_S), pick_device(device)
        rows_B = begin_rows(seen, readable, key.view, views)
        question = Question(rows_B, labels_B, draw_keys(dataset, readable, key.view, labels_B))
        question, fingerprint = send_ahead(question, dataset, device), seen.plain()

        with LOCK:
            began = time.monotonic()
            torch.set_num_threads(work.threads)  # for each shard: a Dask nanny has set it to 1
            teacher = cached_teacher(work.teacher, work.promise, device)
            shown_B, shown = _show(key, question.shown, readable, views, device, seen, fingerprint)
            # a CPU's own processors would do both
            answers = answer_rows(teacher, question._replace(shown=shown_B), spec, dataset, beside=device != "cpu")
            seconds, batch_size = time.monotonic() - began, teacher.batch_size
        del question, shown_B, rows_B, seen  # a GPU has room for no more than those whose turn it is
    # Before anything is written: a shard is whole or it is not there.
    answered_S = answered_sites(dataset, labels_B, readable_S)
    refuse_shard(answers.finite, answers.in_range, work, answered_S)
    promise_teacher(cache, key, spec, work.job)  # not under the lock: on an object store it is a round trip
    promise_weights(cache, key, teacher.weights)

    arrays = {name: lay_down(encoded.numpy(), answered_S, spec) for name, encoded in answers.encoded.items()}
    columns = {name: _column(values.numpy(), readable_S) for name, values in answers.columns.items()}
    table = pa.table({"row": ingest.table["row"], **columns})
    about = provenance(seconds) | {
        "quarantined": int((~readable_S).sum()),
        "inputs_digest": ingest.about["inputs_digest"],  # what ties targets to the very inputs beside them
        "batch_size": batch_size,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {work.threads} threads",
        "torch": torch.__version__,
        "surroundings": surroundings(device),
        "weights": teacher.weights,
        "answered": {name: values.sum().item() for name, values in answers.answered.items()}
        | (off_by(dataset, ingest, spec, answers.encoded, readable_S) if task_of(dataset).numbers else {}),
        **shown,
    }
    uses = (*spec.uses, *spec.encoding.uses({name: values.numpy() for name, values in answers.encoded.items()}))
    rows = (ingest.start, ingest.stop)
    done = commit_shard(cache, key, rows, arrays=arrays, table=table, about=about, uses=uses)
    return done._replace(batch_size=batch_size if batch_size < teacher.asked_batch_size else None)


def _show(
    key: ShardKey,
    begun_B: Tensor,
    readable: Readable,
    views: ViewsSpec | None,
    device: str,
    seen: Seen,
    fingerprint: str,
) -> tuple[Tensor, dict[str, Any]]:
    """Return what the teacher is shown of the readable rows, (B, …), and what a commit says of it.

    Args:
        key: says of which view.
        begun_B: the readable rows, as that begins with them.
        readable: likewise.
        views: with the function of the view.
        device: where it is made.
        seen: all rows of the shard.
        fingerprint: of the first of them, without a view.
    """
    made_by = {"libraries": made} if (made := libraries(seen.dataset, key.view)) else {}
    if key.view == PLAIN:
        if seen.own is None:
            return begun_B, {"view_fingerprint": fingerprint, **made_by}
        # as of a view: what was shown, and what the student sees in its place
        return begun_B, {"inputs_fingerprint": fingerprint, "view_fingerprint": seen.plain(seen.own), **made_by}
    assert views is not None  # the build wrote it before any shard
    view = inputs_of(seen.dataset).left(views.view(key.view))
    shown_B = view.show_shard(begun_B.to(device), readable.keys_B, readable.splits_B)
    return shown_B, {
        "inputs_fingerprint": fingerprint,
        # Of the first rows only: enough to notice another transform or library, and cheap to make again in training.
        "view_fingerprint": view_fingerprint(shown_B[:FINGERPRINTED_ROWS].cpu().numpy()),
        "views": views.fingerprint,
        **made_by,
    }


def _column(values_B: np.ndarray, readable_S: np.ndarray) -> pa.Array:
    """Return a column (S,) that is null where a row is unreadable or has no value: NaN, or class −1."""
    null_B = np.isnan(values_B) if values_B.dtype.kind == "f" else values_B == NO_LABEL
    null_S = ~readable_S
    null_S[readable_S] = null_B
    return pa.array(spread_rows(np.where(null_B, 0, values_B).astype(values_B.dtype), readable_S), mask=null_S)
