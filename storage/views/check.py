"""Whether a student would be shown what a teacher was shown, and if not, what has changed in between.

Shapes: S rows of a shard, B readable ones.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.digests import sample_keys
from storage.errors import MissingObject, StaleCache

if TYPE_CHECKING:
    from storage.format.shards import ShardKey
    from storage.format.specs import ViewsSpec

LIBRARIES = ("numpy", "stillroom", "torch")  # whose code makes a view


class Readable(NamedTuple):
    """What views are a function of, besides pixels, for the readable rows of a shard.

    Attributes:
        mask_S: which rows are readable, bool.
        keys_B: int64, of the samples.
        splits_B: names.
    """

    mask_S: NDArray[np.bool_]
    keys_B: NDArray[np.int64]
    splits_B: NDArray[Any]


def readable_rows(table: pa.Table) -> Readable:
    """Return the readable rows of an ingest's table."""
    mask_S = table["error"].is_null().to_numpy(zero_copy_only=False)  # Arrow keeps booleans as bits
    kept = table.filter(pa.array(mask_S))
    splits = np.array(kept["split"].to_pylist(), dtype=str)
    return Readable(mask_S, sample_keys(kept["sample_id"].to_pylist()), splits)


def libraries() -> dict[str, str]:
    """Return the versions of all that makes a view, for a commit."""
    return {name: version(name) for name in LIBRARIES}


def check_augmented(
    url: str,
    key: ShardKey,
    spec: ViewsSpec | None,
    ingest: pa.Table,
    about: dict[str, Any],
    inputs_S: NDArray[np.uint8],
) -> None:
    """Check that the first readable rows of a shard become what the teacher was shown.

    Args:
        url: of the cache, for messages.
        key: of the targets.
        spec: what the cache promises of its views.
        ingest: the table of the shard.
        about: what the commit of the targets says.
        inputs_S: as stored; they are those that the targets were made from.

    Raises:
        StaleCache: they do not.
        MissingObject: the cache has lost its promise.
    """
    if spec is None:
        raise MissingObject(f"{url} holds {key}, but not what says which view that is", expected="views.json")
    if spec.fingerprint != about["views"]:
        raise StaleCache(
            f"{url}: {key} was made by other transform options than views.json promises",
            found=f"views fingerprint {about['views']}",
            expected=f"views fingerprint {spec.fingerprint}",
            do=f"cache verify {url} --repair, then cache build",
        )
    rows = readable_rows(ingest)
    found = spec.view(key.view).fingerprint(inputs_S[rows.mask_S], rows.keys_B, rows.splits_B)
    if found == about["view_fingerprint"]:
        return
    was, now = about.get("libraries", {}), libraries()  # earlier commits do not say
    changed = [name for name in LIBRARIES if was.get(name) != now[name]]
    raise StaleCache(
        f"{url}: {key} shows other images than the teacher saw; inputs and transform options are the same, so "
        + (
            f"the libraries make the difference: {', '.join(changed)}"
            if changed
            else "a transform has changed its code"
        ),
        found=f"view fingerprint {found}" + "".join(f"\n{name} {now[name]}" for name in changed),
        expected=f"view fingerprint {about['view_fingerprint']}"
        + "".join(f"\n{name} {was.get(name)}" for name in changed),
        do="train with what the cache was built with, or cache build JOB.toml --as NAME",
    )
