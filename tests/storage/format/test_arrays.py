"""Arrays to named byte strings and back."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from zarr.codecs import BytesCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from storage.format.arrays import DTYPES, LAYOUTS, array_names, pack, unpack

ARRAYS = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: npst.arrays(np.dtype(dtype), npst.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4))
)
NAMES = ["logits", "feature/a", "feature/b.c", "inputs", *sorted(LAYOUTS)]


@given(st.dictionaries(st.sampled_from(NAMES), ARRAYS, max_size=3))
def test_writing_then_reading_is_identity(arrays: dict[str, np.ndarray]) -> None:
    back = unpack(pack(arrays), arrays)
    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in back.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()
    }


@given(st.sampled_from(NAMES), ARRAYS)
def test_zarr_reads_the_same(name: str, array: np.ndarray) -> None:
    buffer = default_buffer_prototype().buffer
    packed = pack({name: array})
    store = MemoryStore({path: buffer.from_bytes(data) for path, data in packed.items()})
    by_zarr = np.asarray(zarr.open_array(store, path=name, mode="r")[...])
    found = unpack(packed, [name])[name]
    assert (found.dtype, found.shape, found.tobytes()) == (by_zarr.dtype, by_zarr.shape, by_zarr.tobytes())


def test_an_array_that_is_only_to_be_copied_lies_over_the_bytes_that_were_read() -> None:
    packed = pack({"inputs": np.arange(6, dtype=np.uint8)})
    found = unpack(packed, ["inputs"], writeable=False)["inputs"]
    assert np.shares_memory(found, np.frombuffer(packed["inputs/c/0"], np.uint8))


def test_an_array_owns_its_memory() -> None:
    for array in (np.ones(3, np.uint8), np.ones(3, np.float32)):
        assert unpack(pack({"inputs": array}), ["inputs"])["inputs"].flags.writeable


@pytest.mark.parametrize("endian", ["little", "big"])
def test_both_byte_orders_are_read(endian: str) -> None:
    """Another Zarr writer may choose the other one."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    store: dict[str, Any] = {}
    codec = BytesCodec(endian=endian)
    zarr.create_array(MemoryStore(store), name="x", data=array, chunks=(2, 3), serializer=codec, compressors=None)
    objects = {path: buffer.to_bytes() for path, buffer in store.items()}
    assert unpack(objects, ["x"])["x"].tolist() == array.tolist()


@given(st.dictionaries(st.sampled_from(NAMES), ARRAYS, max_size=3))
def test_the_names_are_known_from_the_objects(arrays: dict[str, np.ndarray]) -> None:
    assert array_names(pack(arrays)) == sorted(arrays)


@pytest.mark.parametrize("shape", [(9,), (9, 4), (9, 3, 4)])
@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_every_layout_gives_back_what_was_written(name: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 2**31, shape, np.int32)
    assert unpack(pack({name: array}), [name])[name].tolist() == array.tolist()


def test_ids_that_are_alike_by_column_are_smaller_than_under_zstd_alone() -> None:
    ids = np.sort(np.random.default_rng(0).zipf(1.3, (2000, 16)).clip(max=99_999), axis=1).astype(np.int32)
    differences = np.diff(ids, axis=1, prepend=0).astype(np.int32)
    sizes = {name: len(pack({name: differences})[f"{name}/c/0/0"]) for name in ("ids", "logits")}
    assert sizes["ids"] < 0.8 * sizes["logits"]


@pytest.mark.parametrize("special", [np.nan, -0.0, np.inf, 5e-324])
def test_no_value_is_taken_for_a_fill_value(special: float) -> None:
    array = np.full((3, 2), special)
    assert unpack(pack({"x": array}), ["x"])["x"].tobytes() == array.tobytes()


def test_an_array_of_zeros_is_an_object_like_any_other() -> None:
    assert "x/c/0/0" in pack({"x": np.zeros((2, 2), np.float32)})


def test_other_byte_orders_and_layouts_keep_their_values() -> None:
    array = np.arange(12, dtype=">f4").reshape(3, 4).T
    assert unpack(pack({"x": array}), ["x"])["x"].tolist() == array.tolist()


def test_the_same_arrays_give_the_same_bytes() -> None:
    arrays = {"feature/x": np.ones((3, 2)), "logits": np.eye(3)}
    assert pack(arrays) == pack(dict(reversed(arrays.items())))


def test_any_zarr_tool_opens_the_group() -> None:
    buffer = default_buffer_prototype().buffer
    packed = pack({"feature/x": np.eye(3), "logits": np.ones((3, 2))})
    group = zarr.open_group(MemoryStore({path: buffer.from_bytes(data) for path, data in packed.items()}), mode="r")
    assert group["feature/x"][...].tolist() == np.eye(3).tolist()  # type: ignore[index, union-attr]


def test_only_the_objects_of_the_named_arrays_are_needed() -> None:
    objects = pack({"a": np.ones(2), "b": np.zeros(2)})
    only_a = {path: data for path, data in objects.items() if path.startswith("a/")}
    assert unpack(only_a, ["a"])["a"].tolist() == [1, 1]


def test_a_missing_zarr_chunk_is_an_error_never_zeros() -> None:
    objects = pack({"x": np.ones((2, 2))})
    del objects["x/c/0/0"]
    with pytest.raises(ValueError, match="x has no Zarr chunk"):
        unpack(objects, ["x"])


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("data_type", "string"),
        ("codecs", [{"name": "numcodecs.pickle", "configuration": {}}]),
        (
            "codecs",
            [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip", "configuration": {"level": 1}}],
        ),
        ("shape", [4, 2]),
        ("shape", None),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [1, 2]}}),
        ("storage_transformers", [{"name": "x"}]),
        ("node_type", "group"),
        ("zarr_format", 2),
        ("chunk_key_encoding", {"name": "v2", "configuration": {"separator": "."}}),
        ("codecs", [{"name": "zstd", "configuration": {"level": 3}}]),
    ],
)
def test_metadata_that_pack_would_not_write_is_refused(change: str, value: object) -> None:
    objects = pack({"x": np.ones((2, 2))})
    objects["x/zarr.json"] = json.dumps(json.loads(objects["x/zarr.json"]) | {change: value}).encode()
    with pytest.raises(ValueError, match=r"^x "):
        unpack(objects, ["x"])


class Bomb:
    """Unpickling it would leave a mark."""

    exploded = False

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (setattr, (Bomb, "exploded", True))


def test_an_array_that_names_the_codec_pickle_executes_nothing() -> None:
    v2 = {
        "zarr_format": 2,
        "shape": [1],
        "chunks": [1],
        "dtype": "|O",
        "fill_value": None,
        "order": "C",
        "compressor": None,
        "filters": [{"id": "pickle", "protocol": 5}],
    }
    objects = {"x/.zarray": json.dumps(v2).encode(), "x/0": pickle.dumps(np.array([Bomb()], dtype=object))}
    both = objects | pack({"x": np.ones(1)}) | {"x/zarr.json": b"{}"}
    for hostile in (objects, both):
        with pytest.raises(ValueError, match="x has no Zarr metadata"):
            unpack(hostile, ["x"])
    assert Bomb.exploded is False
