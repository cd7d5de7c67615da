"""Customers in a table, of whom some leave; and a pipeline of scikit-learn that was fitted on its columns."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

COLUMNS = ("age", "income", "city", "plan", "member", "churn")
CITIES = ("Bonn", "Köln", "Ulm")


def customers(rows: int, seed: int = 0) -> list[dict[str, str]]:
    """Return rows as a file has them: some lack an age, some a city."""
    draw = random.Random(seed)
    found = []
    for _ in range(rows):
        age, city, plan = draw.randint(18, 80), draw.choice(CITIES), draw.choice("123")
        member = draw.choice(["True", "False"])
        leaves = (age < 40) + (city == "Ulm") + (plan == "3") - (member == "True") + draw.gauss(0, 0.3) > 0.8
        found.append(
            {
                "age": "" if draw.random() < 0.05 else str(age),
                "income": f"{draw.uniform(20_000, 90_000):.2f}",
                "city": "" if draw.random() < 0.05 else city,
                "plan": plan,
                "member": member,
                "churn": "yes" if leaves else "no",
            }
        )
    return found


def write_csv(
    path: Path, rows: Sequence[dict[str, str]], columns: Sequence[str] = COLUMNS, delimiter: str = ","
) -> Path:
    """Write some columns of rows, in this order."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([columns, *([row[name] for name in columns] for row in rows)])
    return path


def fitted(rows: Sequence[dict[str, str]]) -> Any:
    """Return a pipeline fitted on the columns by their names."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    columns = ColumnTransformer(
        [
            ("numbers", SimpleImputer(), ["age", "income"]),
            ("categories", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["city", "plan", "member"]),
        ]
    )
    model = make_pipeline(columns, GradientBoostingClassifier(n_estimators=20, random_state=0))
    return model.fit(frame(rows), [row["churn"] for row in rows])


def frame(rows: Sequence[dict[str, str]]) -> pl.DataFrame:
    """Return rows as a reader of tables has them: numbers, booleans, NaN for nothing."""
    nan = float("nan")
    return pl.DataFrame(
        {
            "age": [float(row["age"] or nan) for row in rows],
            "income": [float(row["income"]) for row in rows],
            "city": pl.Series([row["city"] or nan for row in rows], dtype=pl.Object),
            "plan": [int(row["plan"]) for row in rows],
            "member": [row["member"] == "True" for row in rows],
        }
    )


CACHE_JOB = """cache = "cache"

[[dataset]]
name = "customers"
kind = "table"
path = "customers.csv"
label = "churn"
categorical = ["city", "plan", "member"]
numeric = ["age", "income"]
validation = 0.25

[[teacher]]
name = "boosted"
kind = "sklearn"
path = "model.skops"
trust_types = ["numpy.dtype", "sklearn.tree._tree.Tree"]
"""

STUDENT_JOB = """cache = "cache"
runs = "runs"
train = "customers/train"
validation = "customers/validation"

[[student]]
name = "small"
architecture = "mlp"
options = { hidden = [16] }
epochs = 20
batch_size = 32
learning_rate = 0.01

[[student.objective]]
loss = "kd"
teacher = "boosted"
"""


def houses(rows: int, seed: int = 0) -> list[dict[str, str]]:
    """Return rows whose `price` is a number that the others tell."""
    draw = random.Random(seed)
    found = []
    for _ in range(rows):
        rooms, city = draw.randint(1, 6), draw.choice(CITIES)
        price = 100_000 + 50_000 * rooms + 80_000 * (city == "Bonn") + draw.gauss(0, 5_000)
        found.append({"rooms": str(rooms), "city": city, "price": f"{price:.2f}"})
    return found


def regressor(rows: Sequence[dict[str, str]]) -> Any:
    """Return a pipeline fitted on the columns by their names, to tell the price."""
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    columns = ColumnTransformer([("c", OneHotEncoder(), ["city"])], remainder="passthrough")
    given = pl.DataFrame({"city": [row["city"] for row in rows], "rooms": [int(row["rooms"]) for row in rows]})
    return make_pipeline(columns, LinearRegression()).fit(given, [float(row["price"]) for row in rows])


HOUSES_JOB = """cache = "cache"

[[dataset]]
name = "houses"
kind = "table"
path = "houses.csv"
target = "price"
validation = 0.25

[[teacher]]
name = "linear"
kind = "sklearn"
path = "linear.skops"
trust_types = ["numpy.dtype"]
encoding = { kind = "vectors" }
"""

HOUSES_STUDENTS = """cache = "cache"
runs = "runs"
train = "houses/train"
validation = "houses/validation"

[defaults]
architecture = "mlp"
options = { hidden = [16] }
epochs = 30
batch_size = 16
learning_rate = 0.02

[[student]]
name = "alone"
objective = [{ loss = "target_mse" }]

[[student]]
name = "taught"
objective = [{ loss = "target_mse" }, { loss = "vector_mse", teacher = "linear" }]
"""
