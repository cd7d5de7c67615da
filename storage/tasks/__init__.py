"""What is asked of a row: one file per task. The only place that knows them; what rows are made of is in `inputs`.

    base.py                   what every task answers
    one_class.py              a row has one site, itself, and one class
    image_classification.py   that, of pixels or of any values
    text_classification.py    that, of texts
    vector.py                 a row has one site, and a vector: an embedding
    regression.py             that, and its dataset knows the true one: numbers, such as a price
    language_model.py         every position of a row of tokens is a site; its class is the next token

A *site* is where a row has an answer. To add a task: copy `image_classification.py` where a row has one class,
`language_model.py` where it has more, here and in `student_train/tasks`; a line of each table; and a kind of dataset
whose `task_name` says it, unless a job does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.errors import UnsupportedFormat
from storage.inputs import Inputs, inputs_of
from storage.tasks.base import NO_LABEL, Task
from storage.tasks.image_classification import ImageClassification
from storage.tasks.language_model import LanguageModel
from storage.tasks.regression import Regression
from storage.tasks.text_classification import TextClassification
from storage.tasks.vector import Vector

if TYPE_CHECKING:
    from storage.format.specs import DatasetSpec

TASKS: dict[str, Task] = {
    task.name: task for task in (ImageClassification(), TextClassification(), Vector(), Regression(), LanguageModel())
}


def implied_task(inputs: Inputs) -> str:
    """Return the task of a dataset that names none, by what its rows are made of.

    None did before there were several tasks of one kind of inputs.
    """
    return "language_model" if inputs.tokenised else "image_classification"  # the one place that guesses


def task_of(dataset: DatasetSpec) -> Task:
    """Return what is asked of the rows of a dataset.

    Raises:
        UnsupportedFormat: it is none of ours.
    """
    name = dataset.task or implied_task(inputs_of(dataset))
    if name not in TASKS:
        raise UnsupportedFormat(
            f"dataset {dataset.name} is for a task that is not known here",
            found=f"task = {name!r}  ({dataset.name}/dataset.json)",
            expected=f"one of: {', '.join(TASKS)}",
            do="upgrade stillroom",
        )
    return TASKS[name]


__all__ = ["NO_LABEL", "TASKS", "Task", "implied_task", "task_of"]
