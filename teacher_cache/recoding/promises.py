"""What a richer cache promises, compared with what a job asks of a smaller one.

Neither the sources nor the teachers' files need exist; where they do, a job that is not the richer cache's is noticed.
"""

from __future__ import annotations

from collections.abc import Sequence

from storage.cache import Catalogue
from storage.datasets import Source
from storage.digests import differences
from storage.encodings.naming import as_toml
from storage.errors import BadRequest, MissingCapability, NotInCache, StaleCache
from storage.format.specs import DatasetSpec, TeacherSpec, ViewsSpec
from storage.format.stages import VIEWS_JSON
from storage.views import PLAIN
from teacher_cache.building.augmenting import views_of
from teacher_cache.building.prepared import BuildRequest
from teacher_cache.teachers.options import TeacherOptions
from teacher_cache.work.conversions import refusal


def check_dataset(source: Catalogue, dataset: DatasetSpec, options: Source, job: str) -> None:
    """Raise StaleCache if a job's dataset is another than the richer cache's, as far as options tell."""
    try:
        content = options.as_promised(dataset.source).content()
    except BadRequest:  # a factory's code, which need not be there
        content = Source.content(options)
    known = {name: dataset.source.get(name) for name in content}
    if options.encoded != dataset.encoded:  # pixels go unsaid
        known["inputs"], content["inputs"] = (of.get("inputs", "pixels") for of in (dataset.source, content))
    if fields := differences(known, content):
        raise _stale(source, f"{dataset.name}/dataset.json", fields, job)


def recoded_spec(source: Catalogue, dataset: DatasetSpec, options: TeacherOptions, job: str) -> TeacherSpec:
    """Return what the smaller cache promises of a teacher: the richer one's promise, stored otherwise.

    Raises:
        StaleCache: the job's teacher is another one, as far as the job and what is left of its files tell.
        NotInCache: a feature is not there.
        MissingCapability: what is stored is not enough for the encoding that is wanted.
    """
    found = source.teacher(dataset.name, options.name)
    options.encoding.check(found.num_classes)
    try:
        known, told = found.model, options.promise(found.num_classes).model
    except BadRequest:  # its files need not be there
        told = options.told()
        known = {name: found.model.get(name) for name in told}
    if fields := differences(known, told):
        fields = [(f"model.{name}", was, now) for name, was, now in fields]
        raise _stale(source, f"{dataset.name}/{options.name}/teacher.json", fields, job)
    _check_features(source, dataset.name, found, options, job)
    if (lacking := refusal(found.encoding, options.encoding)) is not None:
        raise MissingCapability(
            f"{source.url} holds too little of {dataset.name}/{options.name} for this job",
            found=as_toml(found.encoding),
            expected=f"{lacking}, for {as_toml(options.encoding)}",
            do=f"cache build {job}    # asks the teacher; or a smaller encoding in the job",
        )
    uses = options.promised_uses(found.uses)
    return found.model_copy(update={"encoding": options.encoding, "features": options.features, "uses": uses})


def _check_features(source: Catalogue, dataset: str, found: TeacherSpec, options: TeacherOptions, job: str) -> None:
    for name, feature in options.features.items():
        if found.features.get(name) != feature:
            there = [f"{key} = {value.model_dump_json()}" for key, value in found.features.items()]
            raise NotInCache(
                f"{source.url} has no such feature {name} of {dataset}/{options.name}",
                found="\n".join(there) or "no features",
                expected=feature.model_dump_json(),
                do=f"drop it from the job, or cache build {job}",
            )


def wanted_views(source: Catalogue, dataset: DatasetSpec, teacher: TeacherOptions, request: BuildRequest) -> list[str]:
    """Return the views that a job asks for, all of which the richer cache has. Raises NotInCache, StaleCache."""
    wanted, there = views_of(request.views, dataset), source.view_names(dataset.name, teacher.name)
    if request.views is not None and wanted != [PLAIN]:
        asked = ViewsSpec(name=dataset.name, seed=request.views.seed, transforms=tuple(request.views.transforms))
        promised = source.views.get(dataset.name)
        was = {} if promised is None else promised.model_dump(mode="json")
        if fields := differences(was, asked.model_dump(mode="json")):
            raise _stale(source, f"{dataset.name}/{VIEWS_JSON}", fields, request.job)
    if absent := [view for view in wanted if view not in there]:
        raise NotInCache(
            f"{source.url} lacks views of {dataset.name}/{teacher.name}",
            found=", ".join(there) or "no shard of it",
            expected=", ".join([*absent[:5], *["…"] * (len(absent) > 5)]),
            do=f"ask for fewer in [views], or cache build {request.job}",
        )
    return wanted


def _stale(source: Catalogue, path: str, fields: Sequence[tuple[str, object, object]], job: str) -> StaleCache:
    return StaleCache(
        f"{source.url} was built by another job: {path} differs in {', '.join(name for name, _, _ in fields)}",
        found="\n".join(f"{name} = {was!r}" for name, was, _ in fields),
        expected="\n".join(f"{name} = {now!r}" for name, _, now in fields) + f"  ({job})",
        do="recode by a job that differs in encodings, features and `cache` only",
    )
