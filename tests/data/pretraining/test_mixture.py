"""Which row is of which corpus: shares as given or by size, every row of a corpus once and in reach at once."""

from collections import Counter, defaultdict

import pytest
from scipy.stats import chisquare

from bert_jax.config import UserError
from bert_jax.data.pretraining.mixture import MixedRows, Sampler, sampling_shares

SHARES = [0.5, 0.3, 0.15, 0.04, 0.009, 0.001]


@pytest.fixture(scope="module")
def drawn() -> list[tuple[int, int]]:
    return list(map(Sampler(SHARES, 7), range(20 * 1024)))


def test_the_shares_are_those_asked_for(drawn):
    counts = Counter(corpus for corpus, _ in drawn)
    expected = [20 * 1024 * share for share in SHARES]
    observed = [counts[corpus] for corpus in range(len(SHARES))]
    assert chisquare(observed, expected).pvalue > 0.99  # closer than chance would bring it
    assert max(abs(a - b) for a, b in zip(observed, expected, strict=True)) < 3


def test_no_corpus_starves_for_long(drawn):
    last = dict.fromkeys(range(len(SHARES)), 0)
    for position, (corpus, _) in enumerate(drawn):
        assert position - last[corpus] < 2 * 1024 + 3 / SHARES[corpus]  # rows that are shuffled together, and its turn
        last[corpus] = position


def test_each_corpus_is_read_on_without_a_gap_or_a_repetition(drawn):
    own = defaultdict(list)
    for corpus, position in drawn:
        own[corpus].append(position)
    for positions in own.values():
        assert sorted(positions) == list(range(len(positions)))


def test_a_position_far_away_needs_none_before_it():
    near, far = Sampler([0.75, 0.25], 1), 1 << 40
    counts = Counter()
    for position in range(far, far + 4096):
        corpus, own = near(position)
        counts[corpus] += 1
        assert abs(own - far * [0.75, 0.25][corpus]) < 4096
    assert abs(counts[1] - 1024) < 3


def test_the_order_depends_on_the_seed_and_on_nothing_else():
    one, again, other = (list(map(Sampler(SHARES, seed), range(3000))) for seed in (7, 7, 8))
    assert one == again != other


def test_the_count_of_a_corpus_equals_counting():
    sampler, seen = Sampler([0.2, 0.8], 3), Counter()
    blocks = [[sampler(position) for position in range(block * 1024, block * 1024 + 1024)] for block in range(4)]
    for block in blocks:
        for corpus in (0, 1):
            own = sorted(position for found, position in block if found == corpus)
            assert own == list(range(seen[corpus], seen[corpus] + len(own)))
            seen[corpus] += len(own)


def test_a_share_of_0_is_never_drawn():
    assert {Sampler([0, 0.6, 0, 0.4, 0], 0)(position)[0] for position in range(2000)} == {1, 3}


def test_rows_are_those_of_the_corpora():
    rows = MixedRows([lambda i: {"a": i}, lambda i: {"b": i}], [0.5, 0.5], 0)
    sampler = Sampler([0.5, 0.5], 0)
    for position in range(50):
        corpus, own = sampler(position)
        assert rows(position) == {"ab"[corpus]: own}


@pytest.mark.parametrize(
    ("exponent", "expected"),
    [(1.0, [0.9, 0.1]), (0.0, [0.5, 0.5]), (0.5, [0.75, 0.25]), (0.7, [1 / (1 + 9**-0.7), 1 / (1 + 9**0.7)])],
)
def test_shares_by_size(exponent, expected):
    found = sampling_shares({"en": 9e9, "de": 1e9}, {}, exponent)
    assert list(found.values()) == pytest.approx(expected)


def test_given_shares_stay_and_the_others_divide_the_rest():
    sizes = {"general": 100.0, "a": 1.0, "b": 4.0}
    found = sampling_shares(sizes, {"general": 0.1}, 0.5)
    assert found == pytest.approx({"general": 0.1, "a": 0.3, "b": 0.6})
    assert sampling_shares(sizes, {"general": 0.0, "a": 0.25, "b": 0.75}, 0.7)["general"] == 0


@pytest.mark.parametrize(
    ("sizes", "given", "message"),
    [
        ({"a": 1, "b": 1}, {"a": 0.5, "b": 0.6}, r"corpora.a.share=0.5 \+ corpora.b.share=0.6 is 1.1"),
        ({"a": 1, "b": 1}, {"a": 0, "b": 0}, r"is 0; shares must sum to 1: correct them, or leave some open"),
        ({"a": 1, "b": 1}, {"a": 1.0}, r"corpora.b.share is open, but the given shares leave nothing"),
        ({"a": 1, "b": 0}, {}, r"corpora.b has no text to train on: check corpora.b.files"),
        ({"a": 1e12, "b": 1}, {}, r"corpora.b would be 1e-12 of the rows, under 1e-06: lower data.corpora_exponent"),
    ],
)
def test_shares_that_cannot_be(sizes, given, message):
    with pytest.raises(UserError, match=message):
        sampling_shares(sizes, given, 1.0)
