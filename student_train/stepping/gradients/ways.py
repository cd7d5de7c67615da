"""How a student is stepped, found by what its task says (`StudentTask.way`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from student_train.feed.batches import Batch
from student_train.stepping.gradients.rows import Step, accumulate_gradients
from student_train.stepping.gradients.sites import accumulate_over_sites
from student_train.tasks import Way


class Stepping(NamedTuple):
    """One way.

    Attributes:
        accumulate: adds the gradients of a batch's objective to those of all that is trained.
        num_sites: of how many sites of a batch these are means.
    """

    accumulate: Callable[..., Step]
    num_sites: Callable[[Batch], int]


WAYS: dict[Way, Stepping] = {
    "rows": Stepping(accumulate_gradients, lambda batch: len(batch.inputs)),
    "sites": Stepping(accumulate_over_sites, lambda batch: len(batch.sites())),
}
