"""What a cache job may say. A section's own fields live in the room that uses it; here they are put together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from jobs.files.cluster_options import BuildClusterOptions
from jobs.files.reading import refuse_twice
from storage.cache.copies.publishing import check_notice
from storage.datasets import AnySource
from storage.errors import BadRequest
from storage.options import CacheUrl, Options
from storage.views.options import ViewOptions
from teacher_cache.pilot.ladder import FidelityOptions
from teacher_cache.teachers.options import TeacherOptions

if TYPE_CHECKING:
    from teacher_cache.building.prepared import BuildRequest


class CacheJob(Options):
    """A whole `*.cache.toml`.

    Attributes:
        cache: where the cache is, a folder or an object store's prefix.
        notice: a text that says what may be done with it; written into the cache, for good.
        dataset: sources of samples, one `[[dataset]]` each.
        teacher: one `[[teacher]]` each; a cache without teachers is enough to train on labels.
        views: augmentation; without it, teachers are asked about plain inputs.
        fidelity: how much `cache plan` may recommend to lose; decides nothing about what is built.
        cluster: where work runs; decides nothing about what is computed.
    """

    cache: CacheUrl
    notice: Annotated[str, Field(min_length=1), AfterValidator(check_notice)] | None = None
    dataset: Annotated[list[AnySource], Field(min_length=1)]
    teacher: list[TeacherOptions] = Field(default=[])
    views: ViewOptions | None = None
    fidelity: FidelityOptions = FidelityOptions()
    cluster: BuildClusterOptions = BuildClusterOptions()

    @property
    def sources(self) -> tuple[AnySource, ...]:
        """The sources of its datasets, one each: a section with a `domain` stands for several."""
        return tuple(source for section in self.dataset for source in section.by_domain())

    @model_validator(mode="after")
    def _names(self) -> Self:
        datasets = [source.name for source in self.sources]
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

    def request(
        self,
        job: Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        beside: str | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> BuildRequest:
        """Return what is asked of `teacher_cache`.

        Args:
            job: where the file is, for messages.
            device: of teachers: auto, cpu, cuda.
            threads: of torch, per worker; by default as the job's cluster has it.
            beside: the name of another cache, in the folder of the job's.
            part: (i, n), this process does number i of n.

        Raises:
            BadRequest: `beside` is a path.
        """
        from teacher_cache.building.prepared import BuildRequest

        return BuildRequest(
            cache=self.cache if beside is None else _beside(self.cache, beside),
            job=str(job),
            notice=self.notice,
            sources=self.sources,
            teachers=tuple(self.teacher),
            views=self.views,
            part=part,
            device=device,
            threads=threads or self.cluster.num_threads,
        )


def _beside(cache: str, name: str) -> str:
    """Return the address of a cache of this name beside another. Raises BadRequest."""
    if "/" in name or not name.strip("."):
        raise BadRequest(f"--as {name} is not a name", expected="the name of a cache beside the job's, not a path")
    return f"{cache.rpartition('/')[0]}/{name}"
