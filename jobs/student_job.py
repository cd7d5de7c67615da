"""What a student job may say. A section's own fields live in the room that uses it; here they are put together."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from jobs.files import refuse_twice
from storage.options import JobPath, Url
from student_train.options import DataOptions, FleetOptions, StudentOptions


class StudentJob(DataOptions, FleetOptions):
    """A whole `*.students.toml`; the fields of DataOptions and FleetOptions stand at its top.

    Attributes:
        cache: where rows are read.
        runs: folder of the runs, one below it for each student.
        defaults: lie beneath every `[[student]]`, its sweep among them.
        student: all of them, defaults and sweeps multiplied out; `read_job` does that (`jobs.sweep`).
    """

    cache: Url
    runs: JobPath
    defaults: dict[str, Any] = Field(default={})
    student: Annotated[list[StudentOptions], Field(min_length=1)]

    @model_validator(mode="after")
    def _names(self) -> Self:
        refuse_twice("student", [student.name for student in self.student])
        return self
