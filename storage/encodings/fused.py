"""On a CUDA device: what is summed over a vocabulary, in two reads of the logits instead of some twenty passes.

By operations of torch each sum writes what it is a sum of: about 80 bytes are moved for each logit, and encoding takes
longer than a teacher's last layer. Two kernels of Triton, which comes with torch for CUDA, read each logit twice, in
the type that the teacher gave it.

Which classes are kept is seen by their logits: a kept class lies above the least of its row, or equals it. Those that
equal it and are not kept are counted, and added.

Before its first use a device is tried on a few rows: where Triton is not there, cannot compile, or says anything else
than torch, torch it is, and that is told.

Shapes: B rows, C classes, K kept classes, G bundles of W classes each, E bundles and classes of none.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from storage.encodings.draws import bundles

if HAS_TRITON := find_spec("triton") is not None:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def _look(z, maxima, sums, lowest, stride, whole, groups, edges, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        """Of a row, and of a block of its bundles: the largest of each, and sum and least of all."""
        row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
        group = part * BLOCK + tl.arange(0, BLOCK)
        there = group < groups
        top = tl.full((BLOCK,), float("-inf"), tl.float32)
        low = tl.full((BLOCK,), float("inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, whole, groups):
            value = tl.load(z + row * stride + first + group, mask=there, other=0.0).to(tl.float32)
            top = tl.maximum(top, value)
            low = tl.minimum(low, value)
            total += value
        tl.store(maxima + row * edges + group, top, mask=there)
        parts = tl.num_programs(1)
        tl.store(sums + row * parts + part, tl.sum(tl.where(there, total, 0.0)))
        tl.store(lowest + row * parts + part, tl.min(tl.where(there, low, float("inf"))))

    @triton.jit  # type: ignore[untyped-decorator]
    def _sweep(z, level, mean, least, inverse, out, stride, classes, rows, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        """Of a row: Σ e, Σ e², Σ e (z − level) below its least kept; of all Σ (z − mean)²; how many equal that."""
        row = tl.program_id(0).to(tl.int64)
        at, centre, bound = tl.load(level + row), tl.load(mean + row), tl.load(least + row)
        rest = tl.zeros((BLOCK,), tl.float32)
        squares = tl.zeros((BLOCK,), tl.float32)
        weighted = tl.zeros((BLOCK,), tl.float32)
        spread = tl.zeros((BLOCK,), tl.float32)
        ties = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, classes, BLOCK):
            place = first + tl.arange(0, BLOCK)
            there = place < classes
            value = tl.load(z + row * stride + place, mask=there, other=0.0).to(tl.float32)
            above = value - at
            e = tl.where(there & (value < bound), tl.exp(above * inverse), 0.0)
            rest += e
            squares += e * e
            weighted += e * above
            off = tl.where(there, value - centre, 0.0)
            spread += off * off
            ties += tl.where(there & (value == bound), 1.0, 0.0)
        tl.store(out + row, tl.sum(rest))
        tl.store(out + rows + row, tl.sum(squares))
        tl.store(out + 2 * rows + row, tl.sum(weighted))
        tl.store(out + 3 * rows + row, tl.sum(spread))
        tl.store(out + 4 * rows + row, tl.sum(ties))


BLOCK_CLASSES = 2048  # that a program looks at together
BLOCK_BUNDLES = 1024


def fuses(logits_BC: Tensor) -> bool:
    """Return whether the kernels serve these logits: they lie on a CUDA device that has them, a row's side by side."""
    return logits_BC.is_cuda and logits_BC.stride(1) == 1 and _works(logits_BC.device)


@lru_cache
def _works(device: torch.device) -> bool:
    """Return whether the kernels say on a device what torch says. Warns: they do not."""
    if not HAS_TRITON:
        return _passes("no package triton")
    try:
        draw = torch.Generator().manual_seed(0)
        logits_BC = torch.randn(3, 5000, generator=draw).to(device)
        seen = look(logits_BC, 8)
        none_BK = logits_BC[:, :0]
        swept = sweep(logits_BC, seen.mean_B, seen.mean_B, none_BK, none_BK.bool(), 2.0)
        above_BC = logits_BC.double() - seen.mean_B[:, None].double()
        e_BC = (above_BC / 2).exp()
        pairs = (
            (seen.mean_B, logits_BC.mean(1)),
            (seen.lowest_B, logits_BC.amin(1)),
            (seen.maxima_BE.amax(1), logits_BC.amax(1)),
            (swept.rest_B, e_BC.sum(1)),
            (swept.squares_B, e_BC.square().sum(1)),
            (swept.weighted_B, (e_BC * above_BC).sum(1)),
            (swept.deviation_B, above_BC.square().mean(1).sqrt()),
        )
        if all(torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-5) for one, other in pairs):
            return True
    except Exception as error:  # of a compiler that is not there, of a driver that is too old, …
        return _passes(f"{type(error).__name__}: {error}")
    return _passes("its sums are others than torch's")


