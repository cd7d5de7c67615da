"""What a cache job may say. A section's own fields live in the room that uses it; here they are put together."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from jobs.files.cluster_options import ClusterOptions
from jobs.files.reading import refuse_twice
from storage.datasets import AnySource
from storage.options import Options, Url
from storage.views.options import ViewOptions
from teacher_cache.pilot.ladder import FidelityOptions
from teacher_cache.teachers.options import TeacherOptions


class CacheJob(Options):
    """A whole `*.cache.toml`.

    Attributes:
        cache: where the cache is, a folder or an object store's prefix.
        dataset: sources of samples, one `[[dataset]]` each.
        teacher: one `[[teacher]]` each; a cache without teachers is enough to train on labels.
        views: augmentation; without it, teachers are asked about plain inputs.
        fidelity: how much `cache plan` may recommend to lose; decides nothing about what is built.
        cluster: where tasks run; decides nothing about what is computed.
    """

    cache: Url
    dataset: Annotated[list[AnySource], Field(min_length=1)]
    teacher: list[TeacherOptions] = Field(default=[])
    views: ViewOptions | None = None
    fidelity: FidelityOptions = FidelityOptions()
    cluster: ClusterOptions = ClusterOptions()

    @model_validator(mode="after")
    def _names(self) -> Self:
        datasets = [source.name for source in self.dataset]
        refuse_twice("dataset", datasets)
        refuse_twice("teacher", [teacher.name for teacher in self.teacher])
        for teacher in self.teacher:
            if unknown := sorted(set(teacher.datasets or ()) - set(datasets)):
                there = ", ".join(datasets)
                raise ValueError(
                    f"teacher {teacher.name} names unknown datasets {', '.join(unknown)}; there are {there}"
                )
        if self.views is not None and (unknown := sorted(set(self.views.datasets or ()) - set(datasets))):
            raise ValueError(f"views names unknown datasets {', '.join(unknown)}; there are {', '.join(datasets)}")
        return self
