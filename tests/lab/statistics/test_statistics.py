"""Tests over seeds: against SciPy and figures by hand, false positives by simulation, and what has no spread."""

import math

import numpy as np
import pytest
from scipy import stats

from bert_jax.lab.statistics.differences import BETTER, UNKNOWN, WORSE, holm, paired, summary, verdict, welch


def test_a_summary_by_hand():
    found = summary([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    # t with 2 degrees of freedom has its 97.5 % quantile at 4.302653
    assert found.half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert found.low == pytest.approx(2 - found.half) and found.high == pytest.approx(2 + found.half)


def test_one_value_has_no_spread_and_equal_ones_have_none_either():
    one = summary([0.5])
    assert one.mean == 0.5 and all(map(math.isnan, (one.sd, one.low, one.high)))
    same = summary([0.1 + 0.2, 0.3, 0.3])  # equal but for rounding
    assert same.sd == 0 and same.low == same.high == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("values", "message"), [([], "no values"), ([1.0, math.nan], "1 of 2 values"), ([math.inf], "1 of 1")]
)
def test_values_that_are_none_raise(values, message):
    with pytest.raises(ValueError, match=message):
        summary(values)


def test_welch_is_scipys_with_unequal_numbers_and_spreads():
    x, y = [0.81, 0.84, 0.79, 0.83], [0.70, 0.78, 0.81, 0.69, 0.75]
    found, expected = welch(x, y), stats.ttest_ind(x, y, equal_var=False)
    assert found.p == pytest.approx(expected.pvalue) and (found.n, found.n_baseline) == (4, 5)
    # The interval by the textbook: mean ± t × √(s²/n + s²/m), degrees of freedom by Satterthwaite.
    a, b = np.var(x, ddof=1) / 4, np.var(y, ddof=1) / 5
    half = stats.t.ppf(0.975, (a + b) ** 2 / (a**2 / 3 + b**2 / 4)) * math.sqrt(a + b)
    assert found.mean == pytest.approx(np.mean(x) - np.mean(y)) and found.half == pytest.approx(half)
    assert found.effect == pytest.approx(found.mean / math.sqrt((4 * a + 5 * b) / 2))


def test_the_paired_test_is_scipys():
    x, y = [0.81, 0.84, 0.79, 0.83], [0.80, 0.82, 0.78, 0.80]
    found, expected = paired(x, y), stats.ttest_rel(x, y)
    interval = expected.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx((expected.pvalue, interval.low, interval.high))
    with pytest.raises(ValueError, match="4 values and 3 of the baseline are no pairs"):
        paired(x, y[:3])


def test_without_spread_nothing_is_tested_and_nothing_warns():
    for found in (welch([1.0], [2.0, 3.0]), welch([1.0, 1.0], [2.0, 2.0]), paired([1.0, 2.0], [0.5, 1.5])):
        assert math.isnan(found.p) and math.isnan(found.low)
        assert verdict(found, found.p, True).word == UNKNOWN
    assert "at least 2 per level" in str(verdict(welch([1.0], [2.0, 3.0]), math.nan, True))
    assert "check that seeds differ" in str(verdict(welch([1.0, 1.0], [2.0, 2.0]), math.nan, True))
    assert "all runs have the same value" in str(verdict(welch([1.0, 1.0], [1.0, 1.0]), math.nan, True))
    assert 0 < welch([1.0, 1.0], [2.0, 2.5]).p < 1  # the spread of one side is enough


def test_holm_by_hand():
    # 0.01 × 4, 0.015 × 3, then 0.03 × 2 = 0.06, and the last is no lower than the one before it.
    assert holm([0.03, 0.01, 0.04, 0.015]) == pytest.approx([0.06, 0.04, 0.06, 0.045])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
    with_nan = holm([0.02, math.nan])  # what could not be tested counts as a test
    assert with_nan[0] == pytest.approx(0.04) and math.isnan(with_nan[1])


def test_a_verdict_knows_which_way_is_better_and_how_many_comparisons_there_were():
    high, low = [0.90, 0.91, 0.92, 0.91], [0.80, 0.81, 0.82, 0.80]
    assert verdict(welch(high, low), 0.001, True).word == BETTER
    assert verdict(welch(high, low), 0.001, False).word == WORSE
    assert verdict(welch(low, high), 0.001, False, 3).reason == "p = 0.001 after Holm's correction for 3 comparisons"


def test_a_verdict_asks_for_as_many_seeds_as_the_power_says():
    x, y = [0.0, 1.0, 2.0], [1.5, 2.0, 3.0]
    found = welch(x, y)
    said = verdict(found, found.p, True)
    needed = next(n for n in range(3, 100) if _simulated_power(n, found.effect) >= 0.8)
    assert said.word == UNKNOWN and abs(said.more_seeds + 3 - needed) <= 1
    assert said.least_seeds == 1 and "more seeds per level needed (at least 1)" in str(said)
    nearly_equal = verdict(welch([0.0, 1.0, 2.0], [0.0, 1.0, 2.001]), 0.99, True)
    assert nearly_equal.more_seeds is None and "over 100 more seeds" in nearly_equal.reason


def _simulated_power(n: int, effect: float, repeats: int = 20_000) -> float:
    x, y = np.random.default_rng(0).normal(size=(2, repeats, n))
    return float((stats.ttest_ind(x + abs(effect), y, axis=1, equal_var=False).pvalue <= 0.05).mean())


REPEATS = [1000, pytest.param(10_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("repeats", REPEATS)
@pytest.mark.parametrize("seeds", [3, 5])
def test_without_an_effect_at_most_six_per_cent_are_found(seeds, repeats):
    random = np.random.default_rng(seeds)
    draws = random.normal(size=(repeats, 2, seeds))
    assert np.mean([welch(x, y).p <= 0.05 for x, y in draws]) <= 0.06
    assert np.mean([paired(x, y).p <= 0.05 for x, y in draws]) <= 0.06


@pytest.mark.parametrize("repeats", REPEATS)
def test_one_of_four_levels_is_found_in_at_most_six_per_cent_only_with_holm(repeats):
    draws = np.random.default_rng(1).normal(size=(repeats, 5, 5))
    p_values = [[welch(level, levels[0]).p for level in levels[1:]] for levels in draws]
    assert np.mean([min(holm(p)) <= 0.05 for p in p_values]) <= 0.06
    assert np.mean([min(p) <= 0.05 for p in p_values]) > 0.08
