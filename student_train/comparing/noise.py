"""How far the difference of two settings can be believed: both were asked about the same held rows.

Two things make a difference noisy: which rows are held, and which seeds were drawn. The first is seen on the rows, each
setting's score of a row being the mean over its seeds: only rows on which the two differ are noise. The second is seen
on the seeds: where both settings have the same five or more, on the differences seed by seed; below that, where two or
three students say next to nothing of their own spread, it is pooled over all settings, as an analysis of variance does.
Their variances are added, and the interval is Student's t with as many degrees of freedom as Welch and Satterthwaite
count for such a sum.

R held rows (of tokens, blocks), n students of a setting.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from math import inf, sqrt
from typing import Any, NamedTuple

import numpy as np

Scores = np.ndarray[Any, np.dtype[np.float64]]

MANY_SEEDS = 5  # from so many on a setting's own spread is known well enough
# Quantiles 0.975 of Student's t by degrees of freedom; between two of them the wider one holds.
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 8: 2.306, 10: 2.228, 15: 2.131, 30: 2.042}
T_FAR, Z_975 = 100, 1.96  # from so many on that of a normal distribution, to two digits


class Answered(NamedTuple):
    """How one setting did on the held rows.

    Attributes:
        of_rows: (R,), mean over its students of each row's score; None: they left no predictions.
        of_students: (n,), each one's mean score.
        seeds: (n,), theirs.
    """

    of_rows: Scores | None
    of_students: Scores
    seeds: tuple[Hashable, ...]


class SeedNoise(NamedTuple):
    """The variance that seeds bring, pooled over settings and relative to `_scale`; and its degrees of freedom."""

    relative: float
    freedom: int


class Difference(NamedTuple):
    """One setting less another.

    Attributes:
        mean: of their scores.
        half: half the width of its 95 % interval; None: nobody knows.
        with_seeds: whether the noise of seeds is in it; where no setting has two seeds nobody knows it.
    """

    mean: float
    half: float | None
    with_seeds: bool

    @property
    def is_told(self) -> bool:
        """Whether the two are told apart."""
        return self.half is not None and abs(self.mean) > self.half


def pooled(settings: Iterable[Sequence[float]], *, shares: bool) -> SeedNoise | None:
    """Return the noise of seeds over all settings, given each one's scores by seed; None: none has two.

    >>> noise = pooled([[0.4, 0.6], [0.9]], shares=True)  # variance 0.02 over 0.25, of one degree of freedom
    >>> round(noise.relative, 6), noise.freedom
    (0.08, 1)
    """
    several = [np.asarray(scores) for scores in settings if len(scores) > 1]
    freedom = sum(len(scores) - 1 for scores in several)
    total = sum(((scores - scores.mean()) ** 2).sum() / _scale(scores.mean(), shares=shares) for scores in several)
    return SeedNoise(float(total) / freedom, freedom) if freedom else None


def difference(one: Answered, other: Answered, noise: SeedNoise | None, *, shares: bool) -> Difference:
    """Return by how much the first scores higher.

    Args:
        one, other: how they did on the same rows; a teacher has no seeds.
        noise: of seeds.
        shares: whether a score is right or wrong, 1 or 0: then two rows more are counted, one lost and one won, so that
            none lost is not yet certainty.

    Source: Bonett & Price 2012 for the rows more; Satterthwaite 1946 for the degrees of freedom.

    >>> rows = np.array([1, 1, 1, 1]), np.array([1, 1, 0.5, 0])
    >>> one, other = (Answered(of_rows, of_rows[:2], (0, 1)) for of_rows in rows)
    >>> found = difference(one, other, SeedNoise(0.01, 7), shares=True)
    >>> f"{found.mean:.3f} ± {found.half:.2f}"
    '0.375 ± 0.73'
    """
    parts: list[tuple[float, float]] = []  # variance, and its degrees of freedom
    if one.of_rows is not None and other.of_rows is not None:
        apart_R = one.of_rows - other.of_rows
        mean = float(apart_R.mean())
        counted_R = np.append(apart_R, (1.0, -1.0)) if shares else apart_R
        if len(counted_R) > 1:
            parts.append((float(counted_R.var()) / len(counted_R), len(counted_R) - 1))
    else:
        mean = float(one.of_students.mean() - other.of_students.mean())
    seeds = _of_seeds(one, other, noise, shares=shares)
    if not parts and not seeds:
        return Difference(mean, None, with_seeds=False)
    variance = sum(each for each, _ in parts + seeds)
    spread = sum(each**2 / freedom for each, freedom in parts + seeds)
    return Difference(mean, t_975(variance**2 / spread if spread else inf) * sqrt(variance), with_seeds=bool(seeds))


def _of_seeds(one: Answered, other: Answered, noise: SeedNoise | None, *, shares: bool) -> list[tuple[float, float]]:
    """Return the variances that seeds bring into a difference, with their degrees of freedom."""
    seeds = set(one.seeds)
    if seeds == set(other.seeds) and len(seeds) >= MANY_SEEDS:
        by_seed = [dict(zip(each.seeds, each.of_students, strict=True)) for each in (one, other)]
        return [_own(np.array([by_seed[0][seed] - by_seed[1][seed] for seed in by_seed[0]]))]
    parts, pooled_variance = [], 0.0
    for each in (one, other):
        if len(each.seeds) >= MANY_SEEDS:
            parts.append(_own(each.of_students))
        elif each.seeds and noise is not None:
            scale = _scale(float(each.of_students.mean()), shares=shares)
            pooled_variance += noise.relative * scale / len(each.seeds)
    return [*parts, (pooled_variance, noise.freedom)] if pooled_variance and noise is not None else parts


def _own(scores: Scores) -> tuple[float, float]:
    return float(scores.var(ddof=1)) / len(scores), len(scores) - 1


def _scale(mean: float, *, shares: bool) -> float:
    """Return what the variance over seeds goes with: p (1 − p) of a share, never quite 0; of nats their square."""
    return max(mean * (1 - mean), 1e-4) if shares else mean**2 or 1.0


def t_975(freedom: float) -> float:
    """Return Student's t at 0.975, the wider of two where the table has none.

    >>> t_975(1.5), t_975(2), t_975(1e9)
    (12.706, 4.303, 1.96)
    """
    return Z_975 if freedom >= T_FAR else next(t for known, t in reversed(T_975.items()) if known <= max(freedom, 1))


def deviation(values: Sequence[float]) -> float | None:
    """Return the standard deviation over seeds (n − 1); None of one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
