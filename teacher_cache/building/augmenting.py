"""Views of a dataset, as a job wants them: whether, which ones, and what is promised of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from storage.cache import Catalogue
from storage.errors import BadRequest
from storage.format.rows import RowPlan
from storage.format.specs import DatasetSpec, TeacherSpec, ViewsSpec, check_promise
from storage.format.stages import VIEWS_JSON
from storage.inputs import inputs_of
from storage.views import PLAIN, view_name
from storage.views.check import check_decoded_for, own_size
from storage.views.options import RandomResizedCrop, ViewOptions, unfit
from teacher_cache.building.prepared import PreparedDataset, Stage
from teacher_cache.building.sources.growth import in_no_order


def is_augmented(options: ViewOptions, dataset: DatasetSpec) -> bool:
    """Return whether a job wants views of a dataset: it names it, or names none and this one holds images."""
    if options.datasets is not None:
        return dataset.name in options.datasets
    return inputs_of(dataset).has_views(dataset.input_shape)


def views_of(options: ViewOptions | None, dataset: DatasetSpec) -> list[str]:
    """Return the views about which teachers are asked."""
    if options is None or not is_augmented(options, dataset):
        return [PLAIN]
    return [*([PLAIN] if options.plain else []), *map(view_name, range(options.count))]


def promise_views(catalogue: Catalogue | None, options: ViewOptions, dataset: DatasetSpec, job: str) -> ViewsSpec:
    """Return the promise of a dataset's views.

    Raises:
        BadRequest: its inputs cannot be augmented so.
        StaleCache: the cache has views of other transforms or another seed.
    """
    if (reason := unfit(options.transforms, dataset.input_shape, dataset.input_dtype)) is not None:
        raise BadRequest(
            f"dataset {dataset.name} cannot be augmented: {reason}",
            found=_inputs(dataset),
            expected="images, uint8 (channels, height, width), which every transform fits",
            do="name in `datasets` of [views] those that are to be augmented, or change its transforms",
        )
    if dataset.encoded and any(isinstance(step, RandomResizedCrop) for step in options.transforms[1:]):
        raise BadRequest(
            f"a crop of dataset {dataset.name} is taken of its whole pictures, and so before all else",
            found=f"transforms {', '.join(step.kind for step in options.transforms)}",
            expected='random_resized_crop first, where inputs = "encoded"',
            do="put it first in transforms of [views]",
        )
    spec = ViewsSpec(name=dataset.name, seed=options.seed, transforms=tuple(options.transforms))
    if catalogue is not None and (found := catalogue.views.get(dataset.name)) is not None:
        check_promise(catalogue.url, f"{dataset.name}/{VIEWS_JSON}", found, spec, job)
    return spec


def check_own_size(dataset: DatasetSpec, teacher: TeacherSpec, views: ViewsSpec | None) -> None:
    """Raise BadRequest if a teacher, for whom pictures are decoded at another size, would be shown something else."""
    if (own := own_size(dataset, teacher)) is not None:
        check_decoded_for(f"teacher {teacher.name}", dataset, own, views, "[[teacher]]")


def planned_for_mixing(dataset: PreparedDataset) -> PreparedDataset:
    """Return a dataset whose new rows lie in no order, if its views mix rows: partners come of the shard (ADR 0018)."""
    if dataset.segment is None or dataset.views is None or not dataset.views.mixes:
        return dataset
    segment = in_no_order(dataset.segment, dataset.source.runs)
    return replace(dataset, segment=segment, rows=RowPlan((*dataset.rows.segments[:-1], segment)))


def check_augmented(stages: Sequence[Stage], job: str) -> None:
    """Raise BadRequest unless a dataset can be augmented at all."""
    if all(stage.dataset.views is None for stage in stages):
        raise BadRequest(
            f"{job} asks for views, and no dataset can be augmented",
            found="\n".join(f"{s.dataset.spec.name}: {_inputs(s.dataset.spec)}" for s in stages if s.teacher is None),
            expected="images, uint8 (channels, height, width)",
            do="drop [views]",
        )


def _inputs(dataset: DatasetSpec) -> str:
    return f"{dataset.input_dtype} {dataset.input_shape}"
