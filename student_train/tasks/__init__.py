"""The students' half of a task. To add one: see `storage.tasks`, the half that knows what lies on disk.

base.py                   what every task answers to those who train, measure and show students
held.py                   the table of held sites
one_class.py              what tasks have in common that ask for the class of a row
image_classification.py   that, of pixels or of any values
text_classification.py    that, of texts
vector.py                 a vector for each row
regression.py             that, where the dataset has the true one
language_model.py         the next token at each position of a row
"""

from __future__ import annotations

from student_train.students import Blueprint
from student_train.tasks.base import Figures, ReportFacts, StudentTask, Way
from student_train.tasks.image_classification import ImageClassification
from student_train.tasks.language_model import LanguageModel
from student_train.tasks.regression import Regression
from student_train.tasks.text_classification import TextClassification
from student_train.tasks.vector import Vector

TASKS: dict[str, StudentTask] = {
    task.asked.name: task
    for task in (ImageClassification(), TextClassification(), Vector(), Regression(), LanguageModel())
}


def task_of(blueprint: Blueprint) -> StudentTask:
    """Return what a student is trained for."""
    return TASKS[blueprint.asked.name]


__all__ = ["TASKS", "Figures", "ReportFacts", "StudentTask", "Way", "task_of"]
