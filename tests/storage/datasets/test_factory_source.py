"""A user's own dataset."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.datasets import RawSample, Unreadable
from storage.errors import BadRequest, MissingSource

Make = Callable[..., Any]
ReadAll = Callable[..., list[RawSample]]
CODE = """
import numpy as np

class Squares:
    classes = ["even", "odd"]

    def __init__(self, rows, scale=1):
        self.rows, self.scale = rows, scale

    def __len__(self):
        return self.rows

    def __getitem__(self, i):
        if i == 2:
            raise OSError("disk on fire")
        return {"input": np.array([i * i * self.scale], np.float64), "label": i % 2, "id": f"sq-{i}"}

def bare(rows):
    return [{"input": np.full((1, 2), i, np.uint8)} for i in range(rows)]

def odd(what):
    return [{"input": {"ints": np.arange(3), "text": "abc", "bools": np.array([True])}[what]}, {"label": 0}, 3]

def number():
    return 7

def broken():
    raise RuntimeError("no data today")

def leaves():
    raise SystemExit(0)

class Listed:
    ids = ["x", "y", "z"]

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __len__(self):
        return 3

    def __getitem__(self, i):
        if i:
            raise [OSError("gone"), SystemExit(0)][i - 1]
        return {"input": np.zeros(1)}

class Endless(list):
    def __len__(self):
        raise RuntimeError("no end")

calls = []

def counted():
    calls.append(1)
    return [{"input": np.full(len(calls), 0.0)}]
"""


@pytest.fixture
def own(tmp_path: Path, source: Make) -> Make:
    (tmp_path / "mine.py").write_text(CODE)
    return lambda function, **arguments: source(kind="factory", factory=f"mine.py:{function}", arguments=arguments)


def test_items_become_samples(own: Make, read_all: ReadAll) -> None:
    samples = read_all(own("Squares", rows=2, scale=3))
    assert [(s.sample_id, s.payload.tolist(), s.label) for s in samples] == [("sq-0", [0.0], 0), ("sq-1", [3.0], 1)]  # type: ignore[union-attr]


def test_floats_become_float32(own: Make, read_all: ReadAll) -> None:
    assert read_all(own("Squares", rows=1))[0].payload.dtype == np.float32  # type: ignore[union-attr]


def test_label_and_id_may_be_absent(own: Make, read_all: ReadAll) -> None:
    assert [(s.sample_id, s.label) for s in read_all(own("bare", rows=2))] == [("0", None), ("1", None)]


def test_an_item_that_raises_is_unreadable_and_the_others_are_not(own: Make, read_all: ReadAll) -> None:
    samples = read_all(own("Squares", rows=4))
    reasons = [str(s.payload) if isinstance(s.payload, Unreadable) else None for s in samples]
    assert reasons == [None, None, "OSError: disk on fire", None]


@pytest.mark.parametrize(("what", "dtype"), [("ints", "int64"), ("text", "<U3"), ("bools", "bool")])
def test_an_input_of_another_kind_is_unreadable(own: Make, what: str, dtype: str) -> None:
    (sample,) = own("odd", what=what).read("factory", 0, 1)
    assert str(sample.payload) == f"TypeError: input is {dtype}, not uint8 or floats"


@pytest.mark.parametrize("position", [1, 2])
def test_an_item_that_is_none_is_unreadable(own: Make, position: int) -> None:
    (sample,) = own("odd", what="ints").read("factory", position, 1)
    assert isinstance(sample.payload, Unreadable)


def test_class_names_are_an_attribute(own: Make) -> None:
    assert (own("Squares", rows=1).class_names(), own("bare", rows=1).class_names()) == (["even", "odd"], [])


def test_the_length_is_the_rows(own: Make) -> None:
    assert own("Squares", rows=9).files()["rows"].to_list() == [9]


def test_changed_code_changes_version_and_content(own: Make, tmp_path: Path) -> None:
    dataset = own("Squares", rows=1)
    before = (dataset.files()["version"][0], dataset.content())
    (tmp_path / "mine.py").write_text(CODE.replace("i * i", "i * i * i"))
    assert [dataset.files()["version"][0] != before[0], dataset.content() != before[1]] == [True, True]


def test_the_folder_of_the_code_is_not_content(own: Make, tmp_path: Path) -> None:
    assert str(tmp_path) not in str(own("Squares", rows=1).content())


def test_what_is_no_dataset_is_told(own: Make, tmp_path: Path) -> None:
    with pytest.raises(MissingSource) as caught:
        own("number").files()
    assert (caught.value.what, caught.value.found) == (f"{tmp_path}/mine.py:number did not return a dataset", "int")


@pytest.mark.parametrize(
    ("function", "found"),
    [
        ("broken", "RuntimeError: no data today"),
        ("Squares", "TypeError"),
        ("leaves", "SystemExit: 0"),
        ("Endless", "RuntimeError: no end"),
    ],
)
def test_a_factory_that_fails_is_told_without_a_traceback(own: Make, function: str, found: str) -> None:
    with pytest.raises(BadRequest) as caught:
        own(function).files()
    assert found in (caught.value.found or "")


def test_a_dataset_that_lists_its_ids_keeps_them_for_items_that_cannot_be_read(own: Make, read_all: ReadAll) -> None:
    samples = read_all(own("Listed"))
    reasons = [str(s.payload) if isinstance(s.payload, Unreadable) else None for s in samples]
    assert ([s.sample_id for s in samples], reasons) == (["x", "y", "z"], [None, "OSError: gone", "SystemExit: 0"])


def test_the_version_of_a_dataset_is_part_of_its_files_version(own: Make) -> None:
    versions = [own("Listed", **given).files()["version"][0] for given in ({}, {"version": "1"}, {"version": "2"})]
    assert versions == [versions[0], f"{versions[0]}+1", f"{versions[0]}+2"]


@pytest.mark.parametrize("classes", [3, "ab", [1, 2], True])
def test_classes_that_are_no_list_of_names_are_told(own: Make, classes: object) -> None:
    with pytest.raises(MissingSource) as caught:
        own("Listed", classes=classes).class_names()
    assert caught.value.found == f"classes = {classes!r}"


def test_a_version_that_is_no_text_is_told(own: Make) -> None:
    with pytest.raises(MissingSource) as caught:
        own("Listed", version=3).files()
    assert caught.value.found == "version = 3"


def test_a_factory_is_called_once(own: Make) -> None:
    dataset = own("counted")
    dataset.files()
    dataset.class_names()
    (sample,) = dataset.read("factory", 0, 1)
    assert sample.payload.shape == (1,)


def test_each_thread_has_a_dataset_of_its_own(own: Make) -> None:
    dataset = own("counted")
    dataset.files()
    with ThreadPoolExecutor(1) as pool:
        (sample,) = pool.submit(lambda: list(dataset.read("factory", 0, 1))).result()
    assert sample.payload.shape == (2,)
