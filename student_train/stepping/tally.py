"""Sums of losses since the last evaluation, and those of an epoch's steps, on the device so that no step waits for it.

M students that step together, K terms of an objective, S steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from student_train.stepping.gradients.rows import Step

TALLY_STEPS = 64  # losses are summed on the device this many steps at a time


class Tally:
    """The losses of M students over the steps of an epoch.

    Args:
        members: M.
        names: of the K terms, the same for all.
        device: where losses are.
    """

    def __init__(self, members: int, names: Sequence[str], device: torch.device):
        self._sums_MK = torch.zeros(members, 2 + len(names), dtype=torch.float64, device=device)  # rows, total, terms
        self._shares_MK = torch.zeros(members, len(names), dtype=torch.float64, device=device)
        self._recent: list[tuple[int, Tensor, Sequence[Tensor]]] = []
        self._steps = [torch.zeros(members, 0, 1 + len(names), device=device)]  # (M, S, 1 + K) of some steps each

    def add(self, step: Step) -> None:
        """Count a step: its losses are scalars where there is one student, else (M,)."""
        if step.shares is not None:
            self._shares_MK.copy_(step.shares)  # measured once an epoch
        self._recent.append((step.rows, step.loss, step.values))
        if len(self._recent) >= TALLY_STEPS:
            self._collect()

    def means(self) -> list[list[float]]:
        """Return each student's means over rows since it was measured, the objective's first; waits for the device."""
        self._collect()
        # max: a batch of padding has no rows
        return [[total / max(rows, 1) for total in sums] for rows, *sums in self._sums_MK.tolist()]

    def shares(self) -> list[list[float]]:
        """Return each term's share of each student's gradient, in the epoch's first step."""
        return [[float(share) for share in shares] for shares in self._shares_MK.tolist()]

    def steps(self) -> np.ndarray:
        """Return the losses of each student in each step so far, (M, S, 1 + K) float32: the objective, each term."""
        self._collect()
        return self._whole().cpu().numpy()

    def begin_row(self, member: int) -> None:
        """Forget one student's sums so far: it was measured in the middle of the epoch."""
        self._collect()
        self._sums_MK[member] = 0

    def state(self, member: int) -> dict[str, Tensor]:
        """Return all figures of one student, for a checkpoint."""
        self._collect()
        return {
            "tally.sums": torch.cat([self._sums_MK[member], self._shares_MK[member]]),
            "tally.steps": self._whole()[member],
        }

    def restore(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Go on from the `state` of each student, all of which took the same steps."""
        rows = self._sums_MK.shape[1]
        figures_MK = torch.stack([state["tally.sums"] for state in states]).to(self._sums_MK)  # in type and device
        self._sums_MK.copy_(figures_MK[:, :rows])
        self._shares_MK.copy_(figures_MK[:, rows:])
        self._steps = [torch.stack([state["tally.steps"] for state in states]).to(self._steps[0])]

    def _whole(self) -> Tensor:
        self._steps = [torch.cat(self._steps, dim=1)]
        return self._steps[0]

    def _collect(self) -> None:
        if not self._recent:
            return
        device = self._sums_MK.device
        rows_S = torch.tensor([rows for rows, _, _ in self._recent], dtype=torch.float64, device=device)
        losses = [torch.stack([loss, *values], dim=-1) for _, loss, values in self._recent]
        # of one student they are scalars: M is 1
        losses_SMK = torch.stack(losses).reshape(len(losses), *self._sums_MK[:, 1:].shape).float()
        self._sums_MK[:, 0] += rows_S.sum()
        self._sums_MK[:, 1:] += torch.einsum("s,smk->mk", rows_S, losses_SMK.double())
        self._steps.append(losses_SMK.transpose(0, 1))
        self._recent.clear()