def _passes(why: str) -> bool:
    warnings.warn(f"encoding on this GPU takes many passes over the logits: {why}", stacklevel=2)
    return False


class Look(NamedTuple):
    """Mean and least of each row, float32 (B,), and `largest.bundle_maxima`, float32 (B, E)."""

    mean_B: Tensor
    lowest_B: Tensor
    maxima_BE: Tensor


def look(logits_BC: Tensor, k: int) -> Look:
    """Return what one read of logits of any floating type tells; NaN in a row makes its mean and its maxima NaN."""
    num_rows, num_classes = logits_BC.shape
    num_bundles, width = bundles(num_classes, k)
    whole = num_bundles * width
    left_BL = logits_BC[:, whole:].float()
    block = min(BLOCK_BUNDLES, triton.next_power_of_2(num_bundles))
    parts = triton.cdiv(num_bundles, block)
    maxima_BE = logits_BC.new_empty(num_rows, num_bundles + left_BL.shape[1], dtype=torch.float32)
    sums_BP, lowest_BP = logits_BC.new_empty(2, num_rows, parts, dtype=torch.float32)
    maxima_BE[:, num_bundles:] = left_BL
    with torch.cuda.device_of(logits_BC):
        _look[(num_rows, parts)](
            logits_BC,
            maxima_BE,
            sums_BP,
            lowest_BP,
            logits_BC.stride(0),
            whole,
            num_bundles,
            maxima_BE.shape[1],
            BLOCK=block,
        )
    mean_B = torch.cat([sums_BP, left_BL], 1).sum(1) / num_classes
    lowest_B = torch.cat([lowest_BP, left_BL], 1).amin(1)
    maxima_BE.masked_fill_(mean_B.isnan()[:, None], torch.nan)
    return Look(mean_B, lowest_B, maxima_BE)


class Swept(NamedTuple):
    """Sums over the classes that are not kept, e = exp((z − level)/T), float64 (B,); the deviation is of all."""

    rest_B: Tensor
    squares_B: Tensor
    weighted_B: Tensor
    deviation_B: Tensor


def sweep(
    logits_BC: Tensor, level_B: Tensor, mean_B: Tensor, kept_BK: Tensor, real_BK: Tensor, temperature: float
) -> Swept:
    """Return what another read of the logits tells.

    Args:
        logits_BC: of any floating type, finite; in a row that is not, the sums are of no meaning.
        level_B, mean_B: float32.
        kept_BK: logits of the kept classes, the largest of each row, float32; K may be 0.
        real_BK: False where one is a repetition.
        temperature: T.
    """
    num_rows, num_classes = logits_BC.shape
    out = logits_BC.new_empty(5, num_rows, dtype=torch.float32)
    if kept_BK.shape[1]:
        least_B = kept_BK.masked_fill(~real_BK, torch.inf).amin(1)
    else:
        least_B = torch.full_like(level_B, torch.inf)
    with torch.cuda.device_of(logits_BC):
        _sweep[(num_rows,)](
            logits_BC,
            level_B,
            mean_B,
            least_B,
            1 / temperature,
            out,
            logits_BC.stride(0),
            num_classes,
            num_rows,
            BLOCK=min(BLOCK_CLASSES, triton.next_power_of_2(num_classes)),
        )
    rest_B, squares_B, weighted_B, spread_B, ties_B = out.double()
    if kept_BK.shape[1]:
        # as many as the least kept, and not kept
        left_B = ties_B - ((kept_BK == least_B[:, None]) & real_BK).sum(1)
        above_B = (least_B - level_B).double()
        e_B = (above_B / temperature).exp()
        rest_B, squares_B = rest_B + left_B * e_B, squares_B + left_B * e_B * e_B
        weighted_B = weighted_B + left_B * e_B * above_B
    return Swept(rest_B, squares_B, weighted_B, (spread_B / num_classes).sqrt())
