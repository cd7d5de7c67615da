"""What a student job may say. A section's own fields live in the room that uses it; here they are put together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from jobs.files.cluster_options import StudentClusterOptions
from jobs.files.reading import refuse_twice
from storage.cache import Cache
from storage.errors import BadRequest
from storage.options import CacheUrl, JobPath
from student_train.options.sections import DataOptions, FleetOptions, StudentOptions

if TYPE_CHECKING:
    from student_train.feed.devices import Device
    from student_train.preparing.request import Request
    from student_train.stepping.parallel import Parallel


class TrainingJob(DataOptions, FleetOptions):
    """What a job may say of students, wherever their rows come from.

    Attributes:
        runs: folder of the runs, one below it for each student.
        defaults: lie beneath every `[[student]]`, its sweep among them.
        keep: folder of this machine in which shards are kept once they were read; never changes what is computed.
        keep_bytes: of all that is kept there.
        cluster: where groups of students are trained; decides nothing about what is computed.
        student: all of them, defaults and sweeps multiplied out; `read_job` does that (`jobs.files.sweep`).
    """

    runs: JobPath
    keep: JobPath | None = None
    keep_bytes: Annotated[int, Field(ge=1)] | None = None
    cluster: StudentClusterOptions = StudentClusterOptions()
    defaults: dict[str, Any] = Field(default={})
    student: Annotated[list[StudentOptions], Field(min_length=1)]

    @model_validator(mode="after")
    def _names(self) -> Self:
        refuse_twice("student", [student.name for student in self.student])
        return self

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if (self.keep is None) != (self.keep_bytes is None):
            raise ValueError("give `keep`, a folder of this machine, and `keep_bytes`, what it may hold, together")
        return self

    def check_kept_outside(self, cache: str) -> None:
        """Raise ValueError if shards of a cache would be kept in that cache itself."""
        if self.keep is not None and "://" not in cache and self.keep.is_relative_to(cache):
            raise ValueError(f"`keep` lies in the cache itself ({self.keep}); name a folder on a disk of this machine")


class StudentJob(TrainingJob):
    """A whole `*.students.toml`; the fields of DataOptions and FleetOptions stand at its top.

    Attributes:
        cache: where rows are read.
    """

    cache: CacheUrl

    @model_validator(mode="after")
    def _kept_elsewhere(self) -> Self:
        self.check_kept_outside(self.cache)
        return self

    def request(self, device: Device, parallel: Parallel) -> Request:
        """Return what is asked of `student_train`.

        Args:
            device: where.
            parallel: this process among others that train the same student.

        Raises:
            BadRequest: the cache cannot be opened; or there are others, and a cluster is asked for besides.
        """
        from student_train.preparing.request import Request

        if parallel.size > 1 and self.cluster.kind != "inline":
            raise BadRequest(
                "one student on several processes and groups of students on a cluster exclude each other",
                found=f'{parallel.size} processes of torchrun, and kind = "{self.cluster.kind}" in [cluster]',
                do='kind = "inline", or student train without torchrun',
            )
        cache = Cache.open(self.cache)
        if self.keep is not None and self.keep_bytes is not None:
            cache = cache.kept_in(self.keep, self.keep_bytes)
        return Request(
            cache=cache,
            runs=self.runs,
            data=DataOptions(**self.model_dump(include=set(DataOptions.model_fields))),
            students=tuple(self.student),
            device=device,
            fleet=FleetOptions(**self.model_dump(include=set(FleetOptions.model_fields))),
            parallel=parallel,
        )
