"""Intervals of differences: closed forms, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from student_train.comparing.noise import Answered, SeedNoise, difference, pooled, t_975


def of(*students_R: list[float], seeds: tuple[int, ...] | None = None) -> Answered:
    """Return a setting whose students scored so on each row."""
    scores = np.array(students_R, np.float64)
    return Answered(scores.mean(0), scores.mean(1), seeds or tuple(range(len(scores))))


def test_one_student_each_is_the_difference_of_paired_proportions() -> None:
    # of 100 rows the one alone is right on 10 and the other alone on 4: (10 + 1)/102, (4 + 1)/102 of Bonett and Price
    one, other = [1.0] * 10 + [0.0] * 4 + [1.0] * 86, [0.0] * 10 + [1.0] * 4 + [1.0] * 86
    found = difference(of(one), of(other), None, shares=True)
    lost, won = 11 / 102, 5 / 102
    assert found.mean == pytest.approx(0.06)
    assert found.half == pytest.approx(1.96 * ((lost + won - (lost - won) ** 2) / 102) ** 0.5)
    assert not found.with_seeds


def test_where_two_never_differ_the_difference_is_not_certain() -> None:
    found = difference(of([1.0] * 50), of([1.0] * 50), None, shares=True)
    assert (found.mean, found.is_told) == (0.0, False)
    assert found.half is not None
    assert found.half > 0


def test_the_noise_of_few_seeds_is_pooled_over_all_settings() -> None:
    scores = [[0.5, 0.7], [0.6, 0.8, 0.7], [0.9]]
    expected = (0.02 / (0.6 * 0.4) + 0.02 / (0.7 * 0.3)) / 3
    noise = pooled(scores, shares=True)
    assert noise is not None
    assert noise == (pytest.approx(expected), 3)
    assert pooled([[0.5], [0.6]], shares=True) is None


def test_a_setting_of_one_seed_has_the_noise_of_the_others() -> None:
    rows = [1.0, 0.0] * 200
    alone = difference(of(rows), of(rows), None, shares=True)
    noisy = difference(of(rows), of(rows), SeedNoise(0.01, 200), shares=True)
    assert alone.half is not None
    assert noisy.half == pytest.approx(((alone.half / 1.96) ** 2 + 2 * 0.01 * 0.25) ** 0.5 * 1.96)


def test_five_seeds_of_both_are_paired() -> None:
    shift = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])
    one, other = (Answered(None, 0.5 + gain + shift, tuple(range(5))) for gain in (0.1, 0.0))
    found = difference(one, other, SeedNoise(1.0, 9), shares=True)
    assert (found.mean, found.half) == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-9))
    unpaired = difference(one, other._replace(seeds=(5, 6, 7, 8, 9)), None, shares=True)
    assert unpaired.half == pytest.approx(2.306 * (2 * 0.025 / 5) ** 0.5)


def test_a_quantile_is_never_too_small() -> None:
    assert [t_975(freedom) for freedom in (0.3, 1, 3.9, 7, 29, 99, 100)] == [
        12.706,
        12.706,
        3.182,
        2.447,
        2.131,
        2.042,
        1.96,
    ]


@pytest.mark.parametrize(("seeds", "deviation"), [(2, 0.1), (2, 0.4), (3, 0.4), (6, 0.4)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(seeds: int, deviation: float) -> None:
    random, settings, rows, inside = np.random.default_rng(0), 6, 300, 0
    for _ in range(120):
        means = random.normal(2, 0.5, settings)
        hard_R, answered = random.normal(0, 1.5, rows), []
        for mean in means:
            drawn = random.normal(0, deviation, (seeds, 1)) + random.normal(0, 0.5, rows) + hard_R + mean
            answered.append(of(*(random.random((seeds, rows)) < 1 / (1 + np.exp(-drawn))).astype(float).tolist()))
        noise = pooled([each.of_students.tolist() for each in answered], shares=True)
        found = difference(*answered[:2], noise, shares=True)
        many = random.normal(0, (1.5**2 + 0.5**2 + deviation**2) ** 0.5, 20_000)
        true = [float((1 / (1 + np.exp(-(mean + many)))).mean()) for mean in means[:2]]
        assert found.half is not None
        inside += abs(found.mean - (true[0] - true[1])) <= found.half
    assert inside / 120 > 0.9
