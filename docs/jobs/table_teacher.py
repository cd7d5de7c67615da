"""Two pipelines of scikit-learn on a table of diamonds, fitted on columns by name: the teachers of `table.cache.toml`.

    python docs/jobs/table_teacher.py diamonds.csv FOLDER

`diamonds.csv` comes with the package `plotnine` (53,940 stones: carat, cut, color, clarity, depth, table, price, x, y,
z). Its rows are written to FOLDER by their number: two fifths to `teacher.csv`, on which the teachers are fitted; two
to `rows.csv`, which the job reads; one to `test.csv`. `price.skops` tells the price, `cut.skops` the cut, of five. It
needs Stillroom's extra `sklearn`.
"""

import sys
from pathlib import Path

import polars as pl
import skops.io
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder

CATEGORIES = {"price": ["cut", "color", "clarity"], "cut": ["color", "clarity"]}
PARTS = {"teacher": (0, 1), "rows": (2, 3), "test": (4,)}  # of five


def pipeline(categories: list[str], numbers: list[str], model: object) -> Pipeline:
    """Return a pipeline that takes columns by their names."""
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = ColumnTransformer([("categories", encoder, categories), ("numbers", "passthrough", numbers)])
    return make_pipeline(columns, model)


def main(source: str, folder: str) -> None:
    """Part the table, fit both teachers, and say how good they are on `test.csv`."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    table = pl.read_csv(source).with_row_index("number")
    parts = {name: table.filter(pl.col("number").mod(5).is_in(at)).drop("number") for name, at in PARTS.items()}
    for name, part in parts.items():
        part.write_csv(out / f"{name}.csv")
    for answer, model in (("price", HistGradientBoostingRegressor()), ("cut", HistGradientBoostingClassifier())):
        numbers = [name for name in ("carat", "depth", "table", "x", "y", "z", "price") if name != answer]
        asked = [*CATEGORIES[answer], *numbers]
        fitted = pipeline(CATEGORIES[answer], numbers, model).fit(parts["teacher"][asked], parts["teacher"][answer])
        skops.io.dump(fitted, out / f"{answer}.skops")
        print(f"{answer}.skops: {fitted.score(parts['test'][asked], parts['test'][answer]):.4f} of test.csv")


if __name__ == "__main__":
    main(*sys.argv[1:])
