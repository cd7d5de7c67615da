"""A classifier of scikit-learn as a torch module.

Shapes: B rows of a batch, F features of a row, C classes.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from storage.errors import BadTeacher
from teacher_cache.teachers.probabilities import logits_from
from teacher_cache.teachers.runtime import Runtime, as_tensor, host_array


class SklearnModel(Runtime):
    """Its rows are flat, (B, F) float64; its answer is logits (B, C) float32.

    Args:
        path: of its file.
        estimator: fitted.
        method: `predict_proba` or `decision_function`.
        digest: of its file.
        classes: the names that the job gives its scores.
    """

    def __init__(self, path: Path, estimator: Any, method: str, digest: str, classes: list[str] | None):
        super().__init__(digest, path.stat().st_size)
        self._path, self._estimator, self._method = path, estimator, method
        scored = getattr(estimator, "classes_", None)
        if scored is None or getattr(scored, "ndim", 0) != 1:
            raise BadTeacher(f"the {type(estimator).__name__} in {path} is no classifier of one class for each row")
        if classes is not None and len(classes) != len(scored):
            raise BadTeacher(
                f"the {type(estimator).__name__} in {path} has another number of classes than the job names",
                found=f"{len(scored)}: {', '.join(map(str, scored[:12]))}",
                expected=f"{len(classes)}",
            )
        # Threads of joblib would add up a forest's votes in another order each time, and take every core there is.
        jobs = [key for key in estimator.get_params(deep=True) if key.rpartition("__")[2] == "n_jobs"]
        estimator.set_params(**dict.fromkeys(jobs, 1))

    def to(self, device: torch.device) -> SklearnModel:  # type: ignore[override]
        """Stay where it is: it is computed on the host, and its answers are sent to the device."""
        return self

    def forward(self, rows_B: Tensor) -> Tensor:
        """Return logits, (B, C), of rows (B, …)."""
        from threadpoolctl import threadpool_limits

        rows_BF = host_array(rows_B).reshape(len(rows_B), -1).astype(np.float64)
        wanted = getattr(self._estimator, "n_features_in_", rows_BF.shape[1])
        if rows_BF.shape[1] != wanted:
            raise BadTeacher(
                f"the {type(self._estimator).__name__} in {self._path} takes other rows than the dataset has",
                found=f"{rows_BF.shape[1]} numbers a row",
                expected=f"{wanted}",
            )
        with threadpool_limits(torch.get_num_threads()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names of columns; the build has told
            scores = np.asarray(getattr(self._estimator, self._method)(rows_BF))
        scores_B = as_tensor(scores, rows_B.device)
        if self._method == "predict_proba":
            return logits_from(scores_B, self._path.name)
        if scores_B.ndim == 1:  # of two classes it gives one number, whose sigmoid is the second's probability
            scores_B = torch.stack([torch.zeros_like(scores_B), scores_B], 1)
        return scores_B.float()
