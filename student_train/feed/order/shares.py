"""How many rows of each dataset an epoch of a mixture takes, by shares; and how that is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from storage.errors import BadRequest
from student_train.feed.selection import Selection


def shared_out(shares: Mapping[str, float], num_rows: int) -> dict[str, int]:
    """Return how many of N rows each dataset has by its share; what is left over goes to the largest remainders.

    >>> shared_out({"a": 0.7, "b": 0.3}, 1437), shared_out({"a": 0.333, "b": 0.333, "c": 0.333}, 10)
    ({'a': 1006, 'b': 431}, {'a': 4, 'b': 3, 'c': 3})
    """
    total = sum(map(Fraction, shares.values()))
    exact = {name: num_rows * Fraction(share) / total for name, share in shares.items()}
    rows = {name: int(each) for name, each in exact.items()}
    first = sorted(shares, key=lambda name: (rows[name] - exact[name], name))  # the largest remainder
    over = first[: num_rows - sum(rows.values())]
    return {name: count + (name in over) for name, count in rows.items()}


def mixed(selection: Selection, shares: Mapping[str, float] | None) -> Selection:
    """Return the same rows, of which an epoch takes those of each dataset by its share.

    Args:
        selection: of several datasets.
        shares: of each of them; None: every row is in an epoch once.

    Raises:
        BadRequest: a share is not one row of an epoch.
    """
    if shares is None:
        return selection
    rows = shared_out(shares, selection.num_rows)
    if none := [name for name, count in rows.items() if not count]:
        raise BadRequest(
            f"the mixture has no row of {', '.join(none)}",
            found=", ".join(f"{name} = {shares[name]:g}" for name in none) + f" of {selection.num_rows:,} rows",
            expected="one row of an epoch at least",
            do="a larger share; or leave the dataset out of `train` and `mixture`",
        )
    return replace(selection, taken=tuple(rows[dataset] for dataset in selection.datasets))


def told_of_mixture(selection: Selection) -> str | None:
    """Return what an epoch of a mixture has of each dataset, in words; None: it has each row once."""
    if not selection.taken:
        return None
    told = []
    for part, taken in zip(selection.parts, selection.taken, strict=True):
        held = len(part.rows)
        turn = f"each within {-(-held // taken)} epochs" if taken < held else f"each {_times(taken, held)}"
        told.append(f"{taken:,} of {part.dataset} ({taken / selection.num_rows:.1%}; it has {held:,}, {turn})")
    return f"an epoch of the mixture is {selection.num_rows:,} rows: {', '.join(told)}"


def _times(taken: int, held: int) -> str:
    """Return how many times each of some rows comes.

    >>> _times(7, 7), _times(14, 7), _times(15, 7)
    ('once', '2 times', '2 or 3 times')
    """
    rounds, more = divmod(taken, held)
    return f"{rounds} or {rounds + 1} times" if more else "once" if rounds == 1 else f"{rounds} times"
