"""What is kept of each row besides its classes: masses at every declared temperature, moments, entropy.

All are of the teacher's own float32 logits, before anything is rounded. Two arrays hold them:

    lse         float32  (B, T + U)     log-sum-exp at each temperature, then of standardised logits at each of theirs
    statistics  float16  (B, 3 + 2 T)   entropy (nats); mean of the log-probabilities; deviation of the logits;
                                        ‖p‖ at each temperature; the label's log-probability at each (0: no label)

The mean is kept of log-probabilities and Σ p² as its root, for neither depends on the logits' offset, and both keep
float16's relative precision of 2⁻¹¹: Σ p² itself would be subnormal at high temperature over 128,000 classes.

Columns of logits beyond the classes are padding of a vocabulary; an encoding cuts them off before anything is summed
(docs/adr/0007). Classes that can never be (`never`) have no probability; mean and deviation are of the others.

Shapes: B rows, C classes, V columns of logits, K kept classes, T temperatures, U standardised temperatures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from storage.encodings import fused
from storage.encodings.base import LSE, STATISTICS, Encoding, Told
from storage.encodings.draws import bundle_sums, bundles
from storage.encodings.largest import Kept, bundle_maxima
from storage.encodings.never import NO_SCORE, far_below, never
from storage.targets.soft import NEVER, Statistics

FIXED_COLUMNS = 3  # entropy, mean, deviation
LONG_ROW = 2**12  # classes; from here on BLAS is quicker
# Elements that are encoded at a time, and of these, that are summed at a time, of a CPU by each of torch's threads:
# a row of a large vocabulary, so that logits and what is made of them stay in a core's own cache from pass to pass.
BLOCK_ELEMENTS = {"cpu": 2**23, "cuda": 2**27}
SWEEP_ELEMENTS = {"cpu": 2**17, "cuda": 2**27}
HIGHEST = 30.0  # exponent, so that e² of a whole vocabulary is within float32


def in_blocks(encode: Callable[..., tuple[dict[str, Tensor], Told]], *rows_B: Tensor) -> tuple[dict[str, Tensor], Told]:
    """Return what `encode` makes of logits (B, V) and what goes with them, a block of rows at a time."""
    arrays, told = zip(*(encode(*block) for block in zip(*_split(rows_B, BLOCK_ELEMENTS), strict=True)), strict=True)
    if len(arrays) == 1:
        return arrays[0], told[0]
    return {name: torch.cat([part[name] for part in arrays]) for name in arrays[0]}, Told(
        *(torch.cat(values) for values in zip(*told, strict=True))
    )


def _split(rows_B: Sequence[Tensor], elements: dict[str, int]) -> list[tuple[Tensor, ...]]:
    """Return tensors in blocks of rows, by how many elements the first one may have; a row at least."""
    # 2**19 elements on a device for which none was measured
    rows = max(1, elements.get(rows_B[0].device.type, 2**19) // max(1, rows_B[0].shape[1]))
    return [values_B.split(rows) for values_B in rows_B]


def _to_sum(rows_B: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Return tensors in blocks of rows that are summed at a time; each of a CPU's threads has rows of its own."""
    of_cpu = SWEEP_ELEMENTS["cpu"] * torch.get_num_threads()
    return _split(rows_B, SWEEP_ELEMENTS | {"cpu": of_cpu})


