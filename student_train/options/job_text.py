"""The job of some students as TOML: every option written out, so that it says the same under other defaults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from student_train.options.sections import DataOptions, StudentOptions
from student_train.options.steps_taken import StepsTaken


def job_text(
    cache: str,
    runs: Path,
    data: DataOptions,
    students: Sequence[StudentOptions],
    taken: StepsTaken | None = None,
) -> str:
    """Return the TOML that `student train` reads as this very request, wherever the file lies.

    Args:
        cache: its folder or URL.
        runs: folder of the runs.
        data: which rows.
        students: one `[[student]]` each; what several have in common stands once, in `[defaults]`.
        taken: how their steps were taken, which the job then says instead of leaving it to the clock.
    """
    sections = [_student(options) for options in students]
    common = _common(sections)
    job = {
        "cache": cache if "://" in cache else str(Path(cache).absolute()),
        "runs": str(runs.absolute()),
        **data.model_dump(mode="json", exclude_none=True),
        **({} if taken is None else _together(taken)),
        **({"defaults": common} if common else {}),
        "student": [{key: value for key, value in section.items() if key not in common} for section in sections],
    }
    return ("" if taken is None else f"# {taken.told}\n") + tomli_w.dumps(job, indent=2)


def _together(taken: StepsTaken) -> dict[str, Any]:
    """Return the sections that have steps taken as they were."""
    how: dict[str, Any] = {
        "stacking": "always" if len(taken.stacks[0].students) > 1 else "never",
        "cuda_graphs": "always" if taken.recorded else "never",
    }
    # on a GPU they compute nothing
    return how | ({} if taken.threads is None else {"cluster": {"kind": "inline", "threads": taken.threads}})


def _common(sections: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the keys that have one value in all of several sections."""
    first, *others = sections
    return {k: v for k, v in first.items() if others and all(other.get(k) == v for other in others)}


def _student(options: StudentOptions) -> dict[str, Any]:
    """Return a `[[student]]`; what is off has no key, for TOML knows no null."""
    section = options.said(exclude_none=True)
    module, colon, function = (options.architecture or "").rpartition(":")
    if module.endswith(".py"):  # else it would be looked for beside the job
        section["architecture"] = f"{Path(module).absolute()}{colon}{function}"
    return section
