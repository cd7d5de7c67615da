"""Digests, fingerprints and the one source of chance."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.digests import differences, digest, fingerprint, unit_interval

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def test_an_empty_digest_is_xxh3s_own() -> None:
    assert digest(b"") == "99aa06d3014798d86001c324468d497f"  # XXH3_128bits of nothing, from the xxHash repository


def test_the_order_of_keys_does_not_matter() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_the_order_of_a_list_does() -> None:
    assert fingerprint([1, 2]) != fingerprint([2, 1])


@given(JSON)
def test_a_fingerprint_survives_json(meaning: object) -> None:
    assert fingerprint(json.loads(json.dumps(meaning))) == fingerprint(meaning)


def test_what_is_no_json_number_has_no_fingerprint() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint(float("nan"))


def test_differences_name_every_leaf() -> None:
    found = {"a": 1, "deep": {"b": [1], "same": 0}, "only": True}
    expected = {"a": 2, "deep": {"b": [1, 2], "same": 0}}
    assert differences(found, expected) == [("a", 1, 2), ("deep.b", [1], [1, 2]), ("only", True, None)]


@given(JSON)
def test_a_value_does_not_differ_from_itself(meaning: object) -> None:
    assert differences(meaning, json.loads(json.dumps(meaning))) == []


@given(st.lists(st.text(max_size=4) | st.integers(), max_size=3))
def test_chance_lies_in_the_unit_interval(parts: list[object]) -> None:
    assert 0 <= unit_interval(*parts) < 1


def test_chance_is_the_same_on_every_machine() -> None:
    assert unit_interval("split", 0, "digits:7") == 0.021751205432482497


def test_chance_is_even() -> None:
    share = sum(unit_interval("split", 0, f"s{i}") < 0.25 for i in range(10_000)) / 10_000
    assert share == pytest.approx(0.25, abs=0.02)  # four standard deviations
