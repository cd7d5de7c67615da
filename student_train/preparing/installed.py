"""Packages that only some jobs ask for: imported where one does, and asked for before its first step."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from storage.errors import missing_extra
from student_train.options.sections import TrackOptions


def check_installed(options: TrackOptions) -> None:
    """Check that the packages of what a job asks for can be imported. Raises BadRequest."""
    if options.tensorboard:
        tensorboard()
    if options.mlflow is not None:
        mlflow()


def tensorboard() -> Any:
    """Return torch's module for TensorBoard. Raises BadRequest."""
    return _library("torch.utils.tensorboard", "tensorboard")


def mlflow() -> Any:
    """Return MLflow. Raises BadRequest."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow wants to be told that a folder is meant
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # only whom the job names is told
    return _library("mlflow", "mlflow")


def _library(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise missing_extra(f"[track] {extra}", str(error), extra) from None
