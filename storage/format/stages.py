"""Which datasets, teachers and stages a cache has, and which of their shards are committed: from listings alone.

A spec is written before anything that it speaks of and is never deleted. So a folder with data but without its spec has
lost it: what its rows mean is not known any more, and no build may guess it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from storage.errors import MissingObject
from storage.format.objects import Listing, Objects, num_at_once
from storage.format.shards import GROUP_NAME, INGEST, PLAN, Committed, list_commits, stage_folder
from storage.options import is_name
from storage.views import PLAIN

Stage = tuple[str, str | None, str]  # dataset, teacher (None: the ingest), view
VIEWS_JSON = "views.json"
LEDGER = "ledger"  # a folder beside those of datasets
LEASE = "_lease"  # likewise, of whoever builds (storage.cache.lease)


class DatasetStages(NamedTuple):
    """What listings tell of one dataset.

    Attributes:
        dataset: its name.
        teachers: those that are promised, sorted; some may have no stage yet.
        commits: stage → its committed shards, each with the version of its commit; the ingest first.
        has_views: whether its views are promised.
    """

    dataset: str
    teachers: tuple[str, ...]
    commits: dict[Stage, Committed]
    has_views: bool


def look_at_stages(
    objects: Objects, datasets: Iterable[str] | None = None, teachers: Collection[str] | None = None
) -> list[DatasetStages]:
    """Return what there is of each dataset, sorted, after one listing of each folder that can hold a commit.

    Args:
        objects: the cache.
        datasets: names, also of what is not there, which is left out; None for all.
        teachers: whose stages are looked at; None for all.

    Raises:
        MissingObject: a dataset or teacher that is looked at has lost its spec, or a dataset that of its views.
    """
    # what is no name is not there, and might lead out of the cache
    names = objects.list().folders if datasets is None else sorted({name for name in datasets if is_name(name)})
    with ThreadPoolExecutor(num_at_once(objects)) as pool:  # of lists: a store gives the pages of one after another
        found = [_look_at(objects, name, teachers, pool) for name in names if name not in (LEDGER, LEASE)]
    return [each for each in found if each is not None]


def list_datasets(objects: Objects) -> list[str]:
    """Return the datasets of a cache, sorted. Raises MissingObject if one has lost its spec."""
    folders = [folder for folder in objects.list().folders if folder not in (LEDGER, LEASE)]
    return [folder for folder in folders if _is_promised(objects, folder, objects.list(folder), "dataset.json")]


def list_teachers(objects: Objects, dataset: str) -> list[str]:
    """Return the teachers of a dataset, sorted. Raises MissingObject if one has lost its spec."""
    folders = _teacher_folders(objects.list(dataset))
    return [_name(path) for path in folders if _is_promised(objects, path, objects.list(path), "teacher.json")]


def list_stages(objects: Objects, datasets: Iterable[str] | None = None) -> list[Stage]:
    """Return (dataset, teacher, view) of every stage, a dataset's ingest first; the teacher of an ingest is None."""
    return [stage for each in look_at_stages(objects, datasets) for stage in each.commits]


def _look_at(
    objects: Objects, dataset: str, teachers: Collection[str] | None, pool: ThreadPoolExecutor
) -> DatasetStages | None:
    """Return what there is of a dataset; None if nothing promises it."""
    listing = objects.list(dataset)
    if not _is_promised(objects, dataset, listing, "dataset.json"):
        return None
    promised: list[str] = []
    stages: list[Stage] = [(dataset, None, PLAIN)]
    for folder in _teacher_folders(listing):
        teacher = _name(folder)
        if teachers is not None and teacher not in teachers:
            continue
        below = objects.list(folder)
        if not _is_promised(objects, folder, below, "teacher.json"):
            continue
        promised.append(teacher)
        stages += [(dataset, teacher, _name(view)) for view in below.folders]
    listed = pool.map(lambda stage: list_commits(objects, stage_folder(*stage)), stages)
    commits = dict(zip(stages, listed, strict=True))
    has_views = _holds(listing, f"{dataset}/{VIEWS_JSON}") or _are_views_promised(objects, dataset, commits)
    return DatasetStages(dataset, tuple(promised), commits, has_views)


def _are_views_promised(objects: Objects, dataset: str, commits: dict[Stage, Committed]) -> bool:
    """Return whether views are promised that were not when the dataset was listed: whoever has targets of them knows.

    Raises:
        MissingObject: what says which views they are is lost.
    """
    augmented = [stage for stage, shards in commits.items() if stage[2] != PLAIN and shards]
    if not augmented:
        return False
    path = f"{dataset}/{VIEWS_JSON}"
    try:
        objects.get(path)
    except MissingObject:
        raise MissingObject(
            f"{objects.url}/{path} is not there, but what was built under its promise is",
            found=", ".join(stage_folder(*stage) for stage in augmented[:5]),
            do="restore it from a copy of the cache; "
            "or delete these folders, and cache build JOB.toml makes them again",
        ) from None
    return True


def _is_promised(objects: Objects, folder: str, listing: Listing, spec: str) -> bool:
    """Return whether a folder has its spec; one with neither spec nor data is none of ours, or is only being begun."""
    path = f"{folder}/{spec}"
    if _holds(listing, path):
        return True
    if not any(_holds_data(objects, below) for below in listing.folders):
        return False
    try:
        objects.get(path)  # again: a builder may have written it, and then data, since the folder was listed
    except MissingObject:
        raise MissingObject(
            f"{objects.url}/{path} is not there, but what was built under its promise is",
            do="restore it from a copy of the cache; "
            f"or delete {objects.url}/{folder}, and cache build JOB.toml makes it again",
        ) from None
    return True


def _holds_data(objects: Objects, folder: str) -> bool:
    """Return whether a folder is a plan or a stage with anything in it, or a teacher's; an empty one is left over."""
    if _name(folder) in (INGEST, PLAN):
        return any(True for _ in objects.walk(folder))
    listing = objects.list(folder)
    if list_commits(objects, folder) or _holds(listing, f"{folder}/teacher.json"):
        return True
    if any(GROUP_NAME.fullmatch(_name(info.path)) for info in listing.objects):
        return True
    groups = [below for below in listing.folders if GROUP_NAME.fullmatch(_name(below))]
    return any(True for group in groups for _ in objects.walk(group))


def _teacher_folders(listing: Listing) -> list[str]:
    """Return the folders of a dataset that may be teachers'."""
    return [folder for folder in listing.folders if _name(folder) not in (INGEST, PLAN)]


def _holds(listing: Listing, path: str) -> bool:
    return any(info.path == path for info in listing.objects)


def _name(folder: str) -> str:
    return folder.rsplit("/", 1)[-1]
