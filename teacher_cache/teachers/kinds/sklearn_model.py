"""A classifier or regressor of scikit-learn as a torch module.

Shapes: B rows of a batch, F features of a row, C classes.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from storage.datasets.table import Layout
from storage.errors import BadTeacher
from storage.format.specs import DatasetSpec
from storage.tasks import task_of
from teacher_cache.teachers.kinds.sklearn_columns import ByName
from teacher_cache.teachers.probabilities import logits_from
from teacher_cache.teachers.runtime import Runtime, as_tensor, host_array

NUMBERS = "predict"  # the method of a regressor


class SklearnModel(Runtime):
    """Its rows are flat, (B, F) float64, or a table's columns by name; its answer is logits (B, C) float32.

    Args:
        path: of its file.
        estimator: fitted.
        method: `predict_proba`, `decision_function`, or of a regressor `predict`.
        digest: of its file.
        classes: the names that the job gives its scores.
    """

    def __init__(self, path: Path, estimator: Any, method: str, digest: str, classes: list[str] | None):
        super().__init__(digest, path.stat().st_size)
        self._path, self._estimator, self._method = path, estimator, method
        scored = getattr(estimator, "classes_", None)
        if method == NUMBERS:
            scored = classes = None
        elif scored is None or getattr(scored, "ndim", 0) != 1:
            raise BadTeacher(f"the {type(estimator).__name__} in {path} is no classifier of one class for each row")
        if classes is not None and scored is not None and len(classes) != len(scored):
            raise BadTeacher(
                f"the {type(estimator).__name__} in {path} has another number of classes than the job names",
                found=f"{len(scored)}: {', '.join(map(str, scored[:12]))}",
                expected=f"{len(classes)}",
            )
        # Threads of joblib would add up a forest's votes in another order each time, and take every core there is.
        self._by_name: ByName | None = None
        jobs = [key for key in estimator.get_params(deep=True) if key.rpartition("__")[2] == "n_jobs"]
        estimator.set_params(**dict.fromkeys(jobs, 1))

    def to(self, device: torch.device) -> SklearnModel:  # type: ignore[override]
        """Stay where it is: it is computed on the host, and its answers are sent to the device."""
        return self

    def asked_about(self, dataset: DatasetSpec) -> None:
        """Find its columns in a table by their names, if it knows any. Raises BadTeacher: it answers something else."""
        if (self._method == NUMBERS) == task_of(dataset).has_classes:
            kind = "regressor" if self._method == NUMBERS else "classifier"
            raise BadTeacher(
                f"the {type(self._estimator).__name__} in {self._path} is a {kind}, and {dataset.name} asks "
                f"for {task_of(dataset).described(dataset)}",
                do="keep it off that dataset with `datasets = [...]`",
            )
        columns = getattr(self._estimator, "feature_names_in_", None)
        layout = Layout.promised(dataset.source)
        if layout is None or columns is None:
            self._by_name = None
        elif self._by_name is None or self._by_name.layout.promise() != layout.promise():
            self._by_name = ByName(layout, self._estimator, f"{type(self._estimator).__name__} in {self._path}")

    def forward(self, rows_B: Tensor) -> Tensor:
        """Return logits, (B, C), of rows (B, …)."""
        if self._by_name is not None:
            return self._scores(self._by_name.frame(host_array(rows_B)), rows_B.device)
        rows_BF = host_array(rows_B).reshape(len(rows_B), -1).astype(np.float64)
        wanted = getattr(self._estimator, "n_features_in_", rows_BF.shape[1])
        if rows_BF.shape[1] != wanted:
            raise BadTeacher(
                f"the {type(self._estimator).__name__} in {self._path} takes other rows than the dataset has",
                found=f"{rows_BF.shape[1]} numbers a row",
                expected=f"{wanted}",
            )
        return self._scores(rows_BF, rows_B.device)

    def _scores(self, rows: Any, device: torch.device) -> Tensor:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(torch.get_num_threads()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names of columns; the build has told
            scores = np.asarray(getattr(self._estimator, self._method)(rows))
        scores_B = as_tensor(scores, device)
        if self._method == NUMBERS:
            return scores_B.float().reshape(len(scores_B), -1)
        if self._method == "predict_proba":
            return logits_from(scores_B, self._path.name)
        if scores_B.ndim == 1:  # of two classes it gives one number, whose sigmoid is the second's probability
            scores_B = torch.stack([torch.zeros_like(scores_B), scores_B], 1)
        return scores_B.float()
