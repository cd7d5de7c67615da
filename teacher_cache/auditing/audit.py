"""The story of an audit: teachers are asked again about rows of a cache, and what is off is named (invariant 4).

What to tolerate is measured, not guessed: the same rows in other batches, stored as the cache would have stored them,
differ from the first answer by rounding and by what the encoding loses, and by nothing else.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from storage.cache import Cache, Catalogue
from storage.cache.watcher import Watcher
from storage.errors import BadRequest, NotInCache
from storage.format.specs import DatasetSpec, check_promise
from teacher_cache.auditing.asking import Asked, Compared, ask_again
from teacher_cache.auditing.choosing import choose_shards
from teacher_cache.auditing.comparing import DRAWN
from teacher_cache.auditing.drift import Changed, Machine, changes, machines
from teacher_cache.building.augmenting import promise_views
from teacher_cache.building.prepared import BuildRequest
from teacher_cache.teachers.classes import check_classes
from teacher_cache.teachers.options import TeacherOptions, check_tokens
from teacher_cache.work.surroundings import surroundings

SAFETY = 2.0  # times what was measured
# What rounding may do beyond what was measured, of the largest value: batches of a build are larger, and others.
ROUNDING = {"fp32": 2.0**-16, "fp16": 2.0**-10, "bf16": 2.0**-7}
ANOTHER_DEVICE = 2.0**-7  # its kernels round otherwise, and a GPU's to fewer bits


@dataclass(frozen=True)
class AuditRequest:
    """What an audit is asked for.

    Attributes:
        build: of the job whose teachers are asked; its cache is the one to audit.
        rows: to ask about, of all teachers, datasets and views together.
        seed: of which rows these are.
    """

    build: BuildRequest
    rows: int
    seed: int


@dataclass(frozen=True)
class Off:
    """A row whose stored answer is not the teacher's; in the aspect in which it is off the most."""

    dataset: str
    teacher: str
    view: str
    row: int
    sample_id: str
    aspect: str
    at: str | None
    found: float
    expected: float
    off: float
    tolerated: float

    @property
    def unit(self) -> str:
        """Of `found`, `expected`, `off` and `tolerated`."""
        return "draws" if self.aspect == DRAWN else "" if self.aspect.startswith("feature/") else "nat"


