"""ONNX graphs with an input for each column of a table, as skl2onnx and Keras write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from storage.cache import Cache
from storage.errors import BadTeacher
from tests.tables.toys import CACHE_JOB, customers, write_csv
from tests.teacher_cache.toys import build

TABLE = CACHE_JOB.split("[[teacher]]")[0]
TEACHER = '[[teacher]]\nname = "graph"\nkind = "onnx"\npath = "graph.onnx"\nbatch_size = 16\n'
CITIES = ["Bonn", "Köln", "Ulm"]
WEIGHTS = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
NUMBERS = {
    "age": TensorProto.FLOAT,
    "income": TensorProto.DOUBLE,
    "plan": TensorProto.INT64,
    "member": TensorProto.BOOL,
}


def graph(
    path: Path, *, rename: dict[str, str] | None = None, suffix: str = "", rank: int = 2, batch: object = "rows"
) -> None:
    """Write a graph of five inputs: numbers of four types, and a text that becomes its place among the cities."""
    names = {name: (rename or {}).get(name, name) + suffix for name in (*NUMBERS, "city")}
    shape = [batch, 1][:rank]
    inputs = [helper.make_tensor_value_info(names[name], kind, shape) for name, kind in NUMBERS.items()]
    inputs.insert(1, helper.make_tensor_value_info(names["city"], TensorProto.STRING, shape))
    nodes = [helper.make_node("Cast", [names[name]], [f"cast {name}"], to=TensorProto.FLOAT) for name in NUMBERS]
    nodes += [
        helper.make_node("IsNaN", ["cast age"], ["nothing"]),
        helper.make_node("Where", ["nothing", "middle", "cast age"], ["filled age"]),
        helper.make_node(
            "LabelEncoder", [names["city"]], ["place"], domain="ai.onnx.ml",
            keys_strings=CITIES, values_floats=[1.0, 2.0, 3.0], default_float=0.0,
        ),
        helper.make_node("Div", ["cast income", "thousand"], ["thousands"]),
    ]  # fmt: skip
    parts = ["filled age", "thousands", "cast plan", "cast member", "place", "one"]
    flat = []
    for name in parts[:-1]:
        nodes.append(helper.make_node("Reshape", [name, "column"], [f"flat {name}"]))
        flat.append(f"flat {name}")
    nodes += [
        helper.make_node("Mul", ["flat place", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "one"], ["ones"]),
        helper.make_node("Concat", [*flat, "ones"], ["features"], axis=1),
        helper.make_node("MatMul", ["features", "weights"], ["logits"]),
    ]
    stored = {
        "middle": np.float32(50), "thousand": np.float32(1000), "column": np.array([-1, 1]), "zero": np.float32(0),
        "one": np.float32(1), "weights": WEIGHTS / 50,
    }  # fmt: skip
    model = helper.make_graph(
        nodes,
        "columns",
        inputs,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(model, opset_imports=opsets, ir_version=9), path)


def by_hand(rows: Sequence[dict[str, str]]) -> np.ndarray:
    features = [
        [
            float(row["age"] or 50),
            float(row["income"]) / 1000,
            float(row["plan"]),
            float(row["member"] == "True"),
            1 + CITIES.index(row["city"]) if row["city"] else 0,
            1,
        ]
        for row in rows
    ]
    return np.array(features, np.float32) @ (WEIGHTS / 50)


@pytest.mark.parametrize(
    "written", [{}, {"suffix": ":0"}, {"rank": 1}, {"batch": 7}], ids=["skl2onnx", "keras", "flat", "fixed batch"]
)
def test_each_input_is_given_the_column_of_its_name(tmp_path: Path, written: dict[str, object]) -> None:
    rows = customers(60)
    write_csv(tmp_path / "customers.csv", rows)
    graph(tmp_path / "graph.onnx", **written)  # type: ignore[arg-type]
    (tmp_path / "job.toml").write_text(TABLE + TEACHER)
    assert build(tmp_path / "job.toml").exit_code == 0
    said = Cache.open(str(tmp_path / "cache")).read_targets("customers", "graph", 0)["logits"]
    assert np.allclose(said, by_hand(rows), rtol=1e-4, atol=1e-4)


def test_inputs_that_are_no_columns_are_named_before_a_row_is_read(tmp_path: Path) -> None:
    write_csv(tmp_path / "customers.csv", customers(60))
    graph(tmp_path / "graph.onnx", rename={"income": "incomes"})
    (tmp_path / "job.toml").write_text(TABLE + TEACHER)
    with pytest.raises(BadTeacher, match="has inputs that are no columns of the table") as refused:
        build(tmp_path / "job.toml")
    assert refused.value.found is not None
    assert refused.value.found.startswith("incomes, of age (rows, 1), city (rows, 1)")
    assert str(refused.value.do).endswith("is it income?")
    assert not (tmp_path / "cache/customers").exists()


def test_texts_and_gaps_are_not_given_to_inputs_of_numbers(tmp_path: Path) -> None:
    rows = customers(60)
    write_csv(tmp_path / "customers.csv", rows)
    graph(tmp_path / "graph.onnx", rename={"plan": "city", "city": "member", "member": "plan"})
    (tmp_path / "job.toml").write_text(TABLE + TEACHER)
    with pytest.raises(BadTeacher, match="takes numbers where the table has texts") as refused:
        build(tmp_path / "job.toml")
    assert "in column city" in str(refused.value.found)
    graph(tmp_path / "graph.onnx", rename={"plan": "age", "age": "plan"})
    with pytest.raises(BadTeacher, match="takes whole numbers, and column age has others") as gaps:
        build(tmp_path / "job.toml")
    assert gaps.value.found == "rows that have nothing there"


def one_input(path: Path, name: str, kind: int) -> None:
    """Write a graph of one column, whose logits are what it was given and zero."""
    of_texts = kind == TensorProto.STRING
    first = (
        helper.make_node(
            "LabelEncoder", [name], ["number"], domain="ai.onnx.ml",
            keys_strings=["1", "2", "3"], values_floats=[1.0, 2.0, 3.0], default_float=0.0,
        )
        if of_texts
        else helper.make_node("Cast", [name], ["number"], to=TensorProto.FLOAT)
    )  # fmt: skip
    nodes = [first, helper.make_node("MatMul", ["number", "weights"], ["logits"])]
    model = helper.make_graph(
        nodes,
        "column",
        [helper.make_tensor_value_info(name, kind, ["rows", 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([[1, -1]], np.float32), "weights")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(model, opset_imports=opsets, ir_version=9), path)


@pytest.mark.parametrize(
    ("kind", "income"),
    [(TensorProto.INT8, "300"), (TensorProto.UINT8, "-1"), (TensorProto.BOOL, "2"), (TensorProto.FLOAT16, "70000")],
)
def test_a_number_that_an_input_has_no_room_for_is_told(tmp_path: Path, kind: int, income: str) -> None:
    rows = [row | {"income": "1"} for row in customers(60)]
    rows[50]["income"] = income
    write_csv(tmp_path / "customers.csv", rows)
    one_input(tmp_path / "graph.onnx", "income", kind)
    (tmp_path / "job.toml").write_text(TABLE + TEACHER)
    with pytest.raises(BadTeacher, match="column income has a number that it has no room for") as refused:
        build(tmp_path / "job.toml")
    assert refused.value.found == income


def test_a_number_is_not_given_as_a_text_that_nobody_wrote(tmp_path: Path) -> None:
    write_csv(tmp_path / "customers.csv", customers(60))
    one_input(tmp_path / "graph.onnx", "plan", TensorProto.STRING)
    numbers = TABLE.replace('"plan", ', "").replace('"income"]', '"income", "plan"]')
    (tmp_path / "job.toml").write_text(numbers + TEACHER)
    with pytest.raises(BadTeacher, match="takes texts where the table has numbers") as refused:
        build(tmp_path / "job.toml")
    assert 'categorical = ["plan"]' in str(refused.value.do)
    (tmp_path / "job.toml").write_text(TABLE.replace('cache = "cache"', 'cache = "other"') + TEACHER)
    assert build(tmp_path / "job.toml").exit_code == 0  # as a category it is written as it was
    said = Cache.open(str(tmp_path / "other")).read_targets("customers", "graph", 0)["logits"]
    assert said[:, 0].tolist() == [float(row["plan"]) for row in customers(60)]


def test_an_order_of_inputs_that_are_found_by_their_names_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "customers.csv", customers(60))
    graph(tmp_path / "graph.onnx")
    named = 'input_names = ["age", "city", "income", "plan", "member"]\n'
    (tmp_path / "job.toml").write_text(TABLE + TEACHER + named)
    with pytest.raises(BadTeacher, match="each found by its name") as refused:
        build(tmp_path / "job.toml")
    assert refused.value.do == "leave `input_names` out"
    assert not (tmp_path / "cache/customers").exists()
