"""The job of some students as TOML: every option written out, so that it says the same under other defaults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from student_train.options.sections import DataOptions, StudentOptions


def job_text(cache: str, runs: Path, data: DataOptions, students: Sequence[StudentOptions]) -> str:
    """Return the TOML that `student train` reads as this very request, wherever the file lies.

    Args:
        cache: its folder or URL.
        runs: folder of the runs.
        data: which rows.
        students: one `[[student]]` each.
    """
    job = {
        "cache": cache if "://" in cache else str(Path(cache).absolute()),
        "runs": str(runs.absolute()),
        **data.model_dump(mode="json", exclude_none=True),
        "student": [_student(options) for options in students],
    }
    return tomli_w.dumps(job, indent=2)


def _student(options: StudentOptions) -> dict[str, Any]:
    """Return a `[[student]]`; what is off has no key, for TOML knows no null."""
    section = options.model_dump(mode="json", exclude_none=True)
    module, colon, function = options.architecture.rpartition(":")
    if module.endswith(".py"):  # else it would be looked for beside the job
        section["architecture"] = f"{Path(module).absolute()}{colon}{function}"
    return section
