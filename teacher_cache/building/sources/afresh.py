"""What helps where a job asks for another dataset than its cache holds: a new cache, or less where little is lost."""

from __future__ import annotations

from storage.cache import Catalogue


def afresh(catalogue: Catalogue, dataset: str, job: str) -> str:
    """Return what to do to have a dataset built by a job that promises something else of it, as a command.

    Args:
        catalogue: of the dataset and all its teachers.
        dataset: its name.
        job: the job's file.
    """
    teachers = {teacher for (name, teacher, _), shards in catalogue.commits.items() if name == dataset and shards}
    delete = f"delete {catalogue.url}/{dataset}, of which no {{}}, and run the same command again"
    if not teachers:  # the promise was written, and then nothing could be built under it
        return delete.format("shard was built")
    beside = f"cache build {job} --as NAME    # a new cache beside it; this one stays as it is"
    return beside if teachers - {None} else f"{beside}\nor {delete.format('teacher was asked')}"
