"""Multibootstrap, almost stochastic order, expected best: against closed forms, figures by hand, and deepsig."""

import importlib.util
import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from bert_jax.lab.statistics.resampling import almost_stochastic_order, expected_best, multibootstrap

X, Y = np.random.default_rng(0).normal(size=(2, 12))


def test_with_noise_of_the_seeds_alone_the_multibootstrap_is_a_t_test():
    x, y = (np.repeat(one[:, None], 50, axis=1) for one in (X + 1, Y))  # every example has the same score
    both, alone = multibootstrap(x, y, paired=True), stats.ttest_rel(X + 1, Y)
    interval = alone.confidence_interval(0.95)
    assert both.mean == pytest.approx(np.mean(X + 1 - Y)) and both.p == pytest.approx(alone.pvalue, rel=0.1)
    assert (both.low, both.high) == pytest.approx((interval.low, interval.high), abs=0.03)
    both, alone = multibootstrap(x, y[:10], paired=False), stats.ttest_ind(X + 1, Y[:10], equal_var=False)
    interval = alone.confidence_interval(0.95)
    assert (both.low, both.high) == pytest.approx((interval.low, interval.high), abs=0.03)


def test_with_noise_of_the_examples_alone_its_error_is_that_of_their_mean():
    examples = np.random.default_rng(1).normal(size=400)
    x, y = (np.tile(row, (10, 1)) for row in (examples, np.zeros(400)))  # every seed has the same scores
    found = multibootstrap(x, y, paired=True)
    # √(10 / 9) and the quantile of t are meant for the noise of the seeds: careful here
    error = examples.std() / 20 * math.sqrt(10 / 9)
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, 9) * error, rel=0.03)


def test_the_multibootstrap_refuses_what_it_cannot_answer():
    with pytest.raises(ValueError, match="9 seeds are too few to resample; the multibootstrap needs 10 per level"):
        multibootstrap(np.zeros((9, 5)), np.zeros((10, 5)), paired=False)
    with pytest.raises(ValueError, match="11 and 10 runs are no pairs"):
        multibootstrap(np.zeros((11, 5)), np.zeros((10, 5)), paired=True)
    with pytest.raises(ValueError, match="not finite"):
        multibootstrap(np.full((10, 5), np.nan), np.zeros((10, 5)), paired=True)
    assert math.isnan(multibootstrap(np.ones((10, 5)), np.ones((10, 5)), paired=True).p)


@pytest.mark.parametrize("repeats", [200, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("share", [1.0, 0.5])  # of the variance of a run's mean that is due to its seed
def test_at_ten_seeds_the_multibootstrap_finds_at_most_six_per_cent_without_an_effect(share, repeats):
    random, examples, found = np.random.default_rng(2), 40, []
    for _ in range(repeats):
        both = random.normal(size=(10, 1))  # what runs of one seed have in common
        sides = [both + random.normal(size=(10, 1)) for _ in range(2)]
        difficulty = math.sqrt(2 * (1 - share) / share * examples) * random.normal(size=(2, examples))
        x, y = (side + row for side, row in zip(sides, difficulty, strict=True))
        found.append(multibootstrap(x, y, paired=True, samples=400).p <= 0.05)
        found.append(multibootstrap(x, np.flip(y, 0), paired=False, samples=400).p <= 0.05)
    assert np.mean(found[::2]) <= 0.06 and np.mean(found[1::2]) <= 0.06


def test_it_finds_an_effect_that_is_there():
    x, y = (np.repeat(one[:, None], 20, axis=1) for one in (X + 3, Y))
    assert multibootstrap(x, y, paired=False).p < 0.001 and multibootstrap(y, x, paired=False).mean < -2


def test_almost_stochastic_order_of_clear_cases():
    assert almost_stochastic_order([3.0, 4.0, 5.0], [0.0, 1.0, 2.0]) == 0.0
    assert almost_stochastic_order([0.0, 1.0, 2.0], [3.0, 4.0, 5.0]) == 1.0
    assert almost_stochastic_order([1.0, 1.0], [1.0, 1.0]) == 1.0  # equal: neither is better
    assert almost_stochastic_order([2.0], [1.0]) == 1.0  # one run shows no distribution
    # Quantiles 1, 2 against 0, 3: half of the squared distance violates the order; the bound is above that.
    assert 0.5 < almost_stochastic_order([1.0, 2.0], [0.0, 3.0]) <= 1.0
    mixed = [0.80, 0.83, 0.85, 0.81, 0.84], [0.79, 0.82, 0.80, 0.83]
    assert almost_stochastic_order(*mixed) < almost_stochastic_order(*mixed, alpha=0.01)


DEEPSIG = """
import json, sys, warnings
warnings.simplefilter("ignore")
import deepsig
cases = json.load(sys.stdin)
print(json.dumps([float(deepsig.aso(a, b, show_progress=False, seed=0, dt=1e-3)) for a, b in cases]))
"""


@pytest.mark.slow
def test_almost_stochastic_order_is_deepsigs():
    if importlib.util.find_spec("deepsig") is None:
        pytest.skip("needs deepsig: pip install -e '.[dev]'")
    random = np.random.default_rng(3)
    sizes = (5, 5), (4, 9), (20, 10), (10, 10)
    cases = [[(random.normal(size=n) + 0.7).tolist(), random.normal(size=m).tolist()] for n, m in sizes]
    # In a process of its own: it imports torch and TensorFlow where they are installed.
    command = [sys.executable, "-c", DEEPSIG]
    output = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=True).stdout
    theirs = json.loads(output.splitlines()[-1])
    assert [almost_stochastic_order(*case) for case in cases] == pytest.approx(theirs, abs=0.03)


def test_expected_best_by_hand():
    assert expected_best([3.0, 1.0, 2.0]) == pytest.approx([2, 8 / 3, 3])  # of two: 2, 3 and 3
    assert expected_best([3.0, 1.0, 2.0], replacement=True)[1] == pytest.approx((1 + 3 * 2 + 5 * 3) / 9)
    assert expected_best([3.0, 1.0, 2.0], mode="min") == pytest.approx([2, 4 / 3, 1])


def test_expected_best_is_the_mean_over_all_choices_and_reports_what_validation_chose():
    validation, test = np.random.default_rng(4).normal(size=(2, 7))
    for n in range(1, 8):
        every = [test[max(some, key=lambda i: validation[i])] for some in itertools.combinations(range(7), n)]
        assert expected_best(validation, reported=test)[n - 1] == pytest.approx(np.mean(every))
        with_replacement = itertools.product(range(7), repeat=min(n, 4))
        every = [test[max(some, key=lambda i: validation[i])] for some in with_replacement]
        found = expected_best(validation, reported=test, replacement=True)[min(n, 4) - 1]
        assert found == pytest.approx(np.mean(every))


def test_expected_best_of_many_trials_and_of_bad_ones():
    many = expected_best(np.arange(2000.0))
    assert many[-1] == pytest.approx(1999) and (np.diff(many) > 0).all()
    assert many[1] == pytest.approx((2 * 1999 - 1) / 3 + 0, rel=1e-2)  # of two: two thirds of the way up
    with pytest.raises(ValueError, match="a failed trial the worst result"):
        expected_best([1.0, math.nan])
    with pytest.raises(ValueError, match="no trials"):
        expected_best([1.0, 2.0], reported=[1.0])
