"""Students that say the next token at each position. B rows of a batch, L positions of a row."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from storage.errors import BadRequest
from storage.tasks import TASKS
from student_train.students import Student
from student_train.tasks.base import StudentTask

TRIED_POSITIONS = 8  # a student takes rows of any length up to its own


class LanguageModel(StudentTask):
    """Only a part of the positions has logits at a time."""

    asked = TASKS["language_model"]
    way = "sites"
    unsteady = "rows of tokens: how many of their positions count is another number in each batch"

    def tried_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(min(length, TRIED_POSITIONS) for length in input_shape)

    def answer(self, student: Student, inputs: Tensor) -> Tensor:
        # What follows a whole context; the scores of all positions might not fit, and nobody asks for them.
        return student.scores(student.hidden(inputs)[:, -1])

    def refuse_coupling(self, student: str, dataset: str, losses: Sequence[str]) -> None:
        raise BadRequest(
            f"student {student} has losses that compare rows, and those of {dataset} are tokens",
            found=", ".join(losses),
            expected="losses that are means over positions, which are computed a part of them at a time",
            do="gamma = 0 in dist, which leaves what is within a row; or choose other losses"
            if "dist" in losses
            else "choose other losses",
        )
