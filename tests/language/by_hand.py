"""Distillation of a language model with its teacher live, written out by hand with transformers and torch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

from student_train.stepping.alone import Alone


class Rows(NamedTuple):
    """A batch: ids (B, L), and the token that follows each, −1 where none is to be predicted."""

    ids: Tensor
    labels: Tensor


@contextmanager
def noted_batches() -> Iterator[list[Rows]]:
    """Within it, the batches of one student's steps are noted, in their order."""
    noted: list[Rows] = []
    step = Alone.step

    def noting(self: Alone, batches: Sequence[Any], rates: Sequence[float], number: int, **rest: Any) -> Any:
        (batch,) = batches
        del noted[number:]  # a step that is taken again
        noted.append(Rows(batch.inputs.clone().clamp(min=0), batch.labels_B.clone()))
        return step(self, batches, rates, number, **rest)

    with patch.object(Alone, "step", noting):
        yield noted


def distil(student: Any, teacher: Any, batches: Sequence[Rows], rate: float) -> None:
    """Take a step of SGD on each batch: KL(teacher‖student) at the labelled tokens, the mean over them."""
    optimizer = torch.optim.SGD(student.parameters(), rate)
    for ids, labels in batches:
        labelled = labels >= 0
        with torch.no_grad():
            log_p = teacher(input_ids=ids).logits.float()[labelled].log_softmax(-1)
        log_q = student(input_ids=ids).logits.float()[labelled].log_softmax(-1)
        functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True).backward()
        optimizer.step()
        optimizer.zero_grad()


def fresh(folder: Path, seed: int) -> Any:
    """Return the model of a folder's config, with weights of a seed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).train()


def stored(folder: Path) -> Any:
    """Return the model in a folder."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()
