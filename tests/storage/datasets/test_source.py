"""What all sources share: permanent ids, digests, splits, labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from storage.datasets import AnySource, RawSample, Unreadable, check_label
from storage.datasets.digits import DigitsSource
from storage.digests import digest
from storage.errors import LabelOutOfRange

IDS = st.lists(st.text(max_size=8), unique=True, max_size=30)


def digits(validation: float = 0.3, seed: int = 0) -> DigitsSource:
    return DigitsSource(kind="digits", name="d", validation=validation, seed=seed)


@given(IDS, IDS)
def test_growth_moves_no_sample_to_another_split(before: list[str], added: list[str]) -> None:
    source = digits()
    splits = {name: source.split_of(name) for name in before}
    assert {name: digits().split_of(name) for name in [*added, *before] if name in splits} == splits


def test_a_split_has_its_share() -> None:
    share = sum(digits().split_of(f"s{i}") == "validation" for i in range(10_000)) / 10_000
    assert share == pytest.approx(0.3, abs=0.02)  # four standard deviations


def test_another_seed_is_another_split() -> None:
    assert [digits(seed=0).split_of(f"{i}") for i in range(50)] != [digits(seed=1).split_of(f"{i}") for i in range(50)]


@given(st.text())
def test_without_a_share_all_is_for_training(sample_id: str) -> None:
    assert digits(validation=0.0).split_of(sample_id) == "train"


@given(st.text(max_size=5), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_larger_share_only_adds(sample_id: str, one: float, two: float) -> None:
    small, large = sorted([one, two])
    assert (digits(small).split_of(sample_id), digits(large).split_of(sample_id)) != ("validation", "train")


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValidationError):
        digits(validation=share)


def test_an_unknown_kind_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValidationError, match=r"digits.*image_folder.*parquet_images.*arrays.*factory"):
        TypeAdapter(AnySource).validate_python({"kind": "digit", "name": "d"})


@pytest.mark.parametrize("label", [None, 0, 2])
def test_a_label_that_is_a_class_passes(label: int | None) -> None:
    check_label(label, ["a", "b", "c"], "s")


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes_is_named(label: int) -> None:
    with pytest.raises(LabelOutOfRange) as caught:
        check_label(label, ["a", "b", "c"], "s7")
    assert (caught.value.what, caught.value.found, caught.value.expected) == (
        "sample s7 has a label outside the classes",
        f"label {label}",
        "0 to 2 (a, b, c)",
    )


def test_a_label_where_there_are_no_classes_says_so() -> None:
    with pytest.raises(LabelOutOfRange) as caught:
        check_label(0, [], "s")
    assert caught.value.expected == "no label: the dataset names no classes"


@pytest.mark.parametrize(
    "other", [RawSample("a", b"pixelz", 1), RawSample("a", b"pixels", 2), RawSample("a", b"pixels", None)]
)
@pytest.mark.parametrize("version", [2, 3])
def test_a_digest_changes_with_content_and_label(other: RawSample, version: int) -> None:
    assert other.digests(version) != RawSample("a", b"pixels", 1).digests(version)


@pytest.mark.parametrize("version", [2, 3])
def test_a_digest_does_not_change_with_the_id(version: int) -> None:
    assert RawSample("b", b"pixels", 1).digests(version) == RawSample("a", b"pixels", 1).digests(version)


def test_content_and_label_are_digested_apart() -> None:
    was, relabelled, repainted = (
        sample.digests(3)
        for sample in (RawSample("a", b"pixels", 1), RawSample("a", b"pixels", 2), RawSample("a", b"pixelz", 1))
    )
    assert [name for name in was if was[name] != relabelled[name]] == ["label_digest"]
    assert [name for name in was if was[name] != repainted[name]] == ["payload_digest"]


def test_format_2_digests_both_together() -> None:
    assert RawSample("a", b"pixels", 1).digests(2) == {"digest": digest(b"pixels|1")}


def test_the_digest_of_an_array_is_that_of_its_values() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert RawSample("a", np.asfortranarray(array), 0).digests(3) == RawSample("a", array, 0).digests(3)


def test_an_unreadable_sample_has_no_digest() -> None:
    sample = RawSample("a", Unreadable("gone"), 0)
    assert (sample.digests(2), sample.digests(3)["payload_digest"]) == ({"digest": ""}, "")


# --- digits


def test_digits_are_the_real_ones(source: Callable[..., Any], read_all: Callable[..., list[RawSample]]) -> None:
    from sklearn.datasets import load_digits

    samples = read_all(source(kind="digits"))
    pixels = np.stack([sample.payload for sample in samples])  # type: ignore[misc]
    expected = load_digits()
    assert (pixels.shape, pixels.dtype, [sample.label for sample in samples]) == (
        (1797, 1, 8, 8),
        np.uint8,
        expected.target.tolist(),
    )
    assert np.array_equal(np.round(pixels[:, 0] * (16 / 255)), expected.images)


def test_any_part_of_digits_can_be_read(source: Callable[..., Any]) -> None:
    assert [sample.sample_id for sample in source(kind="digits").read("digits", 5, 2)] == ["digits:5", "digits:6"]


def test_digits_have_ten_classes(source: Callable[..., Any]) -> None:
    assert source(kind="digits").class_names() == list("0123456789")


def test_the_content_of_a_source_names_what_decides_it(source: Callable[..., Any]) -> None:
    assert source(kind="digits", seed=3, rows_per_shard=100).content() == {
        "kind": "digits",
        "validation": 0.0,
        "seed": 3,
    }
