"""Whether a student would be shown what a teacher was shown, and if not, what has changed in between.

Shapes: S rows of a shard, B readable ones.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.digests import sample_keys
from storage.errors import BadRequest, MissingObject, StaleCache
from storage.inputs import Stored, inputs_of
from storage.inputs.encoded import OwnSize, decoders
from storage.inputs.pixels import sides_of
from storage.views import FINGERPRINTED_ROWS, PLAIN, view_fingerprint

if TYPE_CHECKING:
    from torch import Tensor

    from storage.format.shards import ShardKey
    from storage.format.specs import DatasetSpec, TeacherSpec, ViewsSpec
    from storage.views.shown import View

LIBRARIES = ("numpy", "stillroom", "torch")  # whose code makes a view


class Seen(NamedTuple):
    """Rows of a shard between disk and a model.

    Attributes:
        dataset: what they are made of.
        stored_S: all of them, as stored.
        own: of a teacher that is shown pictures at another size than the dataset's, which.
    """

    dataset: DatasetSpec
    stored_S: Stored
    own: OwnSize | None = None

    def plain(self, own: OwnSize | None = None) -> str:
        """Return the fingerprint of the first rows without a view, at the dataset's size or another."""
        return view_fingerprint(inputs_of(self.dataset).first(self.stored_S, FINGERPRINTED_ROWS, own))

    def begun(self, view: View, readable: Readable, places_B: NDArray[np.integer]) -> Tensor:
        """Return some of the readable rows, by their numbers among them, as `left` of a view begins with them."""
        rows_B = np.flatnonzero(readable.mask_S)[places_B]
        return inputs_of(self.dataset).begun(self.stored_S, rows_B, view, readable.keys_B[places_B], self.own)


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


def begin_rows(seen: Seen, readable: Readable, view: str, views: ViewsSpec | None) -> Tensor:
    """Return all readable rows of a shard, (B, …), as what is left of a view begins with them; of none, as shown."""
    if views is None or view == PLAIN:
        return inputs_of(seen.dataset).shown(seen.stored_S, readable.mask_S, seen.own)
    return seen.begun(views.view(view), readable, np.arange(len(readable.keys_B)))


def show_rows(seen: Seen, readable: Readable, view: str, views: ViewsSpec | None) -> Tensor:
    """Return what a model is shown of all readable rows of a shard, (B, …), on the host."""
    begun_B = begin_rows(seen, readable, view, views)
    if views is None or view == PLAIN:
        return begun_B
    left = inputs_of(seen.dataset).left(views.view(view))
    return left.show_shard(begun_B, readable.keys_B, readable.splits_B)


def shown_facts(seen: Seen, readable: Readable, view: str, views: ViewsSpec | None) -> dict[str, Any]:
    """Return what the commit of targets is to say of what the teacher was shown, made again from the first rows."""
    plain, made_by = seen.plain(), {"libraries": made} if (made := libraries(seen.dataset, view)) else {}
    if view == PLAIN or views is None:
        if seen.own is None:
            return {"view_fingerprint": plain, **made_by}
        return {"inputs_fingerprint": plain, "view_fingerprint": seen.plain(seen.own), **made_by}
    left = inputs_of(seen.dataset).left(views.view(view))
    begin = partial(seen.begun, views.view(view), readable)
    shown = left.fingerprint(begin, readable.keys_B, readable.splits_B)
    return {"inputs_fingerprint": plain, "view_fingerprint": shown, "views": views.fingerprint, **made_by}


def libraries(dataset: DatasetSpec, view: str) -> dict[str, str]:
    """Return the versions of all that makes what a view shows, for a commit; of plain pixels nothing does."""
    of_view = {} if view == PLAIN else {name: version(name) for name in LIBRARIES}
    return of_view | (decoders() if dataset.encoded else {})


def own_size(dataset: DatasetSpec, teacher: TeacherSpec) -> OwnSize | None:
    """Return at which size a teacher is shown pictures that are decoded for it; None: at the dataset's."""
    size = teacher.model.get("size") if dataset.encoded else None
    return None if size is None else OwnSize(size, str(teacher.model.get("filter", "bilinear")))


def check_decoded_for(who: str, dataset: DatasetSpec, own: OwnSize, views: ViewsSpec | None, section: str) -> None:
    """Raise BadRequest if a model, for which pictures are decoded at another size, would be shown something else.

    Args:
        who: the model, for people.
        dataset: that keeps its pictures encoded.
        own: the model's size.
        views: that it is shown; None: the plain pictures.
        section: of the job that says its size.
    """
    height, width = sides_of(own.size)
    _, wanted_height, wanted_width = dataset.input_shape
    resize = dataset.source.get("resize", "stretch")
    if resize != "stretch" and height * wanted_width != width * wanted_height:
        raise BadRequest(
            f"{who} would see another part of the pictures of {dataset.name} than the others do",
            found=f'size {height}×{width}, the dataset\'s {wanted_height}×{wanted_width}, resize = "{resize}"',
            expected='one shape of both; or resize = "stretch"',
        )
    if steps := [step.kind for step in views.transforms if step.in_pixels] if views is not None else []:
        raise BadRequest(
            f"{who} has a size of its own, at which these views of {dataset.name} would be others",
            found=f"{', '.join(steps)}, which count in pixels",
            expected="random_resized_crop, flip, color_jitter, mixup, which do not",
            do=f"drop them from [views], or `size` from {section}",
        )


def check_augmented(
    url: str,
    key: ShardKey,
    spec: ViewsSpec | None,
    ingest: pa.Table,
    about: dict[str, Any],
    seen: Seen,
) -> None:
    """Check that the first readable rows of a shard become what the teacher was shown.

    Args:
        url: of the cache, for messages.
        key: of the targets.
        spec: what the cache promises of its views.
        ingest: the table of the shard.
        about: what the commit of the targets says.
        seen: the rows that the targets were made from.

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
    view = spec.view(key.view)
    left = inputs_of(seen.dataset).left(view)
    found = left.fingerprint(partial(seen.begun, view, rows), rows.keys_B, rows.splits_B)
    check_shown(url, key, seen.dataset, about, found)


def check_shown(url: str, key: ShardKey, dataset: DatasetSpec, about: dict[str, Any], found: str) -> None:
    """Raise StaleCache unless a teacher was shown what this fingerprint is of, and say what makes the difference."""
    if found == about["view_fingerprint"]:
        return
    was, now = about.get("libraries", {}), libraries(dataset, key.view)  # earlier commits do not say
    changed = [name for name in sorted(now) if was.get(name) != now[name]]
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
