"""What a cache is promised of a source, which its own promise must not contradict."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice

import numpy as np
import polars as pl

from storage.cache import Catalogue
from storage.datasets import RawSample, Source, Unreadable
from storage.errors import BadRequest, MissingSource, StaleCache
from storage.format.specs import BYTE_RANGES, ENCODED, OWN_LENGTH, PACKED, DatasetSpec, check_promise
from storage.language.tokenizer import difference
from teacher_cache.building.sources.afresh import afresh
from teacher_cache.teachers.classes import check_distinct

PROBED_SAMPLES = 100  # read to learn the shape of an input; one readable sample among them is enough


def promise_dataset(catalogue: Catalogue | None, source: Source, files: pl.DataFrame, job: str) -> DatasetSpec:
    """Return the promise of a dataset.

    Args:
        catalogue: of the cache; None: there is none yet.
        source: as it was opened.
        files: of it, in row order.
        job: the job's file, for messages.

    Raises:
        StaleCache: the cache's own contradicts it, field by field.
        BadRequest: the cache is of a format that has no place for it; or samples are of several shapes.
        MissingSource: none of the first samples can be read.
    """
    was = None if catalogue is None else catalogue.datasets.get(source.name)
    if catalogue is not None and was is not None:
        spec = _dataset_spec(source, was.input_shape, was.input_dtype)  # what was learned once is not probed again
        _check_tokenizer(catalogue, was, spec, source, job)
        try:
            check_promise(catalogue.url, f"{source.name}/dataset.json", was, spec, job)
        except StaleCache as error:
            raise StaleCache(error.what, error.found, error.expected, afresh(catalogue, source.name, job)) from None
    else:
        spec = _dataset_spec(source, *(source.known_input() or _probe(source, files)))
    if catalogue is not None and catalogue.about.format < 3 and (spec.uses or spec.task):
        raise BadRequest(
            f"{catalogue.url} is of format {catalogue.about.format}, which has no place for {source.name}",
            found=", ".join([*spec.uses, *[f"task {spec.task}"] * bool(spec.task)]),
            expected="a cache of format 3",
            do=f"cache build {job} --as NAME    # a new cache beside it; this one stays as it is",
        )
    return spec


def _check_tokenizer(catalogue: Catalogue, was: DatasetSpec, now: DatasetSpec, source: Source, job: str) -> None:
    """Raise StaleCache if a dataset has another tokenizer than the cache's, with the first token that differs."""
    tokenizer = source.tokenizer_file()
    if tokenizer is None or was.tokenizer in (None, now.tokenizer):
        return
    there = catalogue.tokenizer(source.name)
    raise StaleCache(
        f"dataset {source.name} has another tokenizer than the cache {catalogue.url}",
        found=f"fingerprint {now.tokenizer}  ({job})"
        + ("" if there is None else f"\nfirst {difference(tokenizer, there)}"),
        expected=f"fingerprint {was.tokenizer}  ({source.name}/tokenizer.json)",
        do=afresh(catalogue, source.name, job),
    )


def _class_names(source: Source) -> list[str]:
    names = source.class_names()
    check_distinct(f"dataset {source.name}", names)
    return names


def _dataset_spec(source: Source, input_shape: tuple[int, ...], input_dtype: str) -> DatasetSpec:
    tokens, longest = source.tokens(), source.longest_row()
    return DatasetSpec(
        name=source.name,
        source=source.content(),
        classes=_class_names(source),
        input_shape=input_shape if longest is None else (longest, *input_shape[1:]),
        input_dtype=input_dtype,
        vocabulary=None if tokens is None else tokens.vocabulary,
        tokenizer=None if tokens is None else tokens.tokenizer,
        uses=(
            *[OWN_LENGTH] * (longest is not None),
            *[BYTE_RANGES] * source.by_ranges,
            *[PACKED] * source.packs,
            *[ENCODED] * source.encoded,
        ),
        task=source.task_name(),
    )


def _probe(source: Source, files: pl.DataFrame) -> tuple[tuple[int, ...], str]:
    """Return shape and dtype of the first readable sample.

    Raises:
        MissingSource: none of the first is readable.
        BadRequest: of some that lie all over the files, not all are of one shape.
    """
    reasons = []
    samples = (
        sample
        for file, rows in files.select("file", "rows").iter_rows()
        for sample in source.read(file, 0, min(rows, PROBED_SAMPLES))
    )
    for sample in islice(samples, PROBED_SAMPLES):
        try:
            first = _decoded(source, sample)
        except Unreadable as reason:
            reasons.append(f"{sample.sample_id}: {reason}")
        else:
            if source.longest_row() is None:
                _check_one_shape(source, files)
            return first.shape, str(first.dtype)
    raise MissingSource(f"dataset {source.name} has no readable sample", found="\n".join(reasons[:5]))


def _check_one_shape(source: Source, files: pl.DataFrame) -> None:
    """Raise BadRequest if more samples differ in shape than may be set aside, rather than to set aside one by one."""
    shapes: dict[tuple[int, ...], list[str]] = {}
    for file, rows in files.gather_every(max(1, len(files) // PROBED_SAMPLES)).select("file", "rows").iter_rows():
        for sample in source.read(file, 0, min(rows, max(1, PROBED_SAMPLES // len(files)))):
            with suppress(Unreadable):  # which is told when it is its turn
                shapes.setdefault(_decoded(source, sample).shape, []).append(sample.sample_id)
    often = sorted(shapes.items(), key=lambda shape: -len(shape[1]))
    odd, looked_at = sum(len(ids) for _, ids in often[1:]), sum(map(len, shapes.values()))
    if odd > source.max_quarantined * looked_at:
        raise BadRequest(
            f"samples of dataset {source.name} have different shapes",
            found="\n".join(
                f"{list(shape)}: {len(ids)} of those looked at, such as {ids[0]}" for shape, ids in often[:5]
            ),
            expected="one shape, that of the teacher's inputs",
            do=f"size = {often[0][0][-1]}    # of images, in [[dataset]]: what the teacher was trained on",
        )


def _decoded(source: Source, sample: RawSample) -> np.ndarray:
    if isinstance(sample.payload, Unreadable):
        raise sample.payload
    return source.decode(sample.payload)