@dataclass(frozen=True, slots=True)
class Rows:
    """Logits, and what is known of them after one look.

    Exponentials are taken of logits above a level of their row: its mean, so that its deviation comes of the same
    numbers, but no further below its largest than float32 can bear.

    Attributes:
        logits_BC: float32, or on a CUDA device as they were given; NO_SCORE of a class that can never be.
        maxima_BE: the largest of bundles of classes (`largest.bundle_maxima`).
        peak_B: the largest of each row's logits.
        mean_B: of the logits of the classes that can be, float32.
        level_B: the row's level, float32.
        never_B: whether some class can never be.
        bundled: how many bundles there are among E, and of how many classes each.
        possible_B: how many classes can be; None: all, in every row.
    """

    logits_BC: Tensor
    maxima_BE: Tensor
    peak_B: Tensor
    mean_B: Tensor
    level_B: Tensor
    never_B: Tensor
    bundled: tuple[int, int]
    possible_B: Tensor | None = None

    @classmethod
    def of(cls, logits_BC: Tensor, options: Encoding, k: int = 0) -> Rows:
        """Return rows of logits, of which the `k` largest are to be found."""
        if fused.fuses(logits_BC):
            mean_B, lowest_B, maxima_BE = fused.look(logits_BC, k)
        else:
            logits_BC = logits_BC.float()
            blocks = zip(*_to_sum([logits_BC]), strict=True)
            looks = [(block_BC.mean(1), block_BC.amin(1), bundle_maxima(block_BC, k)) for (block_BC,) in blocks]
            mean_B, lowest_B, maxima_BE = (torch.cat(each) for each in zip(*looks, strict=True))
        peak_B, possible_B = maxima_BE.amax(1), None
        never_B = far_below(lowest_B, peak_B)
        if never_B.any() and (never_BC := never(logits_BC := logits_BC.float())) is not None:
            possible_B = logits_BC.shape[1] - never_BC.sum(1)
            mean_B = logits_BC.masked_fill(never_BC, 0.0).sum(1) / possible_B
            logits_BC = logits_BC.masked_fill(never_BC, NO_SCORE)
        # the exponent is divided by the temperature, so a low one raises it
        level_B = torch.maximum(mean_B, peak_B - HIGHEST * min(1.0, *options.temperatures))
        return cls(logits_BC, maxima_BE, peak_B, mean_B, level_B, never_B, bundles(logits_BC.shape[1], k), possible_B)

    def above(self, ids_BJ: Tensor) -> Tensor:
        """Return the logits of some classes above the level, (B, J)."""
        return self.logits_BC.gather(1, ids_BJ).float() - self.level_B[:, None]

    def top(self) -> Tensor:
        """Return the likeliest class, int64 (B,), the first of several: no other pass, unless they are in two bundles.

        In a row without any that can be, or with NaN, it is of no meaning.
        """
        num_bundles, width = self.bundled
        best_BE = self.maxima_BE == self.peak_B[:, None]
        at_B = best_BE.to(torch.uint8).argmax(1)
        steps_W = torch.arange(width, device=at_B.device) * num_bundles
        # a single class follows the bundles
        ids_BW = torch.where((at_B < num_bundles)[:, None], at_B[:, None] + steps_W, at_B[:, None] + steps_W[-1:])
        hit_BW = self.logits_BC.gather(1, ids_BW) == self.peak_B[:, None]
        top_B = ids_BW.gather(1, hit_BW.to(torch.uint8).argmax(1, keepdim=True))[:, 0]
        several_B = best_BE.sum(1) > 1
        if several_B.any():
            found_BC = self.logits_BC[several_B] == self.peak_B[several_B, None]
            top_B[several_B] = found_BC.to(torch.uint8).argmax(1)
        return top_B

    def told(self, described: Described, padding: Tensor) -> Told:
        """Return what is known of the rows after they were described; `padding`: the logits behind the classes."""
        right_B = self.peak_B.isfinite()
        if padding.shape[1]:
            right_B &= torch.maximum(padding.amax(1), self.peak_B).isfinite()
        return Told(
            self.top(),
            # rounding may leave either a little above 1
            (self.peak_B.double() - self.level_B.double() - described.log_total_B).clamp(max=0).exp().float(),
            described.entropy_B.float(),
            described.label_log_p_B.clamp(max=0).float(),
            self.never_B,
            right_B,
        )


class Sums(NamedTuple):
    """Sums over e = exp((z − level)/T), 0 where a class is kept.

    Attributes:
        rest_BT: Σ e at each temperature, then, (B, T + U), at each standardised one of logits below their peak.
        squares_BT: Σ e² at each temperature.
        weighted_B: Σ e (z − level) at temperature 1, if it is wanted.
        deviation_B: of the logits, float64, if it is wanted.
        edges_BE: `draws.bundle_sums` of e at temperature 1.
    """

    rest_BT: Tensor
    squares_BT: Tensor
    weighted_B: Tensor
    deviation_B: Tensor
    edges_BE: Tensor


class Scratch(NamedTuple):
    """Memory that every block of rows uses again: new memory costs more than a pass."""

    above: Tensor
    e: Tensor


def sweep(rows: Rows, kept: Kept, options: Encoding, num_draws: int, *, entropy: bool) -> Sums:
    """Return sums over all classes, a few rows at a time."""
    possible_B = rows.possible_B
    if possible_B is None and not num_draws and not options.standardised_temperatures and fused.fuses(rows.logits_BC):
        return _fused_sums(rows, kept, options)
    each_B = [rows.level_B, rows.mean_B, rows.peak_B, kept.ids_BK, *([] if possible_B is None else [possible_B])]
    blocks = _to_sum([rows.logits_BC.float(), *each_B])
    scratch = Scratch(*(torch.empty_like(blocks[0][0]) for _ in range(2)))  # of the first block: none is larger
    parts = [_sums(block, scratch, options, num_draws, entropy=entropy) for block in zip(*blocks, strict=True)]
    rest, squares = (
        [torch.cat(each).double() for each in zip(*lists, strict=True)]
        for lists in zip(*(part[:2] for part in parts), strict=True)
    )
    weighted_B, spread_B, edges_BE = (torch.cat(each) for each in zip(*(part[2:] for part in parts), strict=True))
    num_classes = rows.logits_BC.shape[1]
    return Sums(
        torch.stack(rest, 1),
        torch.stack(squares, 1) if squares else rows.level_B[:, None][:, :0],
        weighted_B.double(),
        _deviation(spread_B, num_classes if possible_B is None else possible_B),
        edges_BE,
    )


