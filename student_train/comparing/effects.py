"""What each swept key does: settings that are alike but for it, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from student_train.comparing.figures import Gain
from student_train.comparing.settings import Setting, Varied


class Effect(NamedTuple):
    """One swept key.

    Attributes:
        varied: the key, or keys that vary together.
        values: its values, numbers in their order.
        lines: of each set of settings that differ in this key alone, the mean figure at each value; None: none.
        means: at each value over the lines that have every value; over all if none has.
    """

    varied: Varied
    values: tuple[str, ...]
    lines: tuple[tuple[float | None, ...], ...]
    means: tuple[float | None, ...]

    @property
    def whole(self) -> tuple[tuple[float, ...], ...]:
        """Return the lines that have every value."""
        found = (tuple(figure for figure in line if figure is not None) for line in self.lines)
        return tuple(line for line in found if len(line) == len(self.values))

    def best(self, gain: Gain) -> int | None:
        """Return the place of the best value; None: no figure is known."""
        known = [place for place, mean in enumerate(self.means) if mean is not None]
        return max(known, key=lambda place: gain.sign * (self.means[place] or 0.0), default=None)

    def won(self, gain: Gain) -> int:
        """Return in how many of the whole lines the best value is better than every other."""
        best = self.best(gain)
        if best is None:
            return 0
        others = [(line[best], line[:best] + line[best + 1 :]) for line in self.whole]
        return sum(all(gain.sign * (own - other) > 0 for other in rest) for own, rest in others)


def effects_of(settings: Sequence[Setting], varied: Sequence[Varied], gain: Gain) -> list[Effect]:
    """Return the effect of each key that varies, where at least two settings are alike but for it."""
    found = (_effect(settings, each, gain) for each in varied)
    return [effect for effect in found if effect is not None]


def _effect(settings: Sequence[Setting], varied: Varied, gain: Gain) -> Effect | None:
    alike: dict[str, dict[str, float]] = {}
    orders: dict[str, Any] = {}
    for setting in settings:
        text, mean = varied.text(setting), setting.mean(gain.column)
        if text is not None and mean is not None and setting.is_measured:
            rest = {name: below for name, below in setting.keys.items() if name not in varied.keys}
            alike.setdefault(json.dumps([setting.label, rest], sort_keys=True), {})[text] = mean
            orders[text] = varied.order(setting)
    lines = [line for line in alike.values() if len(line) > 1]
    texts = sorted({text for line in lines for text in line}, key=orders.__getitem__)
    if not lines:
        return None
    shown = tuple(tuple(line.get(text) for text in texts) for line in lines)
    whole = [line for line in shown if None not in line] or shown
    return Effect(varied, tuple(texts), shown, tuple(_mean(column) for column in zip(*whole, strict=True)))


def _mean(column: Sequence[float | None]) -> float | None:
    known = [figure for figure in column if figure is not None]
    return fmean(known) if known else None
