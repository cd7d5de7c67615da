"""Whether a teacher has one answer for each row: asked again, and beside other rows, it must say the same.

A forward pass that draws (dropout that does not look at `self.training`, an augmentation inside), or that goes by the
batch (batch statistics in evaluation mode), is none that a cache can keep: a student learns what one batch of one
worker happened to be. Evaluation mode does not prevent it, and no digest of weights sees it.

Shapes: B rows of a batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import BadTeacher
from storage.inputs.packed import Parted
from teacher_cache.teachers.loaded import tensors_digest

if TYPE_CHECKING:
    from torch import Tensor, nn

ROWS = 8  # asked about a few times when a teacher is loaded
MORE_TIMES = 6  # if it draws: what it draws may seldom matter
# Of the largest logit, of packed documents: what is masked has no weight at all, and may only be rounded otherwise.
CROSSING, CROSSING_OF_HALF = 1e-5, 1e-2
APART = 1e-3  # a document in a row of another length
ALIKE = 0.1  # of the largest logit: more than kernels of another batch differ by, in bfloat16 too


def check_steady(
    model: nn.Module, ask: Callable[[int], Tensor], rows: int, name: str, asked_for: str = "logits"
) -> None:
    """Check on the first rows of a batch that a teacher has one answer for each row.

    Args:
        model: the teacher's.
        ask: returns what it says at some sites of so many of the first rows, row after row.
        rows: how many there are, at most `ROWS`.
        name: of the teacher.
        asked_for: what that is.

    Raises:
        BadTeacher: asked again it says something else, it changes its own buffers, or goes by the rows beside.
    """
    state = _generators()
    said = [ask(rows)]
    draws, buffers = _generators() != state, _buffers(model)
    said.append(ask(rows))
    if changed := sorted(buffer for buffer, now in _buffers(model).items() if buffers.get(buffer) != now):
        raise BadTeacher(
            f"teacher {name} changes its own buffers while it answers",
            found=", ".join(changed[:5]),
            expected="a model that says and is the same after every batch",
            do="batch normalisation in evaluation mode (training=self.training), and no counters in forward()",
        )
    if not _same(*said):  # what is compiled at the first batch may round otherwise from the second on
        said = [said[1], ask(rows)]
    more = [ask(rows) for _ in range(MORE_TIMES * draws)]
    if not all(_same(said[-1], each) for each in [said[0], *more]):
        raise BadTeacher(
            f"teacher {name} has another answer each time that it is asked about the same rows",
            found=f"{asked_for} of {rows} rows that differ by up to {_difference(said[-1], [said[0], *more]):.3g}",
            expected="one answer for each row: a cache keeps it for good",
            do="leave out what is random in forward() when it does not train: dropout(x, training=self.training)",
        )
    if not (half := rows // 2) or not len(beside := ask(half)):
        return
    if (off := _difference(beside, [said[-1][: len(beside)]])) > ALIKE * _largest(beside):
        raise BadTeacher(
            f"teacher {name} answers about a row by the rows that are beside it in a batch",
            found=f"{asked_for} of {half} rows that differ by {off:.3g} from those in a batch of {rows}",
            expected="one answer for each row, whatever is asked with it",
            do="batch normalisation in evaluation mode (training=self.training); of texts, what padding says is masked",
        )


def check_parted(tried: Parted, model: nn.Module, name: str) -> None:
    """Check that a teacher answers about each document of a packed row as if it were alone.

    Args:
        tried: on a row of several documents.
        model: the teacher's.
        name: of the teacher.

    Raises:
        BadTeacher: documents see those before them, or do not begin anew.
    """
    import torch

    precise = all(p.dtype not in (torch.bfloat16, torch.float16) for p in model.parameters())
    crossing, off = (CROSSING, APART) if precise else (CROSSING_OF_HALF, ALIKE)
    if tried.crossing > crossing * tried.largest:
        found = f"change by {tried.crossing:.3g} with the document before it"
    elif tried.off > off * tried.largest:
        found = f"are {tried.off:.3g} off those about the document alone"
    else:
        return
    raise BadTeacher(
        f"teacher {name} does not part the documents of a packed row",
        found=f"{type(model).__name__}: answers at the end of a document {found}, of {tried.largest:.3g} at most",
        expected="each document answered as if it were alone: attention and positions that begin anew with it",
        do="pack = false in [[dataset]]: this model does not go by position_ids alone",
    )


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two answers to the same batch are the same: on a CPU to the last bit, elsewhere about."""
    import torch

    tolerated = 0.0 if one.device.type == "cpu" else ALIKE * _largest(one)
    return torch.allclose(one, other, rtol=0.0, atol=tolerated, equal_nan=True)


def _difference(one: Tensor, others: list[Tensor]) -> float:
    """Return the largest difference of finite logits."""
    return max((one - other).nan_to_num(0.0, 0.0, 0.0).abs().max().item() for other in others)


def _largest(logits: Tensor) -> float:
    return float(logits.nan_to_num(0.0, 0.0, 0.0).abs().max().item())


def _buffers(model: nn.Module) -> dict[str, str]:
    """Return the digest of each buffer: they are small, weights are not."""
    return {name: tensors_digest({name: buffer}) for name, buffer in model.named_buffers()}


def _generators() -> tuple[object, ...]:
    """Return the states of all generators that users' code draws from."""
    import torch

    of_numpy: Any = np.random.get_state()  # noqa: NPY002
    states = [torch.get_rng_state().numpy().tobytes(), random.getstate(), of_numpy[1].tobytes(), of_numpy[2:]]
    if torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state().numpy().tobytes())
    return tuple(states)
