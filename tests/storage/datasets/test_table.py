"""Tables: columns by name, what is told or refused of them, and that what was learned once stays."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from storage.datasets import RawSample, Unreadable
from storage.datasets.samples import rows_of
from storage.datasets.table import Layout, TableSource
from storage.errors import BadRequest, LabelOutOfRange, MissingSource
from storage.inputs import INPUTS

Make = Callable[..., Any]
ReadAll = Callable[..., list[RawSample]]
NEW_CITY = (
    "column city has 'Rom', which was in no row when its 2 categories were learned; "
    'unseen = "zeros" in its [[dataset]] takes such rows'
)
TABLE = "age,city,churn\n30,Ulm,yes\n,Bonn,no\n50,,no\n40,Ulm,yes\n"


@pytest.fixture
def table(tmp_path: Path, source: Make) -> Callable[..., TableSource]:
    """Return a source of a table with this text."""

    def make(text: str = TABLE, **options: Any) -> TableSource:
        (tmp_path / "t.csv").write_text(text)
        made: TableSource = source(**{"kind": "table", "path": "t.csv", "label": "churn"} | options)
        return made

    return make


def rows(samples: list[RawSample]) -> list[Any]:
    return [str(s.payload) if isinstance(s.payload, Unreadable) else s.payload.tolist() for s in samples]  # type: ignore[union-attr]


def refused(table: TableSource) -> str:
    with pytest.raises((BadRequest, MissingSource)) as error:
        table.content()
    return str(error.value)


def test_a_row_is_its_numbers_and_a_place_for_each_category(table: Any, read_all: ReadAll) -> None:
    made = table()
    assert Layout.promised(made.content()).places == ["age", "age missing", "city=Bonn", "city=Ulm", "city missing"]
    samples = read_all(made)
    assert rows(samples) == [[30, 0, 0, 1, 0], [40, 1, 1, 0, 0], [50, 0, 0, 0, 1], [40, 0, 0, 1, 0]]  # 40: the mean
    assert [(s.sample_id, s.label) for s in samples] == [("t.csv:0", 1), ("t.csv:1", 0), ("t.csv:2", 0), ("t.csv:3", 1)]
    assert made.class_names() == ["no", "yes"]


def test_a_teacher_is_given_the_columns_again(table: Any, read_all: ReadAll) -> None:
    made = table("age,zip,code,on,churn\n0.1,01067,3,true,a\n,53111,,false,b\n7,01067,4,true,a\n")
    found = Layout.promised(made.content()).table(np.stack([s.payload for s in read_all(made)]))  # type: ignore[misc]
    assert found["age"] == [0.1, None, 7.0]  # of the float32 the shortest decimal
    assert found["zip"] == ["01067", "53111", "01067"]  # with its nought
    assert (found["code"], found["on"]) == ([3.0, None, 4.0], [True, False, True])


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "csv.gz"])
def test_every_kind_of_file_has_the_same_rows(tmp_path: Path, source: Make, read_all: ReadAll, suffix: str) -> None:
    columns = {"n": [1.5, None, 3.0], "code": [1, 2, 1], "on": [True, False, None], "c": ["a", "b", None]}
    if suffix == "parquet":
        pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=2)
    else:
        between = "\t" if suffix == "tsv" else ","
        lines = [[*columns], *zip(*columns.values(), strict=True)]
        text = "\n".join(between.join("" if cell is None else str(cell) for cell in line) for line in lines)
        with pa.output_stream(str(tmp_path / f"t.{suffix}"), compression="detect") as file:
            file.write(text.encode())
    made = source(kind="table", path=f"t.{suffix}", numeric=["n"], categorical=["on", "code"], label="c")
    assert rows(read_all(made)) == [
        [1.5, 0, 0, 1, 0, 1, 0], [2.25, 1, 1, 0, 0, 0, 1], [3, 0, 0, 0, 1, 1, 0],
    ]  # fmt: skip
    assert [s.label for s in read_all(made)] == [0, 1, None]
    assert [s.sample_id for s in made.read(f"t.{suffix}", 2, 1)] == [f"t.{suffix}:2"]


def test_another_file_is_read_by_the_promise_in_any_order_of_columns(table: Any, tmp_path: Path) -> None:
    promise = table().content()
    (tmp_path / "new.csv").write_text("city,extra,age\nUlm,x,20\n,x,\nRom,x,3\nBonn,x,old\n")
    other = TableSource.like(promise, tmp_path / "new.csv")
    assert rows(list(other.read("new.csv", 0, 4))) == [
        [20, 0, 0, 1, 0],
        [40, 1, 0, 0, 1],
        NEW_CITY,
        "column age has no number: 'old'",
    ]
    (tmp_path / "less.csv").write_text("City,extra,age\nUlm,x,20\n")
    with pytest.raises(MissingSource, match="has no column city") as error:
        list(TableSource.like(promise, tmp_path / "less.csv").read("less.csv", 0, 1))
    assert error.value.do == "is it City?"


def test_what_was_learned_stays_when_a_table_grows(table: Any, read_all: ReadAll) -> None:
    first = table().content()
    grown = table(TABLE + "90,Rom,no\n,Ulm,yes\n").as_promised(first)
    assert grown.content() == first
    assert grown.class_names() == ["no", "yes"]
    assert rows(read_all(grown))[4:] == [
        NEW_CITY,
        [40, 1, 0, 1, 0],
    ]
    zeros = table(TABLE + "90,Rom,no\n", unseen="zeros").as_promised(first | {"unseen": "zeros"})
    assert rows(read_all(zeros))[4] == [90, 0, 0, 0, 0]
    assert table(numeric=["age"]).as_promised(first).content()["columns"] == {"age": {"kind": "number"}}
    assert table(TABLE + "9,Ulm,perhaps\n").as_promised(first).class_names() == ["no", "yes", "perhaps"]


def test_means_and_deviations_are_of_rows_that_are_trained_on(table: Any, read_all: ReadAll) -> None:
    text = "n,churn\n" + "".join(f"{2**20 + n % 7},{'ab'[n % 2]}\n" for n in range(200))
    made = table(text, validation=0.3)
    own = [float(s.payload[0]) for s in read_all(made) if made.split_of(s.sample_id) == "train"]  # type: ignore[index]
    promised = made.content()["columns"]["n"]
    assert promised["mean"] == pytest.approx(np.mean(own), rel=1e-12)
    assert promised["std"] == pytest.approx(np.std(np.array(own, np.float64)), rel=1e-9)


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("n,churn\n1,a\nunknown,b\n2,a\n", {}, "n: numbers, and 'unknown'; if that means that there is none, miss"),
        ("n,churn\n1,a\n1_000,b\n", {"numeric": ["n"]}, "n: '1_000', which is no number"),
        ('n,churn\n"1,200",a\n950,b\n"2,100",a\n', {}, "n: '1,200', a number as people write it"),
        ('n,churn\n"1,5",a\n"1,5",b\n', {"numeric": ["n"]}, "n: '1,5', a number as people write it"),
        ("n,churn\n5 %,a\n7 %,b\n", {}, 'or categorical = ["n"], if it is a code'),
        ("n,churn\n9007199254740993,a\n1,b\n", {}, "n: 9007199254740993, and float32"),
        ("n,churn\n16777217,a\n1,b\n", {}, "n: 16777217, and float32 has each whole number up to 16,777,216 alone"),
        ("when,churn\n" + "".join(f"2026-01-{d:02d},a\n" for d in range(1, 25)), {}, "when: another text in every row"),
        ("c,churn\n" + "".join(f"x{d % 30},a\n" for d in range(90)), {"most_categories": 9}, "c: more than most_cat"),
        ("n,churn\n,a\n,b\n", {"numeric": ["n"]}, "n: nothing in any row"),
        ("churn\na\nb\n", {}, "has no column to learn from"),
        ("n,n,churn\n1,2,a\n", {}, "has two columns 'n'"),
        ("n;churn\n1;a\n", {}, "delimiter = ';'"),
        ("n,churn\n1,0.5\n2,0.7\n", {}, "holds no classes"),
        ("n,churn\n1,\n2,\n", {}, "has no label in column churn"),
        ("", {}, "is empty"),
        ("n,churn\n\"1,a\n", {}, "cannot be read as a table"),
    ],
)  # fmt: skip
def test_columns_that_are_not_what_they_are_to_be_are_refused(
    table: Any, text: str, options: dict[str, Any], told: str
) -> None:
    assert told in refused(table(text, **options)), refused(table(text, **options))


def test_all_columns_that_are_wrong_are_told_at_once(table: Any) -> None:
    found = refused(table("a,b,churn\nx,1e99,y\n2,3,z\n", numeric=["a", "b", "c"]))
    assert "has no column c" in found
    found = refused(table("a,b,churn\nx,20000001,y\n2,3,z\n", numeric=["a", "b"]))
    assert "a: 'x'" in found
    assert "b: 20000001" in found


@pytest.mark.parametrize("options", [{}, {"most_categories": 9}])
def test_a_column_that_may_name_the_rows_is_told_what_to_write(
    table: Any, read_all: ReadAll, options: dict[str, Any]
) -> None:
    text = "key,n,churn\n" + "".join(f"H{row},{row % 7},a\n" for row in range(30))
    assert '; or id = "key", if it names the row' in refused(table(text, **options))
    assert [row.sample_id for row in read_all(table(text, **options, id="key"))][:2] == ["H0", "H1"]


def test_what_is_odd_is_told(table: Any) -> None:
    lines = [f"{n},{'NA' if n % 3 else 'x'},7,,{'ab'[n % 2]}" for n in range(30)]
    notes = table("\n".join(["id,c,same,none,churn", *lines]), validation=0.0).notes()
    assert notes == [
        "2 of numbers: id, same; 1 of categories: c (2)",
        "column id counts the rows: leave it out, if it is their number",
        'column c has "NA" as a category; if that means nothing, missing = ["NA"]',
        "column same has '7' in every row, which tells nothing",
        "left out: column none, which has nothing in any row",
    ]
    assert "left out: column c, same" in table("id,c,same,churn\n1,x,7,a\n", numeric=["id"]).notes()


def test_codes_that_no_float_can_tell_apart_are_two_categories(table: Any, read_all: ReadAll) -> None:
    first, second = 2**53, 2**53 + 1
    made = table(f"k,churn\n{first},a\n{second},b\n", categorical=["k"])
    assert Layout.promised(made.content()).places == [f"k={first}", f"k={second}"]
    assert rows(read_all(made)) == [[1, 0], [0, 1]]


def test_amounts_that_are_said_to_be_categories_are_some(table: Any) -> None:
    made = table('n,churn\n"1,5",a\n"2,0",b\n', categorical=["n"])
    assert Layout.promised(made.content()).places == ["n=1,5", "n=2,0"]


def test_the_number_of_a_row_that_pandas_writes_is_left_out_and_told(table: Any, tmp_path: Path, source: Make) -> None:
    made = table(",x,churn\n4,1,a\n9,2,b\n")
    assert (made.notes()[0], made.notes()[-1]) == ("1 of numbers: x", "left out: column without a name")
    pq.write_table(pa.table({"x": [1], "__index_level_0__": [7], "y": ["a"]}), tmp_path / "t.parquet")
    made = source(kind="table", path="t.parquet", label="y")
    assert made.content()["order"] == ["x"]
    assert made.notes()[-1] == "left out: column __index_level_0__"


def test_a_column_that_a_later_file_alone_has_is_told(tmp_path: Path, source: Make) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.csv").write_text("x,y\n1,a\n2,b\n")
    (tmp_path / "d/b.csv").write_text("z,y,x\n1,a,3\n")
    assert source(kind="table", path="d", label="y").notes()[-1] == "left out: column z"


def test_a_target_that_tells_nothing_is_told(table: Any) -> None:
    notes = table("x,p\n1,5\n2,5\n3,\n", label=None, target="p").notes()
    assert notes[1:] == [
        "target p has nothing in 1 of 3 rows, which have no answer",
        "target p is '5' in every row: there is nothing to tell",
    ]


def test_dates_of_parquet_are_refused_with_what_to_do(tmp_path: Path, source: Make) -> None:
    pq.write_table(pa.table({"d": [datetime.date(2026, 1, 1)], "y": ["a"]}), tmp_path / "t.parquet")
    assert "make a number of the date" in refused(source(kind="table", path="t.parquet", label="y"))


def test_rounding_is_allowed_by_name_alone(table: Any, read_all: ReadAll) -> None:
    made = table("n,churn\n16777217,a\n1,b\n", rounded=["n"])
    assert rows(read_all(made)) == [[16777216], [1]]


def test_a_line_of_other_fields_is_set_aside_and_a_strange_label_is_refused(table: Any, read_all: ReadAll) -> None:
    assert rows(read_all(table("n,churn\n1,a\n2\n3,b\n")))[1] == "line 3 has 1 fields, the first line has 2"
    with pytest.raises(LabelOutOfRange, match="a label that is no class"):
        read_all(table("n,churn\n1,a\n3,b\n", classes=["a"]))


def test_ids_and_options_that_would_give_the_answer_away(table: Any, read_all: ReadAll) -> None:
    made = table("n,key,churn\n1,k7,a\n2,,b\n", id="key")
    assert [s.sample_id for s in read_all(made)] == ["k7", "t.csv:1"]
    assert rows(read_all(made))[1] == "column key has no id"
    for options in ({"numeric": ["churn"]}, {"id": "n", "numeric": ["n"]}, {"numeric": ["n", "n"]}):
        with pytest.raises(ValidationError, match=r"taken|twice"):
            table("n,churn\n1,a\n", **options)


def test_rows_of_ones_own_go_by_the_names_of_columns(table: Any) -> None:
    promise = table().content()
    shown = rows_of(
        [{"city": "Ulm", "age": 3, "x": 1}, {"age": None, "city": None}], promise, INPUTS["values"], (5,), None
    )
    assert shown.tolist() == [[3, 0, 0, 1, 0], [40, 1, 0, 0, 1]]
    with pytest.raises(BadRequest, match="a row has no column city"):
        rows_of([{"age": 3}], promise, INPUTS["values"], (5,), None)
