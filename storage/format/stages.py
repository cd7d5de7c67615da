"""Which datasets, teachers and stages a cache has, from listings alone, and that each has its promise.

A spec is written before anything that it speaks of and is never deleted. So a folder with data but without its spec has
lost it: what its rows mean is not known any more, and no build may guess it.
"""

from __future__ import annotations

from storage.errors import MissingObject
from storage.format.objects import Objects
from storage.format.shards import GROUP_NAME, INGEST, PLAN, list_commits, stage_folder
from storage.views import PLAIN

Stage = tuple[str, str | None, str]
VIEWS_JSON = "views.json"


def list_datasets(objects: Objects) -> list[str]:
    """Return the datasets of a cache, sorted. Raises MissingObject if one has lost its spec."""
    return [folder for folder in objects.list().folders if _is_promised(objects, folder, "dataset.json")]


def list_teachers(objects: Objects, dataset: str) -> list[str]:
    """Return the teachers of a dataset, sorted. Raises MissingObject if one has lost its spec."""
    folders = [folder for folder in objects.list(dataset).folders if _name(folder) not in (INGEST, PLAN)]
    return [_name(folder) for folder in folders if _is_promised(objects, folder, "teacher.json")]


def list_stages(objects: Objects) -> list[Stage]:
    """Return (dataset, teacher, view) of every stage of a cache; the teacher is None for an ingest."""
    return [stage for dataset in list_datasets(objects) for stage in stages_of(objects, dataset)]


def stages_of(objects: Objects, dataset: str) -> list[Stage]:
    """Return the stages of one dataset, its ingest first."""
    stages: list[Stage] = [(dataset, None, PLAIN)]
    for teacher in list_teachers(objects, dataset):
        stages += [(dataset, teacher, _name(view)) for view in objects.list(f"{dataset}/{teacher}").folders]
    _check_views(objects, stages)
    return stages


def _check_views(objects: Objects, stages: list[Stage]) -> None:
    """Raise MissingObject if a dataset holds targets of views and has lost what says which views they are."""
    augmented = [stage for stage in stages if stage[2] != PLAIN and list_commits(objects, stage_folder(*stage))]
    if not augmented:
        return
    path = f"{augmented[0][0]}/{VIEWS_JSON}"
    try:
        objects.get(path)
    except MissingObject:
        raise MissingObject(
            f"{objects.url}/{path} is not there, but what was built under its promise is",
            found=", ".join(stage_folder(*stage) for stage in augmented[:5]),
            do="restore it from a copy of the cache; "
            "or delete these folders, and cache build JOB.toml makes them again",
        ) from None


def _is_promised(objects: Objects, folder: str, spec: str) -> bool:
    """Return whether a folder has its spec; one with neither spec nor data is none of ours, or is only being begun."""
    path, listing = f"{folder}/{spec}", objects.list(folder)
    if path in {info.path for info in listing.objects}:
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
    if list_commits(objects, folder) or f"{folder}/teacher.json" in {info.path for info in listing.objects}:
        return True
    groups = [below for below in listing.folders if GROUP_NAME.fullmatch(_name(below))]
    return any(True for group in groups for _ in objects.walk(group))


def _name(folder: str) -> str:
    return folder.rsplit("/", 1)[-1]
