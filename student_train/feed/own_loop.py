"""A cache's rows for a training loop of one's own: the very batches of `student train`, for whoever writes the steps.

    rows = open_rows(Cache.open("caches/photos"), "photos/train", wants(labels=True, soft={"big": 4.0}))
    for epoch in range(3):
        for batch in rows.epoch(epoch, batch_size=64):
            seen, scores_BC = batch.supervision(), model(batch.inputs)
            loss = kd(scores_BC, seen.targets["big"], temperature=4.0)

`docs/own-loop.md` has whole loops: in plain torch, under a DataLoader, inside a Trainer of transformers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import torch
from pydantic import ValidationError

from storage.cache import Cache, Catalogue, Samples
from storage.encodings import Capability
from storage.errors import BadRequest, MissingCapability, NotInCache
from storage.format.specs import DatasetSpec
from student_train.feed.batches import ArrayKey, Batch, Needs, SoftNeed
from student_train.feed.feed import Feed
from student_train.feed.order import Cut, count_steps
from student_train.feed.order.views import check_one_class, choose_views
from student_train.feed.residency import FeedPool, choose_residency, projected_bytes
from student_train.feed.selection import join_selections, select_rows
from student_train.feed.shard_source import FEATURE
from student_train.feed.together import check_agree, check_alike, feature_shapes, mixed
from student_train.options.by_dataset import named_together, teachers_named
from student_train.options.sections import DataOptions, ResidencyChoice, datasets_of, listed

OWN = "of a loop of one's own"  # in messages, in place of a student's name

_forked: list[int] = []  # the process, if it is a fork of one that had this module
os.register_at_fork(after_in_child=lambda: _forked.append(os.getpid()))


def wants(
    *,
    labels: bool = False,
    soft: Mapping[str, float | Sequence[float]] | None = None,
    features: Mapping[str, str | Sequence[str]] | None = None,
    mixed: bool = False,
) -> Needs:
    """Return what a loss of one's own needs of each row, inputs apart.

    Args:
        labels: whether every row must have one.
        soft: teachers, with the temperature or temperatures at which their probabilities are looked at.
        features: teachers, with the name or names of their features.
            A teacher is one name, of every dataset, or one for each, "code=coder,law=lawyer".
        mixed: whether the loss weighs both labels of a row that mixup or CutMix made of two (`Supervision.mixed`), as
            `labels_cross_entropy` does. Where it does not, labels under views that mix are refused.

    What a loss of a student job needs, `objective_needs` of `student_train.losses.objective` returns.
    """
    return Needs(
        labels=labels,
        one_class=frozenset({"labels"} if labels and not mixed else ()),
        soft=frozenset(
            SoftNeed(_sorted(teacher), Capability("bucket", float(temperature)))
            for teacher, given in (soft or {}).items()
            for temperature in ([given] if isinstance(given, int | float) else given)
        ),
        features=frozenset(
            ArrayKey(_sorted(teacher), FEATURE + name)
            for teacher, given in (features or {}).items()
            for name in ([given] if isinstance(given, str) else given)
        ),
    )


def _sorted(teacher: str) -> str:
    """Return a teacher's name as terms of a job have it, whatever the order in which one of each dataset is named."""
    return named_together(teachers_named(teacher)) if "=" in teacher else teacher


