"""Pack the arrays of one shard into a Zarr group of named byte strings, and open them again.

Zarr writes to a memory store only; the strings travel through `storage.format.objects`. So every object is digested
on its way, a missing one can never read as fill values, and a disk and an object store hold the same bytes.

Each array is one Zarr chunk, hence one member of the zip: it is read whole, and this is twice as fast as inner chunks
behind the sharding codec (docs/adr/0002).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest
from math import prod
from typing import Any, NamedTuple

import numpy as np
import zarr
from numcodecs import blosc, zstd
from zarr.codecs import BloscCodec, BloscShuffle, TransposeCodec, ZstdCodec
from zarr.storage import MemoryStore

from storage.inputs.ragged import OFFSETS

METADATA = "zarr.json"
INPUTS = "inputs"  # of uint8 are pixels: 12 % smaller under zstd, eight times slower to read (docs/log.md)
MOST_METADATA_BYTES = 2**16  # of one array; ours are of 700
MOST_AXES = 32  # NumPy has no array of more, in every version that is in use
MOST_TOLD = 300  # characters of what a damaged array says
CODECS = frozenset({"bytes", "zstd", "blosc", "transpose"})  # nothing else is decoded (invariant 8)
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
    "offsets": Layout(BloscShuffle.bitshuffle, level=5),  # of every array that has them
}


def pack(arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Return the objects of a Zarr v3 group that holds `arrays`, by path below the group.

    Args:
        arrays: name to array, any numeric dtype, first axis S (rows of the shard); a name may hold slashes.
    """
    store: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(store), zarr_format=3)
    for name, array_S in arrays.items():
        layout = LAYOUTS.get(OFFSETS.rstrip("/") if name.startswith(OFFSETS) else name, Layout())
        columns = (array_S.ndim - 1, *range(array_S.ndim - 1))
        stored = group.create_array(
            name,
            shape=array_S.shape,
            dtype=array_S.dtype,
            chunks=tuple(max(1, length) for length in array_S.shape),  # Zarr has none of length 0
            filters=[TransposeCodec(order=columns)] if layout.columns else None,
            compressors=None if name == INPUTS and array_S.dtype == np.uint8 else _compressor(layout, array_S.dtype),
            config={"write_empty_chunks": True},  # zeros too: one that is not there is an error (invariant 6)
        )
        stored[...] = array_S
    return {path: buffer.to_bytes() for path, buffer in store.items()}


def _compressor(layout: Layout, dtype: np.dtype[Any]) -> ZstdCodec | BloscCodec:
    if layout.shuffle is None:
        return ZstdCodec(level=layout.level)
    return BloscCodec(typesize=dtype.itemsize, cname="zstd", clevel=layout.level, shuffle=layout.shuffle)


def array_names(paths: Iterable[str]) -> list[str]:
    """Return the names of the arrays among the objects of a group, sorted: its metadata without any other below."""
    nodes = sorted({path.removesuffix(METADATA) for path in paths if path.endswith(f"/{METADATA}")})  # "a/", "a/b/"
    # sorted, what is below a node follows it at once
    pairs = zip_longest(nodes, nodes[1:], fillvalue="")
    return sorted(node.rstrip("/") for node, after in pairs if not after.startswith(node))


def read_shape(name: str, objects: Mapping[str, bytes | memoryview]) -> tuple[int, ...]:
    """Return the shape of an array of a group, of which its metadata are enough. Raises ValueError as `unpack`."""
    return _checked_metadata(name, objects)[0]


def unpack(
    objects: Mapping[str, bytes | memoryview],
    names: Iterable[str],
    *,
    writeable: bool = True,
    check: Callable[[str, tuple[int, ...], str, int], None] = lambda name, shape, dtype, stored_bytes: None,
) -> dict[str, np.ndarray]:
    """Return the named arrays of a group written by `pack`.

    Not through Zarr, which takes 2.5 ms of Python for each array, in one thread whoever asks (docs/log.md): one Zarr
    chunk is one run of the codecs that its metadata name.

    Args:
        objects: by path below the group; only those of the named arrays are needed.
        names: of the arrays.
        writeable: whether each is to have memory of its own; else it lies over the bytes of its Zarr chunk.
        check: is told name, shape, type and stored bytes of each before memory is taken for it, and may raise.

    Raises:
        ValueError: they are not such arrays, or a Zarr chunk is missing, which Zarr would read as zeros.
    """
    arrays = {}
    for name in names:
        shape, meta = _checked_metadata(name, objects)
        data = objects.get(f"{name}/c/{'/'.join('0' * len(shape))}")
        if data is None and 0 not in shape:  # without values there is none
            raise ValueError(f"{name} has no Zarr chunk")
        check(name, shape, meta["data_type"], 0 if data is None else len(data))
        try:
            array = np.empty(shape, meta["data_type"]) if 0 in shape else _decode(data, shape, meta)
            arrays[name] = np.require(array, meta["data_type"], ["C", "A", "W"] if writeable else ["C", "A"])
        except Exception as error:  # whatever a codec makes of damaged bytes
            raise ValueError(f"{name} is not a Zarr array: {type(error).__name__}: {error}") from None
    return arrays


