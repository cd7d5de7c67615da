"""What is random in a view, and yet a pure function: a hash of (seed, sample, view, purpose), in int64 on any device.

Nothing here is floating point on a device, so that every one gives the same numbers. Tables are made on the host with
`decimal`, whose exponentials are correctly rounded on every machine.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import lru_cache

from torch import Tensor

from storage.digests import mixed, mixed_after, shifted, signed

ONE = 2**24  # probability 1 in fixed point
UNIT = 128  # 1 in the fixed point of pixels' factors and weights: a product with a pixel fits 16 bits


class Rolls:
    """The dice of one transform over some rows.

    Args:
        keys_B: int64, one of each sample's own (`storage.digests.sample_keys`).
        seed, view: of the promise, and the view's number.
        place: the transform's in its list, so that two of a kind differ.
    """

    def __init__(self, keys_B: Tensor, *, seed: int, view: int, place: int):
        self._keys_B = keys_B
        self._salt = mixed_after(mixed_after(mixed_after(seed) + view) + place)

    def bits(self, purpose: int) -> Tensor:
        """Return 32 random bits a row, (B,) int64; other ones for every purpose."""
        salt = mixed_after(self._salt + purpose)
        return shifted(mixed(self._keys_B + signed(salt)), 32)

    def below(self, stop: int | Tensor, purpose: int) -> Tensor:
        """Return an integer in [0, stop) a row, (B,) int64; `stop` is at most 2**31."""
        # the high half of a product in place of a remainder; 32 and 31 bits fit an int64
        return self.bits(purpose) * stop >> 32

    def happens(self, probability: float, purpose: int) -> Tensor:
        """Return (B,) bool."""
        return self.bits(purpose) >> 8 < fixed_point(probability)  # 24 bits, as ONE has


def fixed_point(probability: float) -> int:
    """Return a probability in units of 1 / ONE."""
    return round(probability * ONE)


@lru_cache(maxsize=64)
def beta_steps(alpha: float) -> tuple[int, ...]:
    """Return the distribution of λ ~ Beta(alpha, alpha), rounded to 1 / UNIT: P(λ <= i) in units of 1 / ONE.

    Returns:
        Ascending, one for each i of 0 … UNIT - 1: the smallest i whose value exceeds a roll below ONE is its λ, or
        UNIT if there is none.
    """
    with localcontext() as context:
        context.prec = 40 + int(alpha)  # terms of the series cancel, the more the larger alpha is
        a = Decimal(alpha)

        def below(x: Decimal) -> Decimal:
            """Return ∫₀ˣ (t (1 - t))^(a-1) dt for x <= ½, by the series of (1 - t)^(a-1)."""
            total, term = Decimal(0), Decimal(1)
            for n in range(100 + 2 * int(alpha)):  # each term is half of the one before, or less
                total += term / (a + n)
                term *= x * (n + 1 - a) / (n + 1)
            return (a * x.ln()).exp() * total  # x to the power of a

        half = below(Decimal("0.5"))
        # a λ below i + ½ is rounded to i or less
        lower = [below((Decimal(i) + Decimal("0.5")) / UNIT) / (2 * half) for i in range(UNIT // 2)]
        shares = [*lower, *(1 - share for share in reversed(lower))]  # its own mirror image
        return tuple(int((share * ONE).to_integral_value()) for share in shares)


@lru_cache(maxsize=64)
def spread(least: float, most: float, count: int) -> tuple[Decimal, ...]:
    """Return `count` numbers from `least` to `most`, evenly spaced in their logarithm."""
    with localcontext() as context:
        context.prec = 40  # digits, far more than a table keeps
        first, last = Decimal(least).ln(), Decimal(most).ln()
        return tuple((first + (last - first) * i / (count - 1)).exp() for i in range(count))
