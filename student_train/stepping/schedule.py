"""The learning rate of every step, as a pure function."""

from __future__ import annotations

from math import cos, pi

from student_train.options.training import Schedule


def learning_rate_at(
    step: int,
    *,
    peak: float,
    warmup_steps: float,
    total_steps: int,
    schedule: Schedule,
    floor: float = 0.0,
    decay_share: float = 0.1,
) -> float:
    """Return the learning rate of a step, counted from 0.

    It rises in a straight line over `warmup_steps`, is `peak` right after, and then stays, or falls to
    `floor` · `peak`, where it would be one step after the last. With t from 0 right after the warm-up to 1 there, it is
    peak · (floor + (1 − floor) · f), with

        constant   f = 1
        linear     f = 1 − t
        cosine     f = (1 + cos πt) / 2
        wsd        f = 1, and over the last `decay_share` of all steps 1 − (the share of these that are taken)

    Ten steps, of which the first two rise, and with "wsd" the last four fall:

        >>> about = dict(peak=1.0, warmup_steps=2, total_steps=10, floor=0.2, decay_share=0.4)
        >>> for schedule in ("linear", "cosine", "wsd"):
        ...     print([round(learning_rate_at(step, schedule=schedule, **about), 2) for step in range(10)])
        [0.33, 0.67, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
        [0.33, 0.67, 1.0, 0.97, 0.88, 0.75, 0.6, 0.45, 0.32, 0.23]
        [0.33, 0.67, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4]

    Source: cosine by Loshchilov & Hutter 2016, eq. 5 without restarts, arXiv 1608.03983. Warm-up, stable, decay (wsd)
    by Hu et al. 2024 (MiniCPM), section 4, arXiv 2404.06395, whose decay is exponential; a straight line by Hägele et
    al. 2024, arXiv 2405.18392. After the warm-up all are those of `transformers.get_scheduler`, whose own warm-up
    begins with a step at 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)  # above 0 from the first step on
    # max: the warm-up may be all there is
    through = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    fallen = {
        "constant": 1.0,
        "linear": 1 - through,
        "cosine": 0.5 * (1 + cos(pi * through)),
        "wsd": min(1.0, (total_steps - step) / (decay_share * total_steps)),
    }[schedule]
    return peak * (floor + (1 - floor) * fallen)
