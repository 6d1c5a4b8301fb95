"""What a number of seeds can show: against simulations, and the way back."""

import math

import numpy as np
import pytest
from scipy import stats

from bert_jax.config import UserError
from bert_jax.lab.statistics.power import MOST_SEEDS, detectable_difference, main, power, seeds_needed


@pytest.mark.parametrize(
    ("n", "effect", "alpha"), [(2, 4.0, 0.05), (3, 2.5, 0.05), (5, 2.5, 0.05), (5, 1.0, 0.05), (10, 1.5, 0.0125)]
)
def test_power_is_what_a_simulation_finds(n, effect, alpha):
    x, y = np.random.default_rng(0).normal(size=(2, 40_000, n))
    unpaired = stats.ttest_ind(x + effect, y, axis=1, equal_var=False).pvalue
    assert power(n, effect, alpha=alpha) == pytest.approx((unpaired <= alpha).mean(), abs=0.008)
    of_pairs = stats.ttest_1samp(x + effect, 0.0, axis=1).pvalue
    assert power(n, effect, alpha=alpha, paired=True) == pytest.approx((of_pairs <= alpha).mean(), abs=0.008)


def test_two_figures_to_plan_with():
    assert power(5, 2.5) == pytest.approx(0.92, abs=0.005)
    assert power(3, 2.5) == pytest.approx(0.53, abs=0.005)


def test_without_an_effect_power_is_the_share_of_false_positives_at_any_size():
    assert power(1000, 0.0) == pytest.approx(0.05, abs=1e-3) and power(5, 0.0, paired=True) == pytest.approx(0.05)
    assert power(3, 0.0) < 0.05  # Welch's test is careful with few seeds


def test_difference_and_seeds_are_the_way_back():
    for n, comparisons in ((2, 1), (3, 4), (5, 1), (10, 8)):
        effect = detectable_difference(n, comparisons=comparisons)
        assert power(n, effect, comparisons=comparisons) == pytest.approx(0.8, abs=1e-4)
        assert seeds_needed(effect + 1e-3, comparisons=comparisons) == n
    assert detectable_difference(5, comparisons=4) > detectable_difference(5)
    assert power(5, 2.0, comparisons=4) == power(5, 2.0, alpha=0.0125)


def test_large_and_tiny_effects_have_an_answer():
    assert seeds_needed(1000.0) == 2 and seeds_needed(-3.0) == seeds_needed(3.0)
    assert seeds_needed(1e-3) is None
    assert power(2, 1e4) == pytest.approx(1.0) and not math.isnan(power(3, 0.5, comparisons=100_000))


def test_many_comparisons_of_two_seeds_take_no_minutes():
    exact = {False: 684.4554, True: 1153.8019}  # by SciPy's noncentral t alone
    for paired, effect in exact.items():
        assert detectable_difference(2, comparisons=100, paired=paired) == pytest.approx(effect, rel=1e-5)
        assert detectable_difference(2, comparisons=1_000_000, paired=paired) > 1e6


def test_one_seed_shows_nothing():
    with pytest.raises(ValueError, match="n is 1; the spread between seeds shows from 2 on"):
        power(1, 1.0)
    with pytest.raises(ValueError, match="must lie between alpha"):
        detectable_difference(5, power=0.01)


def test_the_command(capsys):
    assert main(["--seeds=5"]) == 0
    assert capsys.readouterr().out == (
        "5 seeds per level show a difference of 2.08 standard deviations between seeds with a probability of 80%\n"
    )
    assert main(["--seeds=3", "--effect=0.001"]) == 0
    assert f"more than {MOST_SEEDS} seeds per level" in capsys.readouterr().out
    for word in ("--effect=x", "--effect=-1", "--power=1", "--power=nan", "--seeds=1", "--sead=3", "runs/a"):
        with pytest.raises(UserError, match=word.partition("=")[0]):
            main([word])
