"""NumPy files of inputs and labels."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.datasets import RawSample
from storage.errors import MissingSource

Make = Callable[..., Any]
ReadAll = Callable[..., list[RawSample]]
INPUTS = np.arange(12, dtype=np.uint8).reshape(4, 3)
LABELS = np.array([2, 0, 1, 2])


@pytest.fixture
def npy(tmp_path: Path, source: Make) -> Any:
    np.save(tmp_path / "x.npy", INPUTS)
    np.save(tmp_path / "y.npy", LABELS)
    return source(kind="arrays", path="x.npy", labels="y.npy")


@pytest.fixture
def npz(tmp_path: Path, source: Make) -> Any:
    np.savez(tmp_path / "d.npz", inputs=INPUTS, labels=LABELS)
    return source(kind="arrays", path="d.npz")


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_inputs_and_labels_come_row_by_row(kind: str, read_all: ReadAll, request: pytest.FixtureRequest) -> None:
    samples = read_all(request.getfixturevalue(kind))
    assert [(sample.payload.tolist(), sample.label) for sample in samples] == list(  # type: ignore[union-attr]
        zip(INPUTS.tolist(), LABELS.tolist(), strict=True)
    )


def test_ids_are_file_and_position(npz: Any) -> None:
    assert [sample.sample_id for sample in npz.read("d.npz", 2, 2)] == ["d.npz:2", "d.npz:3"]


def test_classes_are_the_numbers_up_to_the_largest_label(npz: Any) -> None:
    assert npz.class_names() == ["0", "1", "2"]


def test_class_names_in_the_job_come_first(npy: Any, source: Make) -> None:
    assert source(kind="arrays", path="x.npy", labels="y.npy", classes=["a", "b", "c"]).class_names() == ["a", "b", "c"]


def test_inputs_without_labels_are_unlabelled(npy: Any, source: Make, read_all: ReadAll) -> None:
    unlabelled = source(kind="arrays", path="x.npy")
    assert (unlabelled.class_names(), [sample.label for sample in read_all(unlabelled)]) == ([], [None] * 4)


def test_an_unlabelled_dataset_may_name_its_classes(npy: Any, source: Make) -> None:
    assert source(kind="arrays", path="x.npy", classes=["a", "b"]).class_names() == ["a", "b"]


def test_arrays_of_other_names_can_be_named(tmp_path: Path, source: Make) -> None:
    np.savez(tmp_path / "d.npz", images=INPUTS, y=LABELS)
    named = source(kind="arrays", path="d.npz", inputs_key="images", labels_key="y")
    assert [sample.label for sample in named.read("d.npz", 0, 4)] == LABELS.tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_become_float32(tmp_path: Path, source: Make, dtype: Any) -> None:
    np.save(tmp_path / "x.npy", np.array([[0.5], [0.1]], dtype))
    (_, second) = source(kind="arrays", path="x.npy").read("x.npy", 0, 2)
    assert (second.payload.dtype, second.payload[0]) == (np.float32, np.float32(dtype(0.1)))


def test_a_changed_file_has_another_version(npy: Any, tmp_path: Path) -> None:
    before = npy.files()["version"][0]
    np.save(tmp_path / "y.npy", LABELS[::-1])
    assert npy.files()["version"][0] != before


def test_a_changed_file_is_read_again(npz: Any, tmp_path: Path, read_all: ReadAll) -> None:
    read_all(npz)
    np.savez(tmp_path / "d.npz", inputs=INPUTS[:1], labels=LABELS[:1])
    assert len(read_all(npz)) == 1


class Bomb:
    """Unpickling it would leave a mark."""

    exploded = False

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (setattr, (Bomb, "exploded", True))


@pytest.mark.parametrize("kind", ["npy", "npz", "plain pickle"])
def test_a_pickle_is_refused_and_not_executed(tmp_path: Path, source: Make, kind: str) -> None:
    bomb = np.array([Bomb()], dtype=object)
    path = tmp_path / f"x.{kind[:3]}"
    if kind == "npy":
        np.save(path, bomb, allow_pickle=True)
    elif kind == "npz":
        np.savez(path, inputs=bomb)
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(MissingSource) as caught:
        source(kind="arrays", path=path.name).files()
    assert (caught.value.what, Bomb.exploded) == (f"cannot read {path} as .npy or .npz", False)


@pytest.mark.parametrize("name", ["x.npy", "d.npz"])
@pytest.mark.parametrize("length", [0, 3, 100, -5])
def test_a_truncated_file_is_named(npy: Any, npz: Any, tmp_path: Path, source: Make, name: str, length: int) -> None:
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(MissingSource) as caught:
        source(kind="arrays", path=name).files()
    assert caught.value.what == f"cannot read {path} as .npy or .npz"


def test_a_flipped_byte_in_an_npz_is_noticed(npz: Any, tmp_path: Path) -> None:
    data = bytearray((tmp_path / "d.npz").read_bytes())
    data[data.index(INPUTS.tobytes())] ^= 1
    (tmp_path / "d.npz").write_bytes(data)
    with pytest.raises(MissingSource, match="CRC"):
        npz.files()


@pytest.mark.parametrize("inputs", [np.arange(4), np.array(["a"]), np.float32(3), np.array([True])], ids=str)
def test_inputs_of_another_kind_are_told(tmp_path: Path, source: Make, inputs: Any) -> None:
    np.save(tmp_path / "x.npy", inputs)
    with pytest.raises(MissingSource) as caught:
        source(kind="arrays", path="x.npy").files()
    assert (caught.value.what, caught.value.expected) == (
        f"{tmp_path}/x.npy holds no inputs",
        "uint8, floats or integers, (rows, …); not a label for each row",
    )


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint16", "int64"])
def test_integers_are_kept_as_floats_of_the_same_value(tmp_path: Path, source: Make, dtype: str) -> None:
    np.save(tmp_path / "x.npy", np.array([[0, 1], [100, 127]], dtype))
    rows = [sample.payload for sample in source(kind="arrays", path="x.npy").read("x.npy", 0, 2)]
    assert [(row.dtype.name, row.tolist()) for row in rows] == [("float32", [0.0, 1.0]), ("float32", [100.0, 127.0])]


def test_integers_that_floats_cannot_tell_apart_are_refused(tmp_path: Path, source: Make) -> None:
    np.save(tmp_path / "x.npy", np.array([[2**24, -(2**24)], [2**24 + 1, 0]]))
    read = source(kind="arrays", path="x.npy").read("x.npy", 0, 2)
    assert next(read).payload.tolist() == [2**24, -(2**24)]
    with pytest.raises(MissingSource, match="integers that float32 cannot tell apart") as caught:
        next(read)
    assert caught.value.found == "16777217 in row 1"


@pytest.mark.parametrize("labels", [LABELS[:3], LABELS[:, None], LABELS.astype(float)], ids=["few", "2-d", "floats"])
def test_labels_that_do_not_fit_are_told(npy: Any, tmp_path: Path, labels: Any) -> None:
    np.save(tmp_path / "y.npy", labels)
    with pytest.raises(MissingSource) as caught:
        npy.class_names()
    assert (caught.value.what, caught.value.expected) == (
        f"the labels of {tmp_path}/x.npy do not fit its inputs",
        "integers (4,)",
    )


def test_a_missing_array_is_told_with_those_there_are(tmp_path: Path, source: Make) -> None:
    np.savez(tmp_path / "d.npz", images=INPUTS, y=LABELS)
    with pytest.raises(MissingSource) as caught:
        source(kind="arrays", path="d.npz").files()
    assert (caught.value.what, caught.value.found) == (f"{tmp_path}/d.npz has no array inputs", "images, y")


@pytest.mark.parametrize("options", [{"path": "no.npy"}, {"path": "x.npy", "labels": "no.npy"}])
def test_a_missing_file_is_named(npy: Any, tmp_path: Path, source: Make, options: Any) -> None:
    with pytest.raises(MissingSource) as caught:
        source(kind="arrays", **options).files()
    assert caught.value.what == f"there is no {tmp_path}/no.npy"
