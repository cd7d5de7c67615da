"""Labelled rows that somebody is measured on: those of a cache; `elsewhere.py` has others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from storage.cache import Cache, Catalogue, Samples
from storage.errors import BadRequest, NotInCache
from storage.inputs import inputs_of
from storage.inputs.columns import check_same_columns
from storage.inputs.encoded import own_shape
from storage.inputs.policy import UNSAID, ImagePolicy
from storage.tasks import task_of
from storage.views import PLAIN
from storage.views.check import check_decoded_for
from student_train.feed.batches import Batch, Needs
from student_train.feed.residency import FeedPool
from student_train.feed.selection import Integers, Selection, select_rows
from student_train.preparing.against import Against, OfSeveral, beside_each, measured_against
from student_train.students import Blueprint
from student_train.students.blueprint import decoded_at
from student_train.using.portable import SPLIT_KEYS

# of a table: those that differ in its rows are refused, the others say nothing of them
OF_TABLES = {"columns", "delimiter", "id", "label", "labels", "normalise", "order"}


@dataclass(frozen=True)
class LabelledRows:
    """Rows with labels, in order.

    Attributes:
        told: what they are, in words.
        name: of the dataset, as its classes are spoken of.
        classes: names, in the order of the labels.
        batches: yields (rows with labels, top classes of the teacher or None), of so many rows at a time.
        notes: what is to be told of them before they are read.
        noted: called afterwards: what is to be told of how they were read.
        unreadable: likewise: samples that could not be read, as (id, reason).
        num_rows: how many there are, where that is known.
        teacher: whom agreement is with.
        against: the teacher whose soft targets of each site come along, where the task is measured so.
        several: all teachers that have answered these rows, that one first; empty: there is one, or one was chosen.
    """

    told: str
    name: str
    classes: tuple[str, ...]
    batches: Callable[[int], Iterator[tuple[Batch, Tensor | None]]]
    notes: tuple[str, ...] = ()
    noted: Callable[[], list[str]] = list
    unreadable: Callable[[], list[tuple[str, str]]] = list
    num_rows: int | None = None
    teacher: str | None = None
    against: Against | None = None
    several: tuple[OfSeveral, ...] = ()
    remarks: Mapping[str, int] = field(default_factory=dict)

    @property
    def told_at_end(self) -> tuple[str, ...]:
        """What is to be told of samples once they are read, with how many those are."""
        return tuple(f"{count:,} {remark}" for remark, count in self.remarks.items())


class Keep(NamedTuple):
    """A folder of this machine in which shards are kept once they were read, and how many bytes it may hold."""

    folder: Path
    most_bytes: int

    def of(self, cache: Cache) -> Cache:
        """Return a cache whose shards are kept there. Raises BadRequest: it lies in the cache itself."""
        if "://" not in cache.url and self.folder.is_relative_to(cache.url):
            found, do = str(self.folder), "name a folder on a disk of this machine"
            raise BadRequest("shards would be kept in the cache itself", found=found, do=do)
        return cache.kept_in(*self)


def rows_of_cache(
    cache: Cache, rows: str, blueprint: Blueprint, device: torch.device, teacher: str | None, preferred: Iterable[str]
) -> LabelledRows:
    """Return rows of a cache.

    Args:
        cache: where they are.
        rows: "<dataset>" or "<dataset>/<split>".
        blueprint: of who is measured on them.
        device: where it is.
        teacher: to agree with; None: all that have answered them, and first the first of `preferred`, if any.
        preferred: names of teachers that it learned from.

    Raises:
        NotInCache: there are none; or the teacher was not asked.
        BadRequest: they are no inputs of such a student.
    """
    dataset = rows.partition("/")[0]
    catalogue = cache.catalogue({dataset})
    spec = catalogue.dataset(dataset)
    own = decoded_at(blueprint, spec)
    shape = own_shape(spec.input_shape, own)
    check_inputs(shape, inputs_of(spec).name, task_of(spec).name, spec.tokenizer, blueprint, rows)
    if own is not None:
        check_decoded_for("the student", spec, own, None, "[[student]]")
    check_same_columns(spec.source, blueprint.source, f"{rows} is no data for this student")
    chosen = _choose_teacher(catalogue, dataset, teacher, preferred)
    # a row that is its only site has its teacher's class in a column
    by_row = task_of(spec).label_array is None and task_of(spec).has_classes
    agree_with = chosen if by_row else None
    selection = select_rows(Samples(catalogue), rows, Needs(), allow_partial=True, agree_with=agree_with)
    selection = replace(selection, own=own)
    named = [] if chosen is None else [chosen]
    against, why_not = measured_against(catalogue, selection, named, blueprint.num_classes) if named else (None, None)
    several, why_not_several = ((), []) if teacher else _several(catalogue, selection, rows, chosen, blueprint)
    needs = Needs(labels=True) | (Needs() if against is None else against.needs)
    for each in several:
        needs = needs if each.against is None else needs | each.against.needs
    pool = FeedPool(cache, device, place="stream", window_shards=1)
    tops_N = None if selection.tops_N is None else torch.from_numpy(selection.tops_N)

    def batches(size: int) -> Iterator[tuple[Batch, Tensor | None]]:
        start = 0
        for batch in pool.feed(selection, needs).in_order(size):
            stop = start + len(batch.shown)
            yield batch, None if tops_N is None else tops_N[start:stop]
            start = stop

    return LabelledRows(
        told=f"{selection.num_rows:,} rows of {rows} in {cache.url}",
        name=dataset,
        classes=tuple(spec.classes),
        batches=batches,
        notes=(
            *_unbuilt(catalogue, dataset),
            *([] if why_not is None else [f"not measured against a teacher: {why_not}"]),
            *why_not_several,
            *other_preprocessing(spec.source | (own.said() if own else {}), blueprint, dataset),
        ),
        noted=list if cache.kept is None else cache.kept.notes,
        num_rows=selection.num_rows,
        teacher=agree_with or (None if against is None else against.teacher),
        against=against,
        several=several,
    )


def _several(
    catalogue: Catalogue, selection: Selection, rows: str, first: str | None, blueprint: Blueprint
) -> tuple[tuple[OfSeveral, ...], list[str]]:
    """Return all teachers of some rows, as somebody is measured against each, and why not against others."""
    (dataset,) = selection.datasets
    names = [name for name in _answered(catalogue, dataset) if catalogue.teacher(dataset, name).encoding.soft]

    def tops_of(name: str) -> Integers | None:
        return select_rows(Samples(catalogue), rows, Needs(), allow_partial=True, agree_with=name).tops_N

    ordered = sorted(names, key=lambda name: name != first)  # stable
    against, _ = measured_against(catalogue, selection, ordered[:1], blueprint.num_classes)
    return beside_each(selection, ordered, against, blueprint.num_classes, tops_of)


def _answered(catalogue: Catalogue, dataset: str) -> list[str]:
    """Return the teachers that have answered plain rows of a dataset."""
    return [name for name in catalogue.teacher_names(dataset) if PLAIN in catalogue.view_names(dataset, name)]


def _choose_teacher(catalogue: Catalogue, dataset: str, teacher: str | None, preferred: Iterable[str]) -> str | None:
    """Return whom to agree with, or None: nobody has answered. Raises NotInCache: the named one has not."""
    answered = _answered(catalogue, dataset)
    if teacher is not None and teacher not in answered:
        raise NotInCache(
            f"teacher {teacher} was not asked about the plain rows of {dataset}",
            found=", ".join(answered) or "no teacher",
            do="leave out --teacher, or name one of these",
        )
    return teacher or next((name for name in (*preferred, *answered) if name in answered), None)


def _unbuilt(catalogue: Catalogue, dataset: str) -> list[str]:
    """Return a note if rows of a dataset are not built yet."""
    committed = catalogue.committed(dataset)
    missing = [shard for shard in catalogue.shards(dataset) if shard.shard not in committed]
    # a shard in a range of bytes has as many rows as its commit says
    by_ranges = catalogue.dataset(dataset).byte_ranges
    left = f"{len(missing)} shards" if by_ranges else f"{sum(s.stop - s.start for s in missing)} rows"
    return [f"{left} of {dataset} are not built yet, and not measured"] if missing else []


def check_inputs(
    shape: tuple[int, ...], made_of: str, task: str, tokenizer: str | None, blueprint: Blueprint, rows: str
) -> None:
    """Raise BadRequest if rows are no inputs of a student, or something else is asked of them."""
    own = blueprint.made_of
    fits = tuple(shape) == tuple(blueprint.input_shape) or (own.tokenised and shape[0] <= blueprint.input_shape[0])
    if (made_of, task) != (own.name, blueprint.asked.name) or not fits:
        raise BadRequest(
            f"{rows} is no data for this student",
            found=f"{made_of} {tuple(shape)} for {task}",
            expected=f"{own.name} {tuple(blueprint.input_shape)} for {blueprint.asked.name}",
            do="a dataset that was made as its own was, with the same size and channels",
        )
    if own.tokenised and None not in (tokenizer, blueprint.tokenizer) and tokenizer != blueprint.tokenizer:
        raise BadRequest(
            f"{rows} was made by another tokenizer than the student's",
            found=f"tokenizer {tokenizer}",
            expected=f"tokenizer {blueprint.tokenizer}",
        )


def other_keys(source: Mapping[str, Any], own: Mapping[str, Any]) -> set[str]:
    """Return in which keys two promises of how a sample becomes a row differ."""
    keys = {*source, *own} - SPLIT_KEYS
    if source.get("kind") != own.get("kind"):  # two kinds of files say nothing of each other's keys
        both = "channels" in source and "channels" in own  # but a picture becomes pixels in one way, wherever it lies
        keys &= ImagePolicy.model_fields.keys() if both else set()
    return {key for key in keys if source.get(key, UNSAID.get(key)) != own.get(key, UNSAID.get(key))}


def other_preprocessing(source: Mapping[str, Any], blueprint: Blueprint, name: str) -> list[str]:
    """Return a note if samples of a dataset became rows in another way than those that a student learned from."""
    own = blueprint.source
    differing = [] if own is None else sorted(other_keys(source, own) - OF_TABLES)
    if own is None or not differing:
        return []
    said = ", ".join(f"{key} {source.get(key)!r}, the student's {own.get(key)!r}" for key in differing)
    return [f"{name} was read in another way than what the student learned from: {said}"]
