"""What a build will do: a job compared with what its cache holds. Reads only, and loads no teacher."""

from __future__ import annotations

from dataclasses import replace

from storage.cache import TOKENIZER_JSON, Cache, Catalogue
from storage.encodings.naming import as_toml
from storage.errors import BadRequest, StaleCache
from storage.format.specs import FORMAT_VERSION, LABELLED_POSITIONS, DatasetSpec, TeacherSpec, check_promise
from storage.tasks import task_of
from storage.views import PLAIN
from teacher_cache.building.augmenting import (
    check_augmented,
    check_own_size,
    is_augmented,
    planned_for_mixing,
    promise_views,
    views_of,
)
from teacher_cache.building.prepared import BuildRequest, PreparedBuild, PreparedDataset, Stage
from teacher_cache.building.sources.dataset import prepare_dataset
from teacher_cache.building.sources.growth import missing
from teacher_cache.teachers.classes import check_classes
from teacher_cache.teachers.options import TeacherOptions, check_tokens, num_scores


def prepare_build(request: BuildRequest) -> PreparedBuild:
    """Return what a build would do. Reads only; loads no teacher.

    Raises:
        StaleCache: the cache was built from another dataset, teacher, preprocessing or precision.
        MissingSource: a dataset or its weights are not there.
        BadRequest: the cache's folder holds something else.
    """
    cache = Cache.find(request.cache)
    if cache is None:
        return _survey(request, None)
    return _survey(request, cache.catalogue([source.name for source in request.sources], with_plans=True))


def prepare_afresh(request: BuildRequest) -> PreparedBuild:
    """Return what a build would do if nothing were built yet; whatever lies at the cache's address is not looked at.

    Raises:
        MissingSource, BadRequest: as `prepare_build`.
    """
    return _survey(request, None)


def _survey(request: BuildRequest, catalogue: Catalogue | None) -> PreparedBuild:
    """Return each dataset as this build will leave it, and every stage of it, against what the cache holds."""
    stages: list[Stage] = []
    above: dict[str, PreparedDataset] = {}
    for source in request.sources:
        asked = [each for each in request.teachers if each.datasets is None or source.name in each.datasets]
        encodings = [teacher.encoding for teacher in asked]
        dataset = prepare_dataset(catalogue, source, request.job, above, encodings)
        if request.views is not None and is_augmented(request.views, dataset.spec):
            views = promise_views(catalogue, request.views, dataset.spec, request.job)
            dataset = planned_for_mixing(replace(dataset, views=views))
        above[source.name] = dataset
        stages.append(_stage(catalogue, dataset, None, None, request.part))
        for teacher in asked:
            spec = _promise_teacher(catalogue, teacher, dataset, request)
            check_own_size(dataset.spec, spec, dataset.views)
            stages += [
                _stage(catalogue, dataset, teacher, spec, request.part, view)
                for view in views_of(request.views, dataset.spec)
            ]
    if request.views is not None:
        check_augmented(stages, request.job)
    stages.sort(key=lambda stage: stage.teacher is not None)  # every dataset first, then teachers; the sort is stable
    return PreparedBuild(request, tuple(stages), catalogue)


def _promise_teacher(
    catalogue: Catalogue | None, teacher: TeacherOptions, prepared: PreparedDataset, request: BuildRequest
) -> TeacherSpec:
    """Return the promise of a teacher's targets of a dataset, which the cache's own must not contradict."""
    dataset = prepared.spec
    known = catalogue is not None and dataset.name in catalogue.datasets
    # Where the first build will put a tokenizer that is learned, for messages.
    unbuilt = None if known else f"{request.cache}/{dataset.name}/{TOKENIZER_JSON}"
    check_tokens(teacher, dataset, prepared.tokenizer_file, unbuilt)
    check_classes(teacher, dataset)
    if not teacher.encoding.soft and catalogue is not None and catalogue.about.format < FORMAT_VERSION:
        raise BadRequest(
            f"{catalogue.url} is a cache of format {catalogue.about.format}, which has no teacher of features alone",
            found=f"{as_toml(teacher.encoding)} of teacher {teacher.name}",
            do=f"cache build {request.job} --as NAME    # a new cache beside it; or another `encoding`",
        )
    found = None if catalogue is None else catalogue.teachers.get((dataset.name, teacher.name))
    # targets go on as they were begun
    spec = teacher.promise(num_scores(teacher, dataset), _uses(catalogue, dataset) if found is None else found.uses)
    if catalogue is not None and found is not None:
        try:
            check_promise(catalogue.url, f"{dataset.name}/{teacher.name}/teacher.json", found, spec, request.job)
        except StaleCache as error:
            do = _what_to_do(catalogue, dataset.name, teacher.name, error.do)
            raise StaleCache(error.what, error.found, error.expected, do) from None
    return spec


def _uses(catalogue: Catalogue | None, dataset: DatasetSpec) -> tuple[str, ...]:
    """Return how the targets of a new teacher are laid down: of labelled sites alone, where a row has others."""
    of_old = catalogue is not None and catalogue.about.format < FORMAT_VERSION  # which has no place for a name
    return () if of_old or task_of(dataset).unlabelled_sites else (LABELLED_POSITIONS,)


def _what_to_do(catalogue: Catalogue, dataset: str, teacher: str, do: str | None) -> str:
    """Return how to go on with another teacher than the cache was promised under this name."""
    if any(shards for stage, shards in catalogue.commits.items() if stage[:2] == (dataset, teacher)):
        return f"{do}\nor another `name` in [[teacher]]: only it is asked, and the rows are not read again"
    # All its shards were dropped, or an earlier version wrote the promise before the teacher had answered.
    return f"delete {catalogue.url}/{dataset}/{teacher}, of which no shard was built, and run the same command again"


def _stage(
    catalogue: Catalogue | None,
    dataset: PreparedDataset,
    teacher: TeacherOptions | None,
    spec: TeacherSpec | None,
    part: tuple[int, int],
    view: str = PLAIN,
) -> Stage:
    name = None if teacher is None else teacher.name
    committed = set() if catalogue is None else catalogue.committed(dataset.spec.name, name, view)
    committed -= dataset.mended.keys()  # shards whose unreadable samples are mended are made anew, in every stage
    shards = dataset.rows.shards()
    return Stage(
        dataset,
        teacher,
        spec,
        missing(shards, set(), part),
        missing(shards, committed, part),
        view,
    )