def _fused_sums(rows: Rows, kept: Kept, options: Encoding) -> Sums:
    kept_BK = rows.logits_BC.gather(1, kept.ids_BK).float()
    swept = {
        temperature: fused.sweep(rows.logits_BC, rows.level_B, rows.mean_B, kept_BK, kept.real_BK, temperature)
        for temperature in options.temperatures
    }
    squares = [each.squares_B for each in swept.values()] if options.statistics else []
    return Sums(
        torch.stack([each.rest_B for each in swept.values()], 1),
        torch.stack(squares, 1) if squares else rows.level_B[:, None][:, :0],
        swept[1.0].weighted_B,
        swept[1.0].deviation_B,
        swept[1.0].rest_B[:, None],
    )


class Parts(NamedTuple):
    """Of some rows what `Sums` has of all: each temperature apart, as it was summed; Σ (z − mean)² is the spread."""

    rest: list[Tensor]
    squares: list[Tensor]
    weighted_B: Tensor
    spread_B: Tensor
    edges_BE: Tensor


def _sums(block: tuple[Tensor, ...], scratch: Scratch, options: Encoding, num_draws: int, *, entropy: bool) -> Parts:
    """Return the sums of a block of rows, in two buffers of its size that serve every block.

    Whatever can be done of all rows at once is left to `sweep`: a block may be one row.
    """
    logits_BC, level_B, mean_B, peak_B, ids_BK, *possible = block
    above_BC, e_BC = (each[: len(logits_BC)] for each in scratch)
    torch.sub(logits_BC, level_B[:, None], out=above_BC)
    rest, squares = [], []
    for temperature in options.temperatures:
        if temperature == 1:
            # 0 where a class is kept: those are summed apart, in float64
            torch.exp(above_BC, out=e_BC).scatter_(1, ids_BK, 0.0)
            # (B, E); one edge where nothing is drawn
            edges_BE = bundle_sums(e_BC, num_draws) if num_draws else e_BC.sum(1, keepdim=True)
            # else a stand-in, so that blocks join
            weighted_B = dot(e_BC, above_BC) if entropy else level_B
            rest.append(edges_BE.double().sum(1) if num_draws else edges_BE[:, 0])
        else:
            torch.mul(above_BC, 1 / temperature, out=e_BC).exp_().scatter_(1, ids_BK, 0.0)
            rest.append(e_BC.sum(1))
        if options.statistics:
            squares.append(dot(e_BC, e_BC))
    spread_B = mean_B  # a stand-in where it is not asked for
    if options.statistics or options.standardised_temperatures:
        if not torch.equal(level_B, mean_B):  # else above_BC is above the mean already
            torch.sub(logits_BC, mean_B[:, None], out=above_BC)
        never_BC = logits_BC == NO_SCORE if possible else None
        if never_BC is not None:
            above_BC.masked_fill_(never_BC, 0.0)
        spread_B = dot(above_BC, above_BC)
        for temperature in options.standardised_temperatures:
            deviation_B = _deviation(spread_B, possible[0] if possible else logits_BC.shape[1])
            factor_B = standardising(deviation_B, temperature)[:, None]
            # below the peak, so that no exponent is above 0
            torch.mul(above_BC, factor_B, out=e_BC).sub_((peak_B - mean_B)[:, None] * factor_B)
            if never_BC is not None:
                e_BC.masked_fill_(never_BC, NO_SCORE)
            rest.append(e_BC.exp_().scatter_(1, ids_BK, 0.0).sum(1))
    return Parts(rest, squares, weighted_B, spread_B, edges_BE)


def _deviation(spread_B: Tensor, possible_B: Tensor | int) -> Tensor:
    """Return the deviation of logits from their squares and from how many there are, float64 (B,)."""
    return (spread_B.double() / possible_B).sqrt()


def standardising(deviation_B: Tensor, temperature: float) -> Tensor:
    """Return what centred logits are multiplied by, float32 (B,)."""
    return (1 / (deviation_B * temperature).clamp(min=1e-6)).float()  # a row of one value


