"""The story of `student predict`: samples ahead on threads, answers, and lines in the order of the samples.

What cannot be read keeps its line, with the reason in place of an answer. B samples of a piece, C classes, K likeliest.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import isfinite, prod
from pathlib import Path
from typing import NamedTuple

import polars as pl
import torch
from torch import Tensor

from storage.datasets.base import Unreadable
from storage.errors import BadRequest, RowsMissing
from storage.language.tokenizer import token_names
from student_train.tasks import task_of
from student_train.using.answering import Answerer
from student_train.using.predicting.ahead import ahead
from student_train.using.predicting.samples import Sample, Samples
from student_train.using.predicting.writing import Write

PIECE_BYTES = 2**22  # of float32 inputs that are answered at once; some pieces are held at a time
# On a CPU fewer: what layers hand on is memory that malloc keeps, where of larger pieces the kernel gives fresh pages
# for each layer, a third of a convolutional network's time (docs/log.md).
CPU_PIECE_BYTES, FEW_ROWS = 2**19, 8
MOST_ROWS = 256
SHOWN_REASONS = 5


class Piece(NamedTuple):
    """Some samples, and those of them that can be read as rows, as they are shown.

    Attributes:
        ids: of all.
        reasons: why not, of each that cannot be read, by its place.
        shown_B: the others, in order; None: there is none.
    """

    ids: list[str]
    reasons: dict[int, str]
    shown_B: Tensor | None


class Likeliest(NamedTuple):
    """Probabilities and numbers of the likeliest classes of the rows that can be read, (K, B) each.

    Of one that tells numbers in place of classes: they, (T, B), and nothing.
    """

    values_KB: list[list[float]]
    numbers_KB: list[list[int]]


class Answered(NamedTuple):
    """A piece, and its answers if whoever read it has asked for them."""

    piece: Piece
    likeliest: Likeliest | None


@dataclass(frozen=True)
class Predicted:
    """What became of a stream of samples.

    Attributes:
        rows: samples that there were.
        unreadable: how many of them have no answer.
        reasons: the first of those, as (id, reason).
        counts: answers of each class, the most first.
        notes: what is to be told of samples, with how many those are.
    """

    rows: int
    unreadable: int
    reasons: tuple[tuple[str, str], ...]
    counts: tuple[tuple[str, int], ...]
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """Return 3 if a sample has no answer."""
        return RowsMissing.exit_code if self.unreadable else 0


def predict_samples(
    answerer: Answerer,
    samples: Samples,
    write: Write,
    *,
    top: int = 1,
    advance: Callable[[int], None] = lambda rows: None,
) -> Predicted:
    """Answer samples, in order, and write the answers as they come.

    Args:
        answerer: who answers.
        samples: a stream.
        write: takes `sample_id`, `class`, `probability` (softmax of the logits), of `top` > 1 `class_2`,
            `probability_2`, … too, and `error`: why there is no answer, else null. Of one that tells numbers a column
            of each in place of classes; of one that answers with a vector `vector_1`, … of its D numbers, float32.
        top: how many of the likeliest classes.
        advance: told of every piece's rows.

    Raises:
        BadRequest: there is no sample; or not so many classes.
    """
    numbers = _check_answers(answerer, top)
    name_of = _names(answerer)
    rows = unreadable = 0
    reasons: list[tuple[str, str]] = []
    counts: Counter[str] = Counter()
    with _threads(answerer) as (threads, own_each):

        def work(samples: list[Sample]) -> Answered:
            piece = _read(answerer, samples)
            return Answered(piece, _likeliest(answerer, piece, top) if own_each else None)

        for piece, likeliest in ahead(_cut(samples.each, _piece_rows(answerer)), work, threads=threads):
            said = likeliest or _likeliest(answerer, piece, top)
            frame = _frame_of_numbers(piece, said, numbers) if numbers else _frame(piece, said, name_of)
            write(frame)
            failed = frame.filter(pl.col("error").is_not_null()).select("sample_id", "error")
            rows, unreadable = rows + len(frame), unreadable + len(failed)
            reasons += failed.head(SHOWN_REASONS - len(reasons)).rows()
            counts.update([] if numbers else frame["class"].drop_nulls().to_list())
            advance(len(frame))
    if not rows:
        raise BadRequest(f"there is no sample in {samples.told}")
    notes = tuple(f"{count:,} {remark}" for remark, count in samples.remarks.items())
    return Predicted(rows, unreadable, tuple(reasons), tuple(counts.most_common()), notes)


def _check_answers(answerer: Answerer, top: int) -> list[str]:
    """Return the names of the numbers that are answers; none of classes. Raises BadRequest: they cannot be written."""
    blueprint = answerer.blueprint
    if not blueprint.asked.has_classes:
        if top > 1:
            raise BadRequest(f"{answerer.name} has no classes, of which some are likelier", do="leave --top out")
        if blueprint.asked.numbers:
            return list((blueprint.source or {}).get("target", ()))
        return [f"vector_{place + 1}" for place in range(blueprint.num_classes)]
    if not 1 <= top <= blueprint.num_classes:
        raise BadRequest(
            f"the {top} likeliest of {blueprint.num_classes} classes", do=f"--top 1 to {blueprint.num_classes}"
        )
    return []


@contextlib.contextmanager
def _threads(answerer: Answerer) -> Iterator[tuple[int, bool]]:
    """Yield how many threads read samples, and whether each answers its own, with one thread of torch.

    On a CPU they do: one that answers on all cores meanwhile would wait for those that read (docs/log.md).
    """
    before = torch.get_num_threads()
    if answerer.device.type != "cpu":
        yield before, False
        return
    torch.set_num_threads(1)
    try:
        yield before, True
    finally:
        torch.set_num_threads(before)


def _piece_rows(answerer: Answerer) -> int:
    """Return how many samples are answered at once; of texts as many as rows of the longest kind would be."""
    blueprint = answerer.blueprint
    numbers = prod(blueprint.input_shape)
    if answerer.student is None and blueprint.asked.label_array is not None:
        numbers *= blueprint.num_classes  # a file gives the logits of all positions, a student those of the last
    rows = max(1, min(MOST_ROWS, PIECE_BYTES // (4 * numbers)))
    if answerer.device.type == "cpu" and not blueprint.made_of.own_length:  # texts are padded to a piece's longest
        return min(rows, max(FEW_ROWS, CPU_PIECE_BYTES // (4 * numbers)))
    return rows


def _cut(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    while piece := list(islice(samples, size)):
        yield piece


def _read(answerer: Answerer, samples: list[Sample]) -> Piece:
    """Return samples as rows: all at once, or where one cannot be read each by itself."""
    payloads: dict[int, object] = {}
    reasons: dict[int, str] = {}
    for at, sample in enumerate(samples):
        try:
            payloads[at] = _payload(sample.payload)
        except Unreadable as reason:
            reasons[at] = str(reason)
    ids = [sample.sample_id for sample in samples]
    if not payloads:
        return Piece(ids, reasons, None)
    try:
        return Piece(ids, reasons, answerer.shown(list(payloads.values())))
    except BadRequest:
        readable = []
        for at, payload in payloads.items():
            try:
                answerer.shown([payload])
                readable.append(payload)
            except BadRequest as error:
                reasons[at] = (error.found or error.what) + (f", not {error.expected}" if error.expected else "")
    return Piece(ids, dict(sorted(reasons.items())), answerer.shown(readable) if readable else None)


def _payload(payload: object) -> object:
    if isinstance(payload, Unreadable):
        raise payload
    if isinstance(payload, Path):
        try:
            return payload.read_bytes()
        except OSError as error:
            raise Unreadable(f"{type(error).__name__}: {error.strerror}") from None
    return payload


@torch.inference_mode()
def _likeliest(answerer: Answerer, piece: Piece, top: int) -> Likeliest:
    if piece.shown_B is None:
        return Likeliest([[] for _ in range(top)], [[] for _ in range(top)])
    if not answerer.blueprint.asked.has_classes:
        return Likeliest(answerer.answer(answerer.arguments(piece.shown_B)).T.tolist(), [])
    probabilities_BC = answerer.answer(answerer.arguments(piece.shown_B)).softmax(dim=1)
    values_BK, numbers_BK = probabilities_BC.topk(top, dim=1)
    return Likeliest(values_BK.T.tolist(), numbers_BK.T.tolist())


def _frame(piece: Piece, likeliest: Likeliest, name_of: Callable[[int], str]) -> pl.DataFrame:
    """Return the lines of a piece, of all of its samples in order."""
    rows = len(piece.ids)
    places, reasons = [at for at in range(rows) if at not in piece.reasons], dict(piece.reasons)
    columns: dict[str, pl.Series] = {"sample_id": pl.Series(piece.ids, dtype=pl.String)}
    first = zip(places, likeliest[0][0], strict=True)
    reasons |= {at: "the student answers with NaN" for at, share in first if not isfinite(share)}
    for k, (values, numbers) in enumerate(zip(*likeliest, strict=True)):
        names: list[str | None] = [None] * rows
        shares: list[float | None] = [None] * rows
        for at, share, number in zip(places, values, numbers, strict=True):
            if at not in reasons:
                names[at], shares[at] = name_of(number), share
        end = "" if k == 0 else f"_{k + 1}"
        columns[f"class{end}"] = pl.Series(names, dtype=pl.String)
        columns[f"probability{end}"] = pl.Series(shares, dtype=pl.Float32)
    columns["error"] = pl.Series([reasons.get(at) for at in range(rows)], dtype=pl.String)
    return pl.DataFrame(columns)


def _frame_of_numbers(piece: Piece, likeliest: Likeliest, names: list[str]) -> pl.DataFrame:
    """Return the lines of a piece whose answers are numbers, of all of its samples in order."""
    places = [at for at in range(len(piece.ids)) if at not in piece.reasons]
    reasons = dict(piece.reasons)
    values_KB = likeliest.values_KB if places else [[]] * len(names)
    for at, *values in zip(places, *values_KB, strict=True):
        if not all(map(isfinite, values)):
            reasons[at] = "the student answers with NaN"
    columns: dict[str, pl.Series] = {"sample_id": pl.Series(piece.ids, dtype=pl.String)}
    for name, values in zip(names, values_KB, strict=True):
        told = dict(zip(places, values, strict=True))
        cells = [None if at in reasons else told[at] for at in range(len(piece.ids))]
        columns[name if name not in ("sample_id", "error") else f"{name}_told"] = pl.Series(cells, dtype=pl.Float32)
    columns["error"] = pl.Series([reasons.get(at) for at in range(len(piece.ids))], dtype=pl.String)
    return pl.DataFrame(columns)


def _names(answerer: Answerer) -> Callable[[int], str]:
    """Return what a class is called: by its name, or as the token that it is."""
    if not task_of(answerer.blueprint).report.token_classes or answerer.tokenizer is None:
        return answerer.class_name
    spelled = token_names(answerer.tokenizer)
    return lambda number: spelled.get(number, str(number))
