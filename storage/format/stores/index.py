"""What a published cache holds, as one object: `index.parquet`, for servers that can list nothing.

It has every object but those of Zarr groups, which commits name, each with its size, its digest, and the version under
which it was listed where it was published: that which the ledger knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import polars as pl

from storage.errors import CorruptObject
from storage.format.sealed import seal, unseal
from storage.format.stores.base import Listing, ObjectInfo

INDEX = "index.parquet"
SCHEMA: dict[str, Any] = {"path": pl.String, "bytes": pl.Int64, "version": pl.String, "digest": pl.String}


class Published(NamedTuple):
    """One object as it was published."""

    path: str
    size_bytes: int
    version: str
    digest: str


class Index:
    """The objects of a published cache, and where they lie among each other."""

    def __init__(self, table: pl.DataFrame, about: dict[str, Any]):
        self._table = table.sort("path")
        self.about = about

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Published]:
        return map(Published._make, self._table.iter_rows())

    @classmethod
    def of(cls, objects: Sequence[Published], about: dict[str, Any]) -> Index:
        """Return the index of some objects."""
        return cls(pl.DataFrame(objects, schema=SCHEMA, orient="row"), about)

    @classmethod
    def from_parquet(cls, data: bytes, url: str) -> Index:
        """Return the index in `data`. Raises CorruptObject: anything in it is not as it was written."""
        try:
            about, table = unseal(data)
            frame = pl.DataFrame(pl.from_arrow(table)).select(pl.col(name).cast(SCHEMA[name]) for name in SCHEMA)
            if sum(frame.null_count().row(0)) or frame["path"].is_duplicated().any() or (frame["bytes"] < 0).any():
                raise ValueError("an object twice, or without its size")
        except (ValueError, pl.exceptions.PolarsError) as error:
            raise CorruptObject(
                f"{url}/{INDEX} is not a whole index", found=str(error), do="whoever publishes the cache: cache publish"
            ) from None
        return cls(frame, about)

    def to_parquet(self) -> bytes:
        """Return the index's bytes."""
        return seal(self._table.to_arrow(), self.about)

    def find(self, path: str) -> Published | None:
        """Return what was published under a path, if anything."""
        at = self._table["path"].search_sorted(path)
        if at == len(self) or self._table["path"][at] != path:
            return None
        return Published._make(self._table.row(at))

    def list(self, folder: str) -> Listing:
        """Return what lies directly in a folder."""
        below = self._below(folder)
        rest = below["path"].str.slice(len(folder) + bool(folder))
        deeper = rest.str.contains("/", literal=True)
        names = rest.filter(deeper).str.split("/").list.first().unique().sort()
        folders = [f"{folder}/{name}".lstrip("/") for name in names]
        return Listing([_info(each) for each in map(Published._make, below.filter(~deeper).iter_rows())], folders)

    def versions(self, folder: str, names: re.Pattern[str]) -> Iterator[tuple[str, str]]:
        """Yield name and version of the objects directly in a folder whose whole names match."""
        for path, version in self._below(folder).select("path", "version").iter_rows():
            if names.fullmatch(name := path[len(folder) + bool(folder) :]):
                yield name, version

    def walk(self, folder: str) -> Iterator[ObjectInfo]:
        """Yield every object below a folder."""
        return (_info(Published._make(row)) for row in self._below(folder).iter_rows())

    def _below(self, folder: str) -> pl.DataFrame:
        return self._table.filter(pl.col("path").str.starts_with(f"{folder}/")) if folder else self._table


def _info(published: Published) -> ObjectInfo:
    return ObjectInfo(published.path, published.size_bytes, published.version, 0.0)  # dated where nobody deletes