@dataclass(frozen=True)
class Audited:
    """One teacher over one dataset.

    Attributes:
        rows, shards: that were compared, of all `views`.
        tolerated: aspect → how far off a row may be.
        off: rows that are further off.
        note: what makes this weaker than it might be.
        machines: on which the shards were made.
        changed: what answers now as another version than when they were made.
    """

    dataset: str
    teacher: str
    views: tuple[str, ...]
    rows: int
    shards: int
    tolerated: dict[str, float]
    off: tuple[Off, ...]
    note: str | None = None
    machines: tuple[Machine, ...] = ()
    changed: tuple[Changed, ...] = ()


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        seed: which rows were chosen.
        device, host, surroundings: where and by what the teachers answered now.
        audited: each teacher over each dataset.
    """

    seed: int
    device: str
    host: str
    surroundings: dict[str, str]
    audited: tuple[Audited, ...] = field(default=())

    @property
    def num_off(self) -> int:
        """Rows that are off."""
        return sum(len(each.off) for each in self.audited)


def run_audit(request: AuditRequest, watcher: Watcher) -> Audit:
    """Ask the teachers of a job again, and compare.

    Raises:
        StaleCache: a teacher of the job, or a dataset, is not the cache's; every field that differs is named.
        NotInCache: the cache has none of that name, or nothing of it is built.
        BadTeacher, CorruptObject: as of a build.
    """
    import torch

    from teacher_cache.teachers.loading import load_teacher, pick_device

    build = request.build
    cache = Cache.open(build.cache)
    catalogue = cache.catalogue()
    asked = _belonging(catalogue, build)
    draw, device = np.random.default_rng(request.seed), pick_device(build.device)
    shards_of = {
        stage: sorted(shards)
        for stage, shards in catalogue.commits.items()
        if shards and stage[:2] in {(dataset, teacher.name) for dataset, teacher in asked}
    }
    if not shards_of:
        raise NotInCache(f"{cache.url} has no answers to audit", do=f"cache build {build.job}")
    chosen = choose_shards(shards_of, request.rows, draw)
    torch.set_num_threads(build.threads)
    audited = []
    for options in build.teachers:  # one loaded at a time
        teacher = load_teacher(options, torch.device(device))
        for dataset in [dataset for dataset, of in asked if of is options]:
            mine = [(key, rows) for key, rows in chosen if (key.dataset, key.teacher) == (dataset, options.name)]
            watcher.begin(f"audit {dataset}/{options.name}", sum(rows for _, rows in mine))
            answers = []
            for key, rows in mine:
                answers.append(ask_again(cache, key, rows, teacher, draw))
                watcher.advance(rows)
            if answers:
                audited.append(_judged(catalogue.dataset(dataset), options, answers, device))
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return Audit(request.seed, name, socket.gethostname(), surroundings(device), tuple(audited))


def _belonging(catalogue: Catalogue, build: BuildRequest) -> list[tuple[str, TeacherOptions]]:
    """Return the job's datasets with the teachers that are asked about them, all of which are the cache's."""
    url, asked = catalogue.url, []
    if not build.teachers:
        raise BadRequest(f"{build.job} has no teacher to ask", found="no [[teacher]]", do="name the job of the cache")
    for source in build.sources:
        dataset = catalogue.dataset(source.name)
        named = getattr(source, "classes", None)  # by the job; what only the data name is not read
        classes = dataset.classes if named is None else list(named.values() if isinstance(named, dict) else named)
        now = dataset.model_copy(update={"source": source.as_promised(dataset.source).content(), "classes": classes})
        check_promise(url, f"{source.name}/dataset.json", dataset, now, build.job)
        if build.views is not None and source.name in catalogue.views:
            promise_views(catalogue, build.views, dataset, build.job)
        for teacher in build.teachers:
            if teacher.datasets is None or source.name in teacher.datasets:
                promised = catalogue.teacher(source.name, teacher.name)
                check_tokens(teacher, dataset, partial(catalogue.tokenizer, source.name))
                check_classes(teacher, dataset)
                path = f"{source.name}/{teacher.name}/teacher.json"
                teaching = teacher.promise(promised.num_classes, promised.uses)
                check_promise(url, path, promised, teaching, build.job)
                asked.append((source.name, teacher))
    return asked


def _judged(dataset: DatasetSpec, options: TeacherOptions, answers: Sequence[Asked], device: str) -> Audited:
    """Return which rows of a teacher and dataset are off, by what all of them together show to be tolerable."""
    compared = [each for answer in answers for each in answer.compared]
    elsewhere = sorted({str(answer.commit.about.get("device")) for answer in answers if not _here(answer, device)})
    rounding = max(ROUNDING[options.autocast], ANOTHER_DEVICE if elsewhere else 0.0)
    tolerated = {
        aspect: _tolerance(aspect, [each for each in compared if each.aspect == aspect], rounding, options)
        for aspect in dict.fromkeys(each.aspect for each in compared)
    }
    worst: dict[tuple[str, int], Compared] = {}
    for each in compared:
        at = (each.key.view, each.row)
        # not `off > tolerated`: what is NaN is off
        if not each.off <= tolerated[each.aspect] and (
            at not in worst or each.off / tolerated[each.aspect] > worst[at].off / tolerated[worst[at].aspect]
        ):
            worst[at] = each
    return Audited(
        dataset=dataset.name,
        teacher=options.name,
        views=tuple(dict.fromkeys(answer.commit.key.view for answer in answers)),
        rows=sum(answer.rows for answer in answers),
        shards=len(answers),
        tolerated=tolerated,
        off=tuple(_off(dataset, each, tolerated[each.aspect]) for each in worst.values()),
        note=f"asked on {', '.join(elsewhere)}, and now on another device: more is tolerated" if elsewhere else None,
        machines=machines(answers, worst),
        changed=changes(answers, surroundings(device)),
    )


def _here(answer: Asked, device: str) -> bool:
    """Return whether a shard was asked on a device like this one."""
    import torch

    said = str(answer.commit.about.get("device")).split(",", 1)[0]  # "cpu, 2 threads"
    return said == (torch.cuda.get_device_name() if device == "cuda" else "cpu")


def _tolerance(aspect: str, compared: Sequence[Compared], rounding: float, options: TeacherOptions) -> float:
    """Return how far off a row may be in one aspect."""
    measured = SAFETY * max(each.own for each in compared)
    nats = rounding * max(1.0, *(each.size for each in compared))
    if aspect == DRAWN:  # one falls to its neighbour by rounding; of n, as many as probability moves
        return measured + 1 + options.encoding.n * nats if options.encoding.kind == "sparse" else measured
    return measured + nats


def _off(dataset: DatasetSpec, each: Compared, tolerated: float) -> Off:
    number = each.class_number
    named = number is not None and number < len(dataset.classes)
    at = dataset.classes[number] if named and number is not None else None if number is None else str(number)
    return Off(
        dataset=each.key.dataset,
        teacher=str(each.key.teacher),
        view=each.key.view,
        row=each.row,
        sample_id=each.sample_id,
        aspect=each.aspect,
        at=at,
        found=each.found,
        expected=each.expected,
        off=each.off,
        tolerated=tolerated,
    )