def dot(a_BC: Tensor, b_BC: Tensor) -> Tensor:
    """Return Σ_C a b, float32 (B,); of long rows on a CPU by BLAS, an eighth of the time of a product and its sum."""
    if a_BC.device.type == "cpu" and a_BC.shape[1] >= LONG_ROW:
        return torch.stack(list(map(torch.dot, a_BC.unbind(), b_BC.unbind())))
    return (a_BC * b_BC).sum(1)


@dataclass(frozen=True, slots=True)
class Described:
    """All that an encoding may keep of some rows besides their classes.

    Attributes:
        log_total_B: log of Σ e over all columns at temperature 1, e above the rows' level; float64.
        entropy_B, label_log_p_B: at temperature 1, float64; the latter of class 0 where there is no label.
        edges_BE: `Sums.edges_BE`.
        log_rest_BT: log of the share that is not kept, (B, T + U), at each temperature, then at each standardised one.
        arrays: LSE and STATISTICS as they are stored; empty if they are switched off.
    """

    log_total_B: Tensor
    entropy_B: Tensor
    label_log_p_B: Tensor
    edges_BE: Tensor
    log_rest_BT: Tensor
    arrays: dict[str, Tensor]


def describe(
    rows: Rows, kept: Kept, labels_B: Tensor, options: Encoding, num_draws: int = 0, *, entropy: bool = True
) -> Described:
    """Return masses at every temperature of an encoding, and statistics if it keeps them.

    Args:
        rows: of the teacher.
        kept: classes that are stored exactly; K may be 0.
        labels_B: int64, −1 where there is none.
        options: the encoding.
        num_draws: that are to be made of the rest.
        entropy: whether it is wanted.
    """
    sums = sweep(rows, kept, options, num_draws, entropy=entropy)
    kept_BK = rows.above(kept.ids_BK).double()
    # of class 0 where there is no label: left out below
    label_B = rows.above(labels_B.clamp(min=0)[:, None])[:, 0].double()
    level_B, mean_B = rows.level_B.double(), rows.mean_B.double()
    lse, rest, norm, label = [], [], [], []
    for number, temperature in enumerate(options.temperatures):
        kept_e_BK = (kept_BK / temperature).exp() * kept.real_BK  # padding repeats a class that counts already
        rest_B = sums.rest_BT[:, number]
        total_B = rest_B + kept_e_BK.sum(1)
        rest.append(rest_B / total_B)
        if temperature == 1:
            log_total_B = total_B.log()
        if options.statistics:
            squares_B = sums.squares_BT[:, number] + kept_e_BK.square().sum(1)
            norm.append(squares_B.sqrt() / total_B)
        lse.append(total_B.log() + level_B / temperature)
        label_log_p_B = (label_B / temperature - total_B.log()).clamp(min=NEVER)
        label.append(torch.where(labels_B < 0, 0.0, label_log_p_B))
        if temperature == 1:
            weighted_B = sums.weighted_B + (kept_e_BK * kept_BK).sum(1)
            # rounding may leave it a little below 0
            entropy_B = (log_total_B - weighted_B / total_B).clamp(min=0)
            of_label_B = label_log_p_B
    for number, temperature in enumerate(options.standardised_temperatures, len(options.temperatures)):
        factor_B = standardising(sums.deviation_B, temperature).double()
        from_peak_B = level_B - rows.peak_B
        kept_e_BK = ((kept_BK + from_peak_B[:, None]) * factor_B[:, None]).exp() * kept.real_BK
        rest_B = sums.rest_BT[:, number]
        total_B = rest_B + kept_e_BK.sum(1)
        lse.append(total_B.log() + (rows.peak_B - mean_B) * factor_B)
        rest.append(rest_B / total_B)
    # In float16, 0 would leave the kept classes nothing.
    log_rest_BT = torch.stack(rest, 1).log().clamp(min=NEVER, max=-(2.0**-24)).float()
    if not options.statistics:
        return Described(log_total_B, entropy_B, of_label_B, sums.edges_BE, log_rest_BT, {})
    # the mean of log-probabilities: of the logits, less their log-sum-exp
    columns = [entropy_B, mean_B - level_B - log_total_B, sums.deviation_B, *norm, *label]
    arrays = {LSE: torch.stack(lse, 1).float(), STATISTICS: torch.stack(columns, 1).to(torch.float16)}
    return Described(log_total_B, entropy_B, of_label_B, sums.edges_BE, log_rest_BT, arrays)


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
        mean_B=columns_BJ[:, 1] + lse_BT[:, options.temperatures.index(1.0)],  # back to logits
        std_B=columns_BJ[:, 2],
        standardised_temperatures=tuple(options.standardised_temperatures),
        standardised_lse_BU=lse_BT[:, num:],
    )
