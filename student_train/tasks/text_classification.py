"""Students that say the class of a text."""

from __future__ import annotations

from dataclasses import replace

from storage.tasks import TASKS
from student_train.tasks.one_class import OneClassStudent


class TextClassification(OneClassStudent):
    """One class for a row of tokens."""

    asked = TASKS["text_classification"]
    pipeline_tag = "text-classification"
    report = replace(OneClassStudent.report, mistakes="texts")
    macro_f1 = True
    unsteady = "texts: a batch is as long as its longest row, which is another length in each batch"