def _decode(data: Any, shape: tuple[int, ...], meta: dict[str, Any]) -> np.ndarray:
    """Return the array in a Zarr chunk, over its bytes: its codecs undone from the last to the first."""
    stored_shape, axes = shape, tuple(range(len(shape)))
    # as it lies in the Zarr chunk, after every transpose
    for codec in meta["codecs"]:
        if codec["name"] == "transpose":
            order = codec["configuration"]["order"]
            if sorted(order) != list(range(len(shape))):
                raise ValueError(f"transposed by {order}")
            stored_shape, axes = tuple(stored_shape[i] for i in order), tuple(axes[i] for i in order)
    num_bytes = prod(shape) * np.dtype(meta["data_type"]).itemsize
    for codec in reversed(meta["codecs"]):
        match codec["name"]:
            case "zstd" | "blosc" as name:
                data = _decompress(name, data, num_bytes)
            case "bytes":
                endian = codec.get("configuration", {}).get("endian", "little")
                dtype = np.dtype(meta["data_type"]).newbyteorder({"little": "<", "big": ">"}[endian])
                data = np.frombuffer(data, dtype).reshape(stored_shape).transpose(np.argsort(axes))
    return np.asarray(data)


def _decompress(name: str, data: Any, num_bytes: int) -> Any:
    """Return the bytes of an array, of which there are so many. Raises ValueError before memory is taken for more."""
    said = _zstd_content_bytes(data) if name == "zstd" else int.from_bytes(bytes(data[4:8]), "little")
    if said is not None and said != num_bytes:
        raise ValueError(f"{name} of {said} bytes where the shape has {num_bytes}")
    # into memory of that size: no frame can be of more, whatever it says
    return (zstd if name == "zstd" else blosc).decompress(data, np.empty(num_bytes, np.uint8))


def _zstd_content_bytes(data: Any) -> int | None:
    """Return the size that a zstd frame says its content has; None if it does not say (RFC 8878, 3.1.1.1)."""
    head = bytes(data[:18])
    if head[:4] != b"\x28\xb5\x2f\xfd":
        raise ValueError("no zstd frame")
    descriptor = head[4]
    size_bytes, single_segment = (0, 2, 4, 8)[descriptor >> 6], bool(descriptor & 32)
    size_bytes = size_bytes or int(single_segment)
    if not size_bytes:
        return None
    start = 5 + (not single_segment) + (0, 1, 2, 4)[descriptor & 3]  # behind the window and the dictionary's number
    return int.from_bytes(head[start : start + size_bytes], "little") + (256 if size_bytes == 2 else 0)


def _checked_metadata(name: str, objects: Mapping[str, bytes | memoryview]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return an array's shape and Zarr metadata, after checking that it is one Zarr chunk, as `pack` writes them."""
    try:
        text = objects[f"{name}/{METADATA}"]
        if len(text) > MOST_METADATA_BYTES:
            raise ValueError(f"{len(text)} bytes of it")
        meta = json.loads(bytes(text))
        shape, chunk_shape = meta["shape"], meta["chunk_grid"]["configuration"]["chunk_shape"]
        dtype, codecs = meta["data_type"], [codec["name"] for codec in meta["codecs"]]
        known = dtype in DTYPES and set(codecs) <= CODECS and codecs.count("bytes") == 1
        # of compressors one: of what lies between two, nothing says the size
        known = known and codecs.count("zstd") + codecs.count("blosc") <= 1
        known = known and (meta["zarr_format"], meta["node_type"]) == (3, "array") and not meta["storage_transformers"]
        known = known and meta["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
        # `type`, not `isinstance`: JSON's true would pass for an int
        counted = len(shape) <= MOST_AXES and all(type(length) is int and length >= 0 for length in shape)
        one_chunk = counted and chunk_shape == [max(1, length) for length in shape]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} has no Zarr metadata: {type(error).__name__}: {error}") from None
    if not (known and one_chunk):
        raise ValueError(
            f"{name} is {dtype} {shape} in Zarr chunks {chunk_shape}, by codecs {sorted(codecs)}"[:MOST_TOLD]
        )
    return tuple(shape), meta
