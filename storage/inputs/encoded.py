"""Encoded pictures: pixels to every model, and on disk the bytes of images, decoded whenever rows are read.

Decoding is a function of the bytes, of the dataset's policy and of libraries. So each row has a digest of its picture
as the ingest decoded it, before it was resized, and whoever decodes it compares, once in a process: where another
library gives another pixel, nobody is shown it.

Shapes: S rows of a shard, B chosen rows, C channels, H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from threading import Condition
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from storage.digests import digest, fingerprint
from storage.errors import CorruptObject, StaleCache, Unreadable
from storage.inputs.base import Stored
from storage.inputs.pixels import Pixels, sides_of
from storage.inputs.ragged import Ragged

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from storage.inputs.policy import ImagePolicy
    from storage.views.shown import View

DECODED = "decoded"  # the array of digests
ROWS_AT_ONCE = 8  # that a thread decodes before it takes others
BYTES_OF_A_PIXEL = 12  # while it is decoded: as Pillow has it, turned or converted, and as an array
ROOM_BYTES = 160 * 2**20  # of pictures that are being decoded, for each thread: one of 13 megapixels
PROVEN_SHARDS = 2**16  # of which a process knows what it has compared, a byte a row
PROVEN_BYTES = 512  # of a shard, beside its rows: its digest, an array, a place in the memory of calls
LOOKED_AT = 256  # rows whose pixels are held at once where nobody wants them
MOST_PICTURE_BYTES = 2**28  # of a file
FEATURES = ("libjpeg_turbo", "jpg", "zlib", "webp", "libtiff", "jpg_2000", "avif")  # Pillow's names of what decodes


class OwnSize(NamedTuple):
    """A size that is not the dataset's: height and width, or a number for a square; and a filter of Pillow by name."""

    size: int | tuple[int, int]
    filter: str

    def said(self) -> dict[str, Any]:
        """Return the keys of an image policy that it is."""
        height, width = sides_of(self.size)
        return {"size": height if height == width else [height, width], "filter": self.filter}


def own_shape(shape: Sequence[int], own: OwnSize | None) -> tuple[int, ...]:
    """Return the shape of a row, (C, H, W), at another size or at the dataset's."""
    return tuple(shape) if own is None else (shape[0], *sides_of(own.size))


@dataclass(frozen=True, eq=False)
class EncodedRows(Ragged):
    """Rows as the bytes of images.

    Attributes:
        decoded_S: uint64, the digest of each one's picture.
        libraries: that decoded them when they were ingested, name → version.
        shard: which, for messages.
        proven_S: bool, which of them this process has compared; written to.
    """

    decoded_S: NDArray[np.uint64]
    libraries: Mapping[str, str]
    shard: str
    proven_S: NDArray[np.bool_]

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> EncodedRows:
        taken = super().take(rows)
        proven = self.proven_S[rows]
        return EncodedRows(taken.flat_T, taken.offsets, self.decoded_S[rows], self.libraries, self.shard, proven)


@dataclass(frozen=True, eq=False)
class ToDecode:
    """Rows of a shard of which some are to be decoded, straight to where whoever wants them has memory for them.

    Attributes:
        shape: (S, C, H, W), of all rows.
        dtype: uint8.
        decode: of those that are wanted, uint8 (F, C, H, W), into memory of that shape or by default into new memory.
    """

    shape: tuple[int, ...]
    decode: Callable[[NDArray[np.uint8] | None], NDArray[np.uint8]]
    dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]


