"""What a job asks for, stage by stage, whether or not the cache has heard of it: what `cache status JOB.toml` tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from storage.datasets import Source
from storage.format.specs import DatasetSpec
from storage.format.stages import Stage
from storage.views import PLAIN
from storage.views.options import ViewOptions
from teacher_cache.building.augmenting import views_of
from teacher_cache.teachers.options import TeacherOptions


def asked_stages(
    sources: Sequence[Source],
    teachers: Sequence[TeacherOptions],
    views: ViewOptions | None,
    promised: Mapping[str, DatasetSpec],
) -> list[Stage]:
    """Return the ingest of each dataset, and each view of each teacher that is run over it.

    Args:
        sources: of the job, one a dataset.
        teachers, views: likewise.
        promised: the datasets that the cache has; of another it is not known yet whether it has views.
    """
    stages: list[Stage] = []
    for source in sources:
        stages.append((source.name, None, PLAIN))
        known = promised.get(source.name)
        shown = [PLAIN] if known is None else views_of(views, known)
        stages += [
            (source.name, teacher.name, view)
            for teacher in teachers
            if teacher.datasets is None or source.name in teacher.datasets
            for view in shown
        ]
    return stages
