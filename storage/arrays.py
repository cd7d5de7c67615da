"""Pack the arrays of one shard into a Zarr group of named byte strings, and open them again.

Zarr works on a memory store only; the strings travel through `storage.objects`. So every object is digested on its
way, a missing one can never read as fill values, and a disk and an object store hold the same bytes.

Each array is one Zarr chunk, hence one object: a shard is read whole, and this is twice as fast as inner chunks
behind the sharding codec (docs/adr/0002).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BloscShuffle, TransposeCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

METADATA = "zarr.json"
INPUTS = "inputs"  # of uint8 are pixels: 12 % smaller under zstd, eight times slower to read (docs/log.md)
CODECS = frozenset({"bytes", "zstd", "blosc", "transpose"})
DTYPES = frozenset(
    {
        "bool",
        *("int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64"),
    }
)


class Layout(NamedTuple):
    """How an array is compressed.

    Attributes:
        shuffle: of bytes or bits before zstd, or None.
        level: of zstd.
        columns: whether the last axis comes first, so that what is alike lies together.
    """

    shuffle: BloscShuffle | None = None
    level: int = 3
    columns: bool = False


# Those that `zstd` alone leaves larger; measured in docs/log.md, decided in docs/adr/0006.
LAYOUTS = {
    "ids": Layout(BloscShuffle.bitshuffle, level=5, columns=True),
    "values": Layout(BloscShuffle.shuffle, level=5),
    "draws": Layout(BloscShuffle.shuffle, level=5),
    "counts": Layout(level=9),
    "lse": Layout(BloscShuffle.bitshuffle, level=5),
    "statistics": Layout(BloscShuffle.shuffle, level=5),
}


def pack(arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Return the objects of a Zarr v3 group that holds `arrays`, by path below the group.

    Args:
        arrays: name to array, any numeric dtype, first axis S (rows of the shard); a name may hold slashes.
    """
    store: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(store), zarr_format=3)
    for name, array_S in arrays.items():
        layout = LAYOUTS.get(name, Layout())
        columns = (array_S.ndim - 1, *range(array_S.ndim - 1))
        stored = group.create_array(
            name,
            shape=array_S.shape,
            dtype=array_S.dtype,
            chunks=tuple(max(1, length) for length in array_S.shape),
            filters=[TransposeCodec(order=columns)] if layout.columns else None,
            compressors=None if name == INPUTS and array_S.dtype == np.uint8 else _compressor(layout, array_S.dtype),
            config={"write_empty_chunks": True},
        )
        stored[...] = array_S
    return {path: buffer.to_bytes() for path, buffer in store.items()}


def _compressor(layout: Layout, dtype: np.dtype[Any]) -> ZstdCodec | BloscCodec:
    if layout.shuffle is None:
        return ZstdCodec(level=layout.level)
    return BloscCodec(typesize=dtype.itemsize, cname="zstd", clevel=layout.level, shuffle=layout.shuffle)


def array_names(paths: Iterable[str]) -> list[str]:
    """Return the names of the arrays among the objects of a group, sorted: its metadata without any other below."""
    nodes = [path.removesuffix(f"/{METADATA}") for path in paths if path.endswith(f"/{METADATA}")]
    return sorted(node for node in nodes if not any(other.startswith(f"{node}/") for other in nodes))


def unpack(objects: Mapping[str, bytes], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the named arrays of a group written by `pack`; only their own objects need be among `objects`.

    Raises:
        ValueError: they are not such arrays, or a Zarr chunk is missing, which Zarr would read as zeros.
    """
    buffer = default_buffer_prototype().buffer
    store = MemoryStore({path: buffer.from_bytes(data) for path, data in objects.items()})
    arrays = {}
    for name in names:
        shape = _checked_shape(name, objects)
        if 0 not in shape and f"{name}/c/{'/'.join('0' * len(shape))}" not in objects:
            raise ValueError(f"{name} has no Zarr chunk")
        try:
            # Zarr 2 metadata could name the codec `pickle`, and so execute code.
            arrays[name] = np.asarray(zarr.open_array(store, path=name, mode="r", zarr_format=3)[...])
        except Exception as error:
            raise ValueError(f"{name} is not a Zarr array: {type(error).__name__}: {error}") from None
    return arrays


def _checked_shape(name: str, objects: Mapping[str, bytes]) -> tuple[int, ...]:
    """Return an array's shape, after checking that it is of one Zarr chunk, a number type and the codecs of `pack`."""
    try:
        meta = json.loads(objects[f"{name}/{METADATA}"])
        shape, chunk_shape = meta["shape"], meta["chunk_grid"]["configuration"]["chunk_shape"]
        dtype, codecs = meta["data_type"], {codec["name"] for codec in meta["codecs"]}
        known = dtype in DTYPES and codecs <= CODECS and not meta["storage_transformers"]
        one_chunk = chunk_shape == [max(1, length) for length in shape]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} has no Zarr metadata: {error!r}") from None
    if not (known and one_chunk):
        raise ValueError(f"{name} is {dtype} {shape} in Zarr chunks {chunk_shape}, by codecs {sorted(codecs)}")
    return tuple(shape)
