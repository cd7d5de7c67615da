"""What is kept of each row besides its classes: masses at every declared temperature, moments, entropy.

All are of the teacher's own float32 logits, before anything is rounded. Two arrays hold them:

    lse         float32  (B, T + U)     log-sum-exp at each temperature, then of standardised logits at each of theirs
    statistics  float16  (B, 3 + 2 T)   entropy (nats); mean of the log-probabilities; deviation of the logits;
                                        ‖p‖ at each temperature; the label's log-probability at each (0: no label)

The mean is kept of log-probabilities and Σ p² as its root, for neither depends on the logits' offset, and both keep
float16's relative precision of 2⁻¹¹: Σ p² itself would be subnormal at high temperature over 128,000 classes.

Columns of logits beyond the classes are padding of a vocabulary: they have a share in every sum of probabilities, but
none in mean and deviation.

Shapes: B rows, C classes, V columns of logits, K kept classes, T temperatures, U standardised temperatures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from storage.encodings.base import LSE, STATISTICS, Encoding
from storage.encodings.largest import Kept
from storage.encodings.targets import NEVER, Statistics

FIXED_COLUMNS = 3  # entropy, mean, deviation
LONG_ROW = 2**12
# Elements of a block of rows: its few buffers stay in a CPU's cache, or keep a GPU busy.
BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**27}


def in_blocks(encode: Callable[..., dict[str, Tensor]], *rows_B: Tensor) -> dict[str, Tensor]:
    """Return the arrays that `encode` makes of logits (B, V) and what goes with them, a block of rows at a time."""
    logits_BV = rows_B[0]
    rows = max(1, BLOCK_ELEMENTS.get(logits_BV.device.type, 2**19) // max(1, logits_BV.shape[1]))
    parts = [encode(*block) for block in zip(*(values_B.split(rows) for values_B in rows_B), strict=True)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True, slots=True)
class Rows:
    """Logits below their row's largest.

    Attributes:
        peak_B: the largest of each row's V logits.
        below_BC: z − peak, ≤ 0.
        padding_BP: the same for columns beyond the classes, P = V − C.
    """

    peak_B: Tensor
    below_BC: Tensor
    padding_BP: Tensor

    @classmethod
    def of(cls, logits_BV: Tensor, num_classes: int) -> Rows:
        """Return rows of float32 logits."""
        logits_BV = logits_BV.float()
        peak_B = logits_BV.amax(dim=1)
        below_BC = logits_BV[:, :num_classes] - peak_B[:, None]
        # Padding may be −inf by design; a finite floor keeps 0 · z at 0.
        padding_BP = (logits_BV[:, num_classes:] - peak_B[:, None]).clamp(min=NEVER)
        return cls(peak_B, below_BC, padding_BP)


@dataclass(frozen=True, slots=True)
class Masses:
    """Sums over e = exp(factor · (z − peak)) of one row each, float64, and e itself.

    Attributes:
        rest_BC: e, 0 where a class is kept.
        rest_B: mass of the classes that are not kept, with the padding's.
        total_B: mass of all.
        norm_B: ‖p‖ over all.
    """

    rest_BC: Tensor
    rest_B: Tensor
    total_B: Tensor
    norm_B: Tensor

    @classmethod
    def of(cls, rows: Rows, kept: Kept, factor_B: Tensor | float) -> Masses:
        """Return the masses; the rest is summed by itself, not subtracted, so that a small one stays exact."""
        rest_BC = rows.below_BC.exp() if _is_one(factor_B) else torch.mul(rows.below_BC, factor_B).exp_()
        kept_e_BK = rest_BC.gather(1, kept.ids_BK).double() * kept.real_BK
        rest_BC.scatter_(1, kept.ids_BK, 0.0)
        padding_BP = (rows.padding_BP * factor_B).exp().double()
        rest_B = rest_BC.sum(1).double() + padding_BP.sum(1)
        total_B = rest_B + kept_e_BK.sum(1)
        squares_B = rest_BC.norm(dim=1).double().square() + kept_e_BK.square().sum(1) + padding_BP.square().sum(1)
        return cls(rest_BC, rest_B, total_B, squares_B.sqrt() / total_B)

    def log_rest(self) -> Tensor:
        """Return the log of the share that is not kept, (B,), < 0: in float16, 0 would leave the kept nothing."""
        return (self.rest_B / self.total_B).log().clamp(min=NEVER, max=-(2.0**-24)).float()


def dot(a_BC: Tensor, b_BC: Tensor) -> Tensor:
    """Return Σ_C a b, float64 (B,); of long rows on a CPU by BLAS, an eighth of the time of a product and its sum."""
    if a_BC.device.type == "cpu" and a_BC.shape[1] >= LONG_ROW:
        return torch.stack([torch.dot(a_C, b_C) for a_C, b_C in zip(a_BC, b_BC, strict=True)]).double()
    return (a_BC * b_BC).sum(1).double()


def _is_one(factor_B: Tensor | float) -> bool:
    return isinstance(factor_B, float) and factor_B == 1.0


@dataclass(frozen=True, slots=True)
class Described:
    """All that an encoding may keep of some rows besides their classes.

    Attributes:
        ones: masses at temperature 1.
        log_rest_BT: (B, T + U), at each temperature, then at each standardised one.
        arrays: LSE and STATISTICS as they are stored; empty if they are switched off.
    """

    ones: Masses
    log_rest_BT: Tensor
    arrays: dict[str, Tensor]


def describe(rows: Rows, kept: Kept, labels_B: Tensor, options: Encoding) -> Described:
    """Return masses at every temperature of an encoding, and statistics if it keeps them.

    Args:
        rows: of the teacher.
        kept: classes that are stored exactly; K may be 0.
        labels_B: int64, −1 where there is none.
        options: the encoding.
    """
    below_BC = rows.below_BC
    label_B = below_BC.gather(1, labels_B.clamp(min=0)[:, None])[:, 0].double()
    mean_B = below_BC.mean(dim=1, keepdim=True)
    ones = None
    lse, rest, norm, label = [], [], [], []
    for temperature in options.temperatures:
        masses = Masses.of(rows, kept, 1 / temperature)
        log_total_B = masses.total_B.log()
        lse.append(log_total_B + rows.peak_B / temperature)
        rest.append(masses.log_rest())
        norm.append(masses.norm_B)
        label.append(torch.where(labels_B < 0, 0.0, label_B / temperature - log_total_B))
        ones = masses if temperature == 1 else ones
    assert ones is not None  # temperature 1 is always declared
    if options.statistics or options.standardised_temperatures:
        centred_BC = below_BC - mean_B
        std_B = centred_BC.norm(dim=1).double() / below_BC.shape[1] ** 0.5
        for temperature in options.standardised_temperatures:
            factor_B = (1 / (std_B * temperature).clamp(min=1e-6)).float()[:, None]
            masses = Masses.of(rows, kept, factor_B)
            lse.append(masses.total_B.log() - mean_B[:, 0] * factor_B[:, 0])
            rest.append(masses.log_rest())
    log_rest_BT = torch.stack(rest, 1)
    if not options.statistics:
        return Described(ones, log_rest_BT, {})
    log_total_B = ones.total_B.log()
    kept_BK, padding_BP = below_BC.gather(1, kept.ids_BK).double(), rows.padding_BP.double()
    weighted_B = dot(ones.rest_BC, below_BC)
    weighted_B += (kept_BK.exp() * kept_BK * kept.real_BK).sum(1) + (padding_BP.exp() * padding_BP).sum(1)
    entropy_B = (log_total_B - weighted_B / ones.total_B).clamp(min=0)
    columns = [entropy_B, mean_B[:, 0] - log_total_B, std_B, *norm, *label]
    arrays = {LSE: torch.stack(lse, 1).float(), STATISTICS: torch.stack(columns, 1).to(torch.float16)}
    return Described(ones, log_rest_BT, arrays)


def decode(arrays: Mapping[str, Tensor], options: Encoding) -> Statistics | None:
    """Return statistics in float32, or None if they are not among the arrays."""
    if LSE not in arrays:
        return None
    num = len(options.temperatures)
    lse_BT, columns_BJ = arrays[LSE].float(), arrays[STATISTICS].float()
    return Statistics(
        temperatures=tuple(options.temperatures),
        lse_BT=lse_BT[:, :num],
        label_log_p_BT=columns_BJ[:, FIXED_COLUMNS + num :],
        sum_squares_BT=columns_BJ[:, FIXED_COLUMNS : FIXED_COLUMNS + num].square(),
        entropy_B=columns_BJ[:, 0],
        mean_B=columns_BJ[:, 1] + lse_BT[:, options.temperatures.index(1.0)],
        std_B=columns_BJ[:, 2],
        standardised_temperatures=tuple(options.standardised_temperatures),
        standardised_lse_BU=lse_BT[:, num:],
    )
