"""What a cache promises, and how a broken promise is told."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from storage.digests import fingerprint
from storage.encodings import DenseEncoding, SparseEncoding
from storage.errors import CorruptObject, MissingObject, StaleCache, UnsupportedFormat
from storage.format.objects import LocalObjects
from storage.format.specs import FORMAT_VERSION, CacheSpec, DatasetSpec, TeacherSpec, read_spec, write_spec

PATH = "digits/dataset.json"


def change(objects: LocalObjects, path: str, **fields: Any) -> None:
    """Edit a spec by hand, as if its digest did not matter."""
    objects.put(path, json.dumps(json.loads(objects.get(path)) | fields).encode())


def test_a_spec_reads_back(objects: LocalObjects, dataset_spec: DatasetSpec) -> None:
    write_spec(objects, PATH, dataset_spec, "job.toml")
    assert read_spec(objects, PATH, DatasetSpec) == dataset_spec


def test_a_teacher_with_its_encoding_and_features_reads_back(objects: LocalObjects, teacher_spec: TeacherSpec) -> None:
    write_spec(objects, "digits/cnn/teacher.json", teacher_spec, "job.toml")
    assert read_spec(objects, "digits/cnn/teacher.json", TeacherSpec) == teacher_spec


def test_a_spec_on_disk_is_readable_json(objects: LocalObjects, dataset_spec: DatasetSpec) -> None:
    write_spec(objects, PATH, dataset_spec, "job.toml")
    assert json.loads(objects.get(PATH))["classes"] == ["zero", "one", "two"]


def test_the_fingerprint_survives_the_disk(objects: LocalObjects, teacher_spec: TeacherSpec) -> None:
    write_spec(objects, "digits/cnn/teacher.json", teacher_spec, "job.toml")
    assert read_spec(objects, "digits/cnn/teacher.json", TeacherSpec).fingerprint == teacher_spec.fingerprint


@pytest.mark.parametrize(
    "changed",
    [{"num_classes": 4}, {"encoding": DenseEncoding(dtype="fp16")}, {"features": {}}, {"model": {"weights": "other"}}],
)
def test_any_change_changes_the_fingerprint(teacher_spec: TeacherSpec, changed: dict[str, Any]) -> None:
    assert teacher_spec.model_copy(update=changed).fingerprint != teacher_spec.fingerprint


def test_the_same_promise_again_is_no_error(objects: LocalObjects, dataset_spec: DatasetSpec) -> None:
    for _ in range(2):
        write_spec(objects, PATH, dataset_spec, "job.toml")
    assert read_spec(objects, PATH, DatasetSpec) == dataset_spec


def test_a_stale_spec_is_named_field_by_field(objects: LocalObjects, dataset_spec: DatasetSpec) -> None:
    write_spec(objects, PATH, dataset_spec, "old.toml")
    other = dataset_spec.model_copy(
        update={"source": {"kind": "digits", "seed": 1, "size": [8, 8]}, "input_dtype": "float32"}
    )
    with pytest.raises(StaleCache) as caught:
        write_spec(objects, PATH, other, "new.toml")
    assert (caught.value.what, caught.value.found, caught.value.expected, caught.value.do) == (
        f"{objects.url} was built by another job: {PATH} differs in input_dtype, source.seed",
        "input_dtype = 'uint8'\nsource.seed = 0",
        "input_dtype = 'float32'\nsource.seed = 1  (new.toml)",
        "cache build new.toml --as NAME    # a new cache beside it; this one stays as it is",
    )


def test_a_stale_spec_is_left_as_it_was(objects: LocalObjects, dataset_spec: DatasetSpec) -> None:
    write_spec(objects, PATH, dataset_spec, "old.toml")
    with pytest.raises(StaleCache):
        write_spec(objects, PATH, dataset_spec.model_copy(update={"classes": []}), "new.toml")
    assert read_spec(objects, PATH, DatasetSpec) == dataset_spec


def test_a_later_format_is_not_supported(objects: LocalObjects) -> None:
    spec = CacheSpec(format=FORMAT_VERSION + 1, id="0", created="2030-01-01", created_by="stillroom 9.0")
    objects.put("cache.json", spec.to_json())
    with pytest.raises(UnsupportedFormat) as caught:
        read_spec(objects, "cache.json", CacheSpec)
    assert (caught.value.found, caught.value.expected) == (
        "format 4 (cache.json, written by stillroom 9.0)",
        "format 3 or earlier",
    )


def test_a_later_format_is_told_even_if_it_has_another_shape(objects: LocalObjects) -> None:
    objects.put("cache.json", b'{"format": 7, "all": "else is new"}')
    with pytest.raises(UnsupportedFormat):
        read_spec(objects, "cache.json", CacheSpec)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"3", b'"x"', b"{}", b'{"format": 1}', b"\xff\xfe", b"[" * 100_000]
)
def test_broken_json_is_corrupt(objects: LocalObjects, data: bytes) -> None:
    objects.put("cache.json", data)
    with pytest.raises(CorruptObject) as caught:
        read_spec(objects, "cache.json", CacheSpec)
    assert caught.value.what == f"{objects.url}/cache.json is not a whole CacheSpec"


def test_a_missing_spec_is_named(objects: LocalObjects) -> None:
    with pytest.raises(MissingObject):
        read_spec(objects, "cache.json", CacheSpec)


def test_no_flipped_bit_of_a_spec_changes_what_it_promises(objects: LocalObjects, dataset_spec: DatasetSpec) -> None:
    data = dataset_spec.to_json()
    for i in range(len(data)):
        for bit in range(8):
            objects.get = lambda _, i=i, bit=bit: data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :]  # type: ignore[method-assign, misc]
            with contextlib.suppress(CorruptObject):
                assert read_spec(objects, PATH, DatasetSpec) == dataset_spec  # layout only


def test_no_cut_of_a_spec_changes_what_it_promises(objects: LocalObjects, dataset_spec: DatasetSpec) -> None:
    data = dataset_spec.to_json()
    for length in range(len(data) - 1):  # the last byte is a line end
        objects.get = lambda _, length=length: data[:length]  # type: ignore[method-assign, misc]
        with pytest.raises(CorruptObject):
            read_spec(objects, PATH, DatasetSpec)


def test_an_edited_spec_is_corrupt(objects: LocalObjects, dataset_spec: DatasetSpec) -> None:
    write_spec(objects, PATH, dataset_spec, "job.toml")
    change(objects, PATH, classes=["a", "b", "c"])
    with pytest.raises(CorruptObject) as caught:
        read_spec(objects, PATH, DatasetSpec)
    assert caught.value.found == "it does not match its digest"


def test_a_spec_in_the_place_of_another_is_noticed(objects: LocalObjects, dataset_spec: DatasetSpec) -> None:
    objects.put("other/dataset.json", dataset_spec.to_json())
    with pytest.raises(CorruptObject) as caught:
        read_spec(objects, "other/dataset.json", DatasetSpec)
    assert caught.value.found == "the DatasetSpec of digits"


def test_a_teacher_of_format_1_is_dense_without_statistics(objects: LocalObjects) -> None:
    """Its promise as it lies on disk, before encodings had any."""
    promise = {"name": "cnn", "model": {}, "num_classes": 3, "encoding": {"kind": "dense", "dtype": "fp16"}}
    promise |= {"features": {}}
    path = "digits/cnn/teacher.json"
    objects.put(path, json.dumps(promise | {"digest": fingerprint(promise)}).encode())
    assert read_spec(objects, path, TeacherSpec).encoding == DenseEncoding(dtype="fp16", statistics=False)


def test_a_sparse_teacher_reads_back(objects: LocalObjects, teacher_spec: TeacherSpec) -> None:
    encoding = SparseEncoding(k=2, n=1, values="8bit", temperatures=[4, 2])
    spec = teacher_spec.model_copy(update={"encoding": encoding})
    write_spec(objects, "digits/cnn/teacher.json", spec, "job.toml")
    assert read_spec(objects, "digits/cnn/teacher.json", TeacherSpec).encoding == encoding
