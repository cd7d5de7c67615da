"""A teacher as a term names it: one of all datasets, "big", or one of each, "code=coder,law=lawyer".

Losses, batches and records know a teacher by that name alone; which teacher's files it means is asked where a dataset's
shards are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping


def named_together(teachers: Mapping[str, str]) -> str:
    """Return the name of one teacher for each dataset, whatever their order.

    >>> named_together({"law": "lawyer", "code": "coder"})
    'code=coder,law=lawyer'
    """
    return ",".join(f"{dataset}={teacher}" for dataset, teacher in sorted(teachers.items()))


def teachers_named(name: str) -> dict[str, str]:
    """Return the teacher of each dataset that a name tells of; empty if it is one teacher's, of all datasets.

    >>> teachers_named("code=coder,law=lawyer"), teachers_named("big")
    ({'code': 'coder', 'law': 'lawyer'}, {})
    """
    return dict(each.split("=") for each in name.split(",")) if "=" in name else {}


def teacher_of(name: str, dataset: str) -> str | None:
    """Return the teacher of a dataset's rows; None if the name tells of other datasets only.

    >>> teacher_of("big", "law"), teacher_of("code=coder,law=lawyer", "law"), teacher_of("code=coder", "law")
    ('big', 'lawyer', None)
    """
    return teachers_named(name).get(dataset) if "=" in name else name
