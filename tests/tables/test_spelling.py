"""Categories that an encoder knows under another spelling: it would take them for nothing it knows, and say nothing."""

from __future__ import annotations

import polars as pl
import pytest

from storage.datasets.table import Layout
from storage.datasets.table.layout import CategoryColumn
from storage.errors import BadTeacher
from teacher_cache.teachers.kinds.sklearn_columns import ByName


def asked(known: list[str | float], *values: str) -> ByName:
    """Return the columns of a table with these values for an encoder that was fitted on others."""
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import OneHotEncoder

    encoder = OneHotEncoder(handle_unknown="ignore")
    frame = pl.DataFrame([pl.Series("c", known, pl.Object)])
    fitted = ColumnTransformer([("c", encoder, ["c"])]).fit(frame)
    return ByName(Layout([CategoryColumn(name="c", type="text", values=values, missing=False)]), fitted, "model")


def test_categories_that_an_encoder_knows_otherwise_written_are_refused() -> None:
    with pytest.raises(BadTeacher) as error:
        asked(["Ulm", " Bonn", "yes"], "Ulm", "Bonn", "Yes")
    assert "knows categories of column c as something else" in str(error.value)
    assert "' Bonn'" in str(error.value)
    assert "'yes'" in str(error.value)


def test_a_word_for_nothing_that_an_encoder_knows_as_nothing_is_refused() -> None:
    with pytest.raises(BadTeacher, match=r'missing = \["NA"\]'):
        asked(["Ulm", float("nan")], "Ulm", "NA")


def test_categories_that_an_encoder_does_not_know_at_all_are_ignored_by_it() -> None:
    assert asked(["Ulm", "Bonn"], "Ulm", "Köln").layout.places == ["c=Ulm", "c=Köln"]