class Encoded(Pixels):
    """Stored as bytes of images; to models they are pixels, and so is their name.

    Args:
        source: what the dataset promises of its source, the policy of its images among it.
        shape: of a row, (C, H, W).
    """

    def __init__(self, source: Mapping[str, Any], shape: Sequence[int]):
        self._source = source
        self._shape = tuple(shape)

    @property
    def arrays(self) -> tuple[str, ...]:
        return (DECODED, *super().arrays)

    @cached_property
    def policy(self) -> ImagePolicy:
        """How an image becomes a row."""
        from storage.inputs.policy import ImagePolicy  # Pillow, which `cache status` needs not

        return ImagePolicy.promised(self._source).model_copy(update={"size": list(self._shape[1:])})

    def blank_rows(self, num_rows: int, shape: Sequence[int], dtype: str) -> MutableSequence[np.ndarray]:
        return [np.empty(0, np.uint8) for _ in range(num_rows)]

    def stored(self, rows: Any, dtype: str) -> Stored:
        return Ragged.of(rows, np.uint8)

    def rows(self, arrays: Mapping[str, Stored], about: Mapping[str, Any], of: str) -> Stored:
        flat, decoded_S = arrays[super().arrays[0]], arrays[DECODED]
        assert isinstance(flat, Ragged)
        assert isinstance(decoded_S, np.ndarray)
        meaning = fingerprint([self._source, *(digest(each.tobytes()) for each in (flat.offsets, decoded_S))])
        known_S = proven(digest(np.ascontiguousarray(flat.flat_T).data) + meaning, len(flat))
        return EncodedRows(flat.flat_T, flat.offsets, decoded_S, about.get("libraries", {}), of, known_S)

    def shown(self, stored_S: Stored, chosen_S: np.ndarray, own: OwnSize | None = None) -> Tensor:
        import torch

        return torch.from_numpy(self.decode(stored_S, np.arange(len(stored_S))[chosen_S], own=own))

    def begun(
        self, stored_S: Stored, rows_B: np.ndarray, view: View, keys_B: NDArray[np.int64], own: OwnSize | None = None
    ) -> Tensor:
        import torch

        return torch.from_numpy(self.decode(stored_S, rows_B, view=view, keys_B=keys_B, own=own))

    def left(self, view: View) -> View:
        return view if view.crop is None else replace(view, begun=True)

    def first(self, stored_S: Stored, count: int, own: OwnSize | None = None) -> Stored:
        return self.decode(stored_S, np.arange(min(count, len(stored_S))), own=own)

    def fed(
        self,
        stored_S: Stored,
        rows_F: NDArray[np.integer],
        view: View | None = None,
        keys_F: NDArray[np.int64] | None = None,
        own: OwnSize | None = None,
    ) -> ToDecode:
        def decode(into_F: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
            return self.decode(stored_S, rows_F, view=view, keys_B=keys_F, own=own, into_B=into_F)

        return ToDecode((len(stored_S), *own_shape(self._shape, own)), decode)

    def one(self, stored_S: Stored, row: int) -> np.ndarray:
        (shown,) = self.decode(stored_S, np.array([row]))
        return np.asarray(shown)

    def look_at(self, stored_S: Stored) -> None:
        if isinstance(stored_S, EncodedRows):
            stored_S = replace(stored_S, proven_S=np.zeros(len(stored_S), bool))  # whoever verifies sees for himself
        for first in range(0, len(stored_S), LOOKED_AT):
            self.decode(stored_S, np.arange(first, min(first + LOOKED_AT, len(stored_S))))

    def decode(
        self,
        stored_S: Stored,
        rows_B: NDArray[np.integer],
        *,
        view: View | None = None,
        keys_B: NDArray[np.int64] | None = None,
        own: OwnSize | None = None,
        into_B: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Return some rows as pixels, uint8 (B, C, H, W), decoded on as many threads as there are processors.

        Args:
            stored_S: bytes of images; those of `EncodedRows` are compared with what the ingest decoded.
            rows_B: their numbers. A row without bytes is black: it is quarantined, and no model is shown it.
            view: whose crop, if it begins with one, is taken of the whole pictures.
            keys_B: of the samples, where there is a view.
            own: another size than the dataset's.
            into_B: where they are to lie; by default in new memory.

        Raises:
            StaleCache: other libraries decode other pixels.
            CorruptObject: the same ones do.
        """
        assert isinstance(stored_S, Ragged)
        policy = self.policy
        if own is not None:
            policy = policy.model_copy(update={"size": list(sides_of(own.size)), "filter": own.filter})
        boxes = None if view is None or view.crop is None or keys_B is None else view.boxes(keys_B)
        shown_B = np.empty((len(rows_B), *policy.shape(self._shape)), np.uint8) if into_B is None else into_B

        def decode_some(first: int) -> None:
            for place in range(first, min(first + ROWS_AT_ONCE, len(rows_B))):
                row = int(rows_B[place])
                if not len(stored_S[row]):
                    shown_B[place] = 0
                    continue
                with self._picture(stored_S, row) as (picture, pixels_HWC):
                    box = None if boxes is None else boxes.of(place, picture.height, picture.width)
                    shown_B[place] = (
                        policy.sized(picture, pixels_HWC) if box is None else policy.stretched(picture.crop(box))
                    )

        threads = decoding().threads
        parts = [threads.submit(decode_some, first) for first in range(0, len(rows_B), ROWS_AT_ONCE)]
        wait(parts)  # nobody writes there any more
        for part in parts:
            part.result()  # the first that failed is told
        return shown_B

    def keep(self, payload: bytes) -> tuple[NDArray[np.uint8], int, NDArray[np.uint8]]:
        """Return what is kept of a file, the digest of its picture, and its pixels as a row. Raises Unreadable."""
        from storage.inputs.policy import ImagePolicy

        policy = ImagePolicy.promised(self._source)  # of no `size`, each has its own
        kept = policy.kept(payload)
        if len(kept) > MOST_PICTURE_BYTES:
            raise Unreadable(f"is {len(kept):,} bytes; at most {MOST_PICTURE_BYTES:,} are kept")
        picture = policy.picture(policy.opened(kept))
        pixels_HWC = np.asarray(picture)
        return np.frombuffer(kept, np.uint8), pixels_digest(pixels_HWC), policy.sized(picture, pixels_HWC)

    @contextmanager
    def _picture(self, stored_S: Ragged, row: int) -> Iterator[tuple[Image.Image, np.ndarray | None]]:
        """Yield the picture of a row, which must be what the ingest saw; there is room for it within.

        And its pixels, unless it was compared before: to take them out of Pillow is a tenth of decoding.
        """
        with ExitStack() as room:
            try:
                image = self.policy.opened(stored_S[row].tobytes())
                room.enter_context(decoding().room(BYTES_OF_A_PIXEL * image.width * image.height))
                picture, pixels_HWC = self.policy.picture(image), None
                found, right = "", True
                if isinstance(stored_S, EncodedRows) and not stored_S.proven_S[row]:
                    pixels_HWC = np.asarray(picture)
                    seen = pixels_digest(pixels_HWC)
                    found = f"{picture.width}×{picture.height} pixels of digest {seen:016x}"
                    right = stored_S.proven_S[row] = seen == int(stored_S.decoded_S[row])
            except Unreadable as error:
                found, right = str(error), False
            if not right:
                assert isinstance(stored_S, EncodedRows), found  # decoded a moment ago, by this very process
                raise _other_pixels(stored_S, row, found)
            yield picture, pixels_HWC


def _other_pixels(rows: EncodedRows, row: int, found: str) -> StaleCache | CorruptObject:
    """Return what to tell of a row that is decoded to another picture than the ingest saw."""
    was, now = rows.libraries, decoders()
    changed = [name for name in sorted({*was, *now}) if was.get(name) != now.get(name)]
    expected = f"digest {int(rows.decoded_S[row]):016x}"
    if not changed:
        return CorruptObject(
            f"{rows.shard}: row {row} of the shard is no picture that the ingest saw, by the same libraries",
            found=found,
            expected=expected,
            do="cache verify CACHE --repair, then cache build JOB.toml",
        )
    return StaleCache(
        f"{rows.shard}: row {row} of the shard is decoded to other pixels than when it was ingested; "
        f"the libraries make the difference: {', '.join(changed)}",
        found="\n".join([found, *(f"{name} {now.get(name, 'none')}" for name in changed)]),
        expected="\n".join([expected, *(f"{name} {was.get(name, 'none')}" for name in changed)]),
        do="use the Pillow that the cache was built with, or cache build JOB.toml --as NAME",
    )


def pixels_digest(pixels_HWC: np.ndarray) -> int:
    """Return the xxh3-64 of a picture's pixels, (H, W, C) or (H, W), row after row."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(pixels_HWC).reshape(-1).data)


@lru_cache(maxsize=PROVEN_SHARDS)
def proven(shard: str, num_rows: int) -> NDArray[np.bool_]:
    """Return which rows of a shard this process has compared, bool (S,), to be written to.

    One process decodes the same bytes to the same pixels, so that once is enough.

    Args:
        shard: the digest of all that decides what is compared: bytes, where each row begins, digests, policy.
        num_rows: S.
    """
    return np.zeros(num_rows, bool)


def proven_bytes(rows: Iterable[int]) -> int:
    """Return what a process holds at most of what it has compared in shards of so many rows."""
    largest = sorted(rows)[-PROVEN_SHARDS:]
    return len(largest) * PROVEN_BYTES + sum(largest)


@lru_cache
def decoders() -> dict[str, str]:
    """Return name and version of all that decodes images here."""
    import PIL
    from PIL import features

    found = {name: features.version(name) for name in FEATURES if features.check(name)}
    return {"pillow": PIL.__version__} | {name: version for name, version in sorted(found.items()) if version}


class Decoding:
    """The threads of a process that decode, and the memory that pictures may take while they do.

    Args:
        count: of threads.

    Attributes:
        threads: they.
        most_bytes: of all pictures at a time, but that one alone may be larger.
    """

    def __init__(self, count: int):
        self.threads = ThreadPoolExecutor(count, thread_name_prefix="decode")
        self.most_bytes = count * ROOM_BYTES
        self._taken_bytes = 0
        self._free = Condition()

    @contextmanager
    def room(self, num_bytes: int) -> Iterator[None]:
        """Wait until there is room for a picture, and hold it within."""
        with self._free:
            self._free.wait_for(lambda: not self._taken_bytes or self._taken_bytes + num_bytes <= self.most_bytes)
            self._taken_bytes += num_bytes
        try:
            yield
        finally:
            with self._free:
                self._taken_bytes -= num_bytes
                self._free.notify_all()


@lru_cache(maxsize=1)
def _decoding(count: int) -> Decoding:
    return Decoding(count)


def decoding() -> Decoding:
    """Return what decodes in this process: a thread for each processor that it may use, or as `decode_on` said."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _decoding(_asked[-1] if _asked else processors)


def decode_on(threads: int) -> None:
    """Decode on so many threads from now on in this process, as `torch.set_num_threads` does for torch."""
    _asked[:] = [threads]


_asked: list[int] = []
