"""What losses on soft targets share: which teachers they learn from, and how several are mixed.

B rows, C classes, M teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from storage.encodings import Capability
from storage.targets.mixture import MixedTargets
from storage.targets.soft import OneTeacher, SoftTargets
from student_train.feed.batches import Needs, SoftNeed, Supervision
from student_train.losses.outputs import Outputs
from student_train.options.terms import Mixing, SoftTerm


class SoftLoss(nn.Module):
    """A term on soft targets.

    Args:
        term: which teachers.
        function: from logits (B, C) and soft targets to a scalar; takes `labels_B` too if `with_labels`.
        with_labels: whether the loss itself looks at labels.
    """

    shares_M: Tensor

    def __init__(self, term: SoftTerm, function: Callable[..., Tensor], *, with_labels: bool = False):
        super().__init__()
        self.teachers = term.teacher_names
        self.mixing = term.mixing
        self.function = function
        self.with_labels = with_labels
        # a buffer, to be where the module is; not persistent: the job says it
        self.register_buffer("shares_M", torch.tensor(list(term.shares.values())), persistent=False)

    def forward(self, outputs: Outputs, given: Supervision) -> Tensor:
        """Return the loss of a batch."""
        targets = self._targets(given, len(outputs.logits_BC))
        if not self.with_labels:
            return self.function(outputs.logits_BC, targets)
        return self.function(outputs.logits_BC, targets, labels_B=given.labels_B)

    def _targets(self, given: Supervision, rows: int) -> SoftTargets:
        teachers = [cast("OneTeacher", given.targets[name]) for name in self.teachers]
        if len(teachers) == 1:
            return teachers[0]
        shares_BM = self.shares_M.expand(rows, -1)  # (M,) to (B, M)
        return MixedTargets(tuple(teachers), choose(teachers, shares_BM, self.mixing, given.labels_B))


def soft_needs(term: SoftTerm, *wanted: Capability, with_labels: bool = False) -> Needs:
    """Return what a term needs: capabilities of every teacher, those of choosing among them, and labels."""
    # to choose by how sure each is, that has to be known at temperature 1
    capabilities = {*wanted, *[Capability("bucket", 1.0)] * (term.mixing != "weights")}
    one_class = [term.loss] if with_labels else [f'{term.loss} with mixing = "correct"'] * (term.mixing == "correct")
    return Needs(
        labels=bool(one_class),
        one_class=frozenset(one_class),
        soft=frozenset(SoftNeed(teacher, each) for teacher in term.teacher_names for each in capabilities),
    )


def choose(teachers: Sequence[OneTeacher], shares_BM: Tensor, mixing: Mixing, labels_B: Tensor | None) -> Tensor:
    """Return the weight of each teacher in each row, (B, M); they sum to 1.

    Args:
        teachers: M of them.
        shares_BM: what each weighs by itself.
        mixing: see `SoftTerm`; where two are as confident, the first is taken.
        labels_B: for "correct".
    """
    if mixing == "weights":
        return shares_BM
    log_p, classes = zip(*(teacher.top() for teacher in teachers), strict=True)
    if mixing == "most_confident":
        best_B1 = torch.stack(log_p, dim=1).argmax(dim=1, keepdim=True)
        return torch.zeros_like(shares_BM).scatter(1, best_B1, 1.0)
    assert labels_B is not None
    correct_BM = shares_BM * (torch.stack(classes, dim=1) == labels_B[:, None])
    some_B1 = correct_BM.sum(dim=1, keepdim=True)
    # clamped: where no teacher is right it is not taken, but must not be NaN
    return torch.where(some_B1 > 0, correct_BM / some_B1.clamp(min=1e-30), shares_BM)


def mean_over_rows(rows_of: Callable[[OneTeacher], Tensor], targets: SoftTargets) -> Tensor:
    """Return the mean over rows of a loss that is linear in the teacher's probabilities.

    Of a mixture it is the teachers' own losses, mixed: what each has stored is used as it is, no tail is spread, and
    the gradient is that of the mixture. The value is higher by what the teachers' disagreement is worth.

    Args:
        rows_of: one teacher's loss in each row, (B,).
        targets: of one teacher, or mixed.
    """
    if isinstance(targets, MixedTargets):
        each_BM = torch.stack([rows_of(teacher) for teacher in targets.teachers], dim=1)
        return (targets.weights_BM * each_BM).sum(dim=1).mean()
    return rows_of(cast("OneTeacher", targets)).mean()


def kl_rows(log_p_BK: Tensor, log_q_BK: Tensor) -> Tensor:
    """Return Σ p (log p − log q), (B,), of log-probabilities that are finite."""
    return (log_p_BK.exp() * (log_p_BK - log_q_BK)).sum(dim=1)
