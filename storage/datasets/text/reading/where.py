"""Which rows of a table are a dataset's own, where one table is several datasets: by what is written in a column."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from storage.datasets.base import Unreadable
from storage.errors import BadRequest, MissingSource


class Elsewhere(Unreadable):
    """A row of another dataset: in this one it is no row at all."""


class Where(NamedTuple):
    """What is written in the rows of a dataset.

    Attributes:
        wanted: (column, what is written there), all of which must be so.
        domain: the column by which a section of a job is several datasets; None: none is.
        domains: what may be written there.
    """

    wanted: tuple[tuple[str, str], ...] = ()
    domain: str | None = None
    domains: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Return the columns that are looked at."""
        return [column for column, _ in self.wanted]

    def check_columns(self, path: Path, schema: pa.Schema) -> list[str]:
        """Return the columns that are looked at. Raises MissingSource: a file has not got them."""
        for column in self.columns:
            if column not in schema.names:
                found, do = ", ".join(schema.names), "name the columns in the job: domain = …, where = { … }"
                raise MissingSource(f"{path} has no column {column}", found=found, do=do)
        return self.columns

    def check(self, value: Mapping[str, Any], written: Callable[[Any, str], str | None]) -> None:
        """Check that a row is of this dataset.

        Args:
            value: of its columns.
            written: what stands in a column as a text, None for nothing; may raise Unreadable.

        Raises:
            Elsewhere: it is of another.
            BadRequest: of none that the job names.
        """
        for column, wanted in self.wanted:
            found = written(value.get(column), column)
            if column == self.domain and found not in self.domains:
                raise BadRequest(
                    f"a row is of no dataset that the job makes of its {column}",
                    found="nothing there" if found is None else f"{column} = {found!r}",
                    expected=", ".join(map(repr, self.domains)),
                    do=f"name it in `domains` too; or, to leave rows out, write a [[dataset]] with "
                    f'where = {{ {column} = "…" }} for each that is wanted',
                )
            if found != wanted:
                raise Elsewhere(f"is of {column} {found!r}")


EVERYWHERE = Where()