class Rows:
    """Rows of a cache in batches. Made by `open_rows`; a copy in another process opens them there.

    Attributes:
        spec: what the cache promises of a row: `input_shape`, `input_dtype`, `classes`, `task`.
        num_rows: how many there are.
        view_names: of the views that epochs show in turn, ("plain",) without.
        kept: where the rows are, with the reason: on the device, on the host, or streamed.
    """

    def __init__(self, feed: Feed, kept: str, opened: tuple[Any, ...]):
        self._feed = feed
        self._opened = opened
        self.spec: DatasetSpec = feed.selection.spec
        self.num_rows = feed.num_rows
        self.view_names = feed.selection.view_names
        self.kept = kept

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, self._opened

    def steps(self, batch_size: int) -> int:
        """Return the number of batches of an epoch; a last row that would be one by itself joins the batch before."""
        return count_steps(self.num_rows, batch_size)

    def epoch(
        self,
        number: int,
        batch_size: int,
        *,
        seed: int = 0,
        first_step: int = 0,
        process: tuple[int, int] = (0, 1),
        worker: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """Yield the batches of an epoch, shuffled; with the same arguments the same batches, on any machine.

        `batch.inputs` is (B, *input_shape), as the teacher saw it: pixels float32 in [0, 1], token ids int64.
        `batch.supervision()` has `labels_B` (int64), `targets` (by teacher, decoded) and `features` (float32). Where
        rows have many sites, labels are (B, *sites) and −1 for none; losses see the N labelled sites of all rows as
        rows, as `supervision_at(slice(None))`, beside the student's scores at `batch.sites()`.

        Args:
            number: of the epoch, from 0: another order, and the next view where there are views.
            batch_size: rows of a batch, of all processes together.
            seed: of the order, `order_seed` of a student job.
            first_step: the first batch that is wanted, from 0: where a run goes on that was interrupted.
            process: (rank, processes): of every batch the rows of one of several processes, so that all of them take
                as many steps, and their batches are those of one process.
            worker: (worker, workers): of all batches, each for one of several, in turn, as a DataLoader asks its
                workers. In a stream each of them reads all shards.

        Raises:
            BadRequest: no such process or worker; a batch has too few rows for all processes; or this one is a fork,
                and rows are streamed.
            StaleCache, CorruptObject: what is read is not what was built; it is named.
        """
        if self.kept.startswith("stream"):
            _check_not_forked()
        rank, processes = _checked("process", process)
        mine, workers = _checked("worker", worker)
        steps = self.steps(batch_size)
        least = min(batch_size, self.num_rows - (steps - 1) * batch_size)
        if least < processes:
            raise BadRequest(
                f"a batch has too few rows for {processes} processes",
                found=f"{least} rows in the last of {steps} batches of {batch_size}",
                expected=f"{processes} or more: one that has none would take no step",
                do="another batch_size, or fewer processes",
            )
        cut = Cut(batch_size, self._feed.view_of(number), first_step + mine, workers)
        with closing(self._feed.shared([cut], seed=seed, epoch=number)) as fed:
            for each in fed:
                yield each.batch if processes == 1 else each.batch.rows(slice(rank, None, processes))

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield all rows in dataset order, plain: to measure on. Raises StaleCache, CorruptObject."""
        return self._feed.in_order(batch_size)


def open_rows(
    cache: Cache,
    rows: str | Sequence[str],
    needs: Needs,
    *,
    mixture: Mapping[str, float] | None = None,
    device: str | torch.device = "cpu",
    residency: ResidencyChoice = "auto",
    window_shards: int = 16,
    views: int | None = None,
    allow_partial: bool = False,
) -> Rows:
    """Return rows of a cache for a loop of one's own. Options mean what they mean in `[data]` of a student job.

    Args:
        cache: an open one.
        rows: "<dataset>", "<dataset>/train" or "<dataset>/validation"; or a list of such, of several datasets.
        needs: what a batch is to hold besides inputs: `wants(…)`, or `objective_needs(…)` of a job's losses.
        mixture: of each of several datasets its share of an epoch; None: every row is in an epoch once.
        device: where batches are to be.
        residency: "device" and "host" read all rows now and keep them, "stream" reads shards as they are wanted.
        window_shards: rows are shuffled within so many shards.
        views: how many; 0: plain inputs; None: as many as every needed teacher has.
        allow_partial: leave out rows of which something is not built yet, instead of refusing.

    Raises:
        NotInCache: no such dataset, split, teacher or feature; what there is, is named.
        IncompleteCache: shards are missing, named.
        MissingCapability: a teacher's soft targets are not stored so that they serve what is needed.
        BadRequest: rows have no labels, or mix two, and the needs are otherwise; there are no such views; the rows do
            not fit where they are to be kept; several datasets differ in what a row is, or the mixture is none of
            them; or this process is a fork.
        StaleCache, CorruptObject: what is read is not what was built.
    """
    _check_not_forked()
    data = _asked(rows, mixture)
    catalogue = _looked_at(cache, datasets_of(data.train), needs)
    shown = choose_views(catalogue, datasets_of(data.train), [needs], views, allow_partial=allow_partial)
    check_one_class(OWN, needs, shown)
    each = [
        select_rows(Samples(catalogue), one, needs, allow_partial=allow_partial, views=shown)
        for one in listed(data.train)
    ]
    selection, where = mixed(join_selections(each), data.mixture), torch.device(device)
    kept = choose_residency(residency, projected_bytes([(selection, needs)]), where)
    pool = FeedPool(cache, where, place=kept.place, window_shards=window_shards)
    options = {"residency": residency, "window_shards": window_shards, "views": views, "allow_partial": allow_partial}
    opened = (cache.url, rows, needs, {"mixture": mixture, "device": str(where), **options})
    return Rows(pool.feed(selection, needs), f"{kept.place}: {kept.why}", opened)


def _asked(rows: str | Sequence[str], mixture: Mapping[str, float] | None) -> DataOptions:
    """Return rows and shares as a job would say them. Raises BadRequest: they make no sense."""
    shares = None if mixture is None else dict(mixture)
    try:
        return DataOptions.model_validate({"train": rows, "validation": rows, "mixture": shares})
    except ValidationError as error:
        told = dict.fromkeys(each["msg"].removeprefix("Value error, ") for each in error.errors())
        raise BadRequest("these are no rows of a cache", found="; ".join(told)) from None


def _looked_at(cache: Cache, datasets: Sequence[str], needs: Needs) -> Catalogue:
    """Return what a cache holds of some datasets, after checking that it serves what is needed, of all of them alike.

    Raises:
        NotInCache, MissingCapability, BadRequest: it does not.
    """
    taught = {teacher for dataset in datasets for teacher in needs.within(dataset).teachers}
    catalogue = cache.catalogue(set(datasets), taught)
    first = catalogue.dataset(datasets[0])
    found = []
    for dataset in datasets:
        check_agree(first, catalogue.dataset(dataset), f"{dataset} cannot be trained on together with {first.name}")
        _check_served(catalogue, dataset, needs.within(dataset))
        found.append((dataset, first.num_classes, feature_shapes(catalogue, dataset, needs)))
    check_alike(catalogue, found, needs)
    return catalogue


def _open_again(url: str, rows: str | Sequence[str], needs: Needs, options: dict[str, Any]) -> Rows:
    return open_rows(Cache.open(url), rows, needs, **options)


def _check_not_forked() -> None:
    """Check that this process is no fork: the threads of Polars are not in it, and it would wait for them forever."""
    if os.getpid() in _forked:
        raise BadRequest(
            "a cache cannot be read in a process that is a fork",
            found="a worker of a DataLoader, or the like, that was started by fork",
            do='multiprocessing_context="spawn"; or open the rows before, with residency = "host"',
        )


def _check_served(catalogue: Catalogue, dataset: str, needs: Needs) -> None:
    """Check that soft targets and features are there as they are needed (invariant 9)."""
    for name in needs.teachers:
        teacher = catalogue.teacher(dataset, name)
        remedies = {need: teacher.encoding.lacks(need) for need in sorted(needs.of(name))}
        if lacking := {need: remedy for need, remedy in remedies.items() if remedy is not None}:
            changes = "; ".join(dict.fromkeys(lacking.values()))
            raise MissingCapability(
                f"the soft targets of teacher {name} for {dataset} do not serve what is needed",
                found="; ".join(teacher.encoding.serves),
                expected="; ".join(map(str, lacking)),
                do=f"in the cache job: {changes}; then cache build JOB.toml --as NAME",
            )
    for key in sorted(needs.features):
        features = catalogue.teacher(dataset, key.teacher).features
        if key.array.removeprefix(FEATURE) not in features:
            raise NotInCache(
                f"teacher {key.teacher} has no feature {key.array.removeprefix(FEATURE)!r} for {dataset}",
                found=", ".join(sorted(features)) or "no features",
                do="add it to the teacher in the cache job, then build --as NAME",
            )


def _checked(what: str, given: tuple[int, int]) -> tuple[int, int]:
    number, count = given
    if not 0 <= number < count:
        raise BadRequest(
            f"there is no such {what}", found=f"({number}, {count})", expected="(0, 1), (0, 2), (1, 2), …: from 0"
        )
    return number, count
