"""Turns of tasks: shares against theory, by position alone, and nobody starves."""

import numpy as np
import pytest
from scipy import stats

from bert_jax.config import UserError
from bert_jax.data.batching.turns import BLOCK, Turns
from bert_jax.options import default_config

SIZES = [2105, 128, 171, 170, 107]  # batches per epoch of SST-2, MRPC, STS-B, TREC and WNUT17 in batches of 32


def drawn(turns, count, start=0):
    return np.asarray([turns(number) for number in range(start, start + count)])


@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.2, 0.0])
def test_shares_are_those_of_theory(exponent):
    turns, count = Turns(SIZES, 7, first=exponent), 200 * BLOCK
    expected = np.asarray(SIZES, float) ** exponent
    expected *= count / expected.sum()
    observed = np.bincount(drawn(turns, count), minlength=len(SIZES))
    assert stats.chisquare(observed, expected).pvalue > 0.05
    for block in range(0, count, BLOCK):  # nearer than independent draws come
        seen = np.bincount(drawn(turns, BLOCK, block), minlength=len(SIZES))
        assert np.all(np.abs(seen - expected * BLOCK / count) < 2)


def test_each_place_of_a_block_has_the_shares():
    """So no task is always first, and a run that ends inside a block is not biased."""
    turns, expected = [Turns([3, 1], seed) for seed in range(2000)], np.asarray([1500, 500])
    for place in (0, 1, BLOCK - 1):
        observed = np.bincount([one(place) for one in turns], minlength=2)
        assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_annealing_goes_from_proportional_to_the_last_exponent():
    turns = Turns([900, 100], 0, first=1.0, last=0.2, steps=101)
    shares = turns.shares(np.asarray([0, 50, 100, 5000]))
    np.testing.assert_allclose(shares[0], [0.9, 0.1])
    half = np.asarray([900, 100]) ** 0.6
    np.testing.assert_allclose(shares[1], half / half.sum())
    last = np.asarray([900, 100]) ** 0.2
    np.testing.assert_allclose(shares[2:], [last / last.sum()] * 2)
    early, late = drawn(turns, BLOCK), drawn(turns, 50 * BLOCK, 64 * BLOCK)
    assert np.mean(early) < 0.3 < np.mean(late) < 0.42


def test_counting_is_drawing_and_depends_on_seed_and_number_alone():
    turns, again = Turns(SIZES, 3, last=0.2, steps=300), Turns(SIZES, 3, last=0.2, steps=300)
    draws = drawn(turns, 400)
    for number in (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 399):
        assert again.counts(number) == np.bincount(draws[:number], minlength=len(SIZES)).tolist()
    assert [again(number) for number in (399, 5, 200)] == draws[[399, 5, 200]].tolist()  # in any order
    assert drawn(Turns(SIZES, 4), 400).tolist() != drawn(Turns(SIZES, 3), 400).tolist()


def test_a_share_of_zero_has_no_turn():
    for sizes in ([0, 1, 2], [1, 0, 2], [1, 2, 0], [0, 0, 5]):
        assert set(drawn(Turns(sizes, 1), 10 * BLOCK)) == {i for i, size in enumerate(sizes) if size}


def test_nobody_starves():
    waits = np.diff(np.flatnonzero(drawn(Turns([31, 1], 0), 300 * BLOCK) == 1))
    assert waits.max() < 2 * BLOCK


@pytest.mark.parametrize(
    ("sampling", "shares", "message"),
    [
        ("explicit", {"a": 1.0, "b": None}, "tasks.b.share is missing"),
        ("explicit", {"a": 0.0, "b": 0.0}, r"tasks.\*.share is 0 for every task \(a, b\)"),
        ("annealed", {"a": None, "b": 0.5}, "tasks.b.share is 0.5, but multitask.sampling=annealed follows the sizes"),
    ],
)
def test_shares_that_mean_nothing_are_refused(sampling, shares, message):
    options = default_config().multitask
    options.sampling = sampling
    with pytest.raises(UserError, match=message):
        Turns.from_options(options, {"a": 1.0, "b": 1.0}, shares, 0, 10)


def test_options():
    options, sizes, none = default_config().multitask, {"a": 16.0, "b": 1.0}, {"a": None, "b": None}
    shares = lambda **given: Turns.from_options(options, sizes, none | given, 0, 11).shares(np.asarray([0, 10]))  # noqa: E731
    np.testing.assert_allclose(shares(), [[16 / 17, 1 / 17]] * 2)
    options.sampling, options.temperature = "temperature", 4.0
    np.testing.assert_allclose(shares(), [[2 / 3, 1 / 3]] * 2)
    options.sampling, options.last_exponent = "annealed", 0.25
    np.testing.assert_allclose(shares(), [[16 / 17, 1 / 17], [2 / 3, 1 / 3]])
    options.sampling = "explicit"
    np.testing.assert_allclose(shares(a=1.0, b=3.0), [[0.25, 0.75]] * 2)
