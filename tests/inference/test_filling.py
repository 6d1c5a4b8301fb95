"""Ways to fill masks against loops over a tiny language, whose conditional distributions are a table."""

import itertools
from collections import Counter

import numpy as np
import pytest

from bert_jax.inference.filling import Blank, beam, confidence, gibbs, left_to_right, mask_predict

VOCABULARY, MASK = 5, 4
TABLE = np.random.default_rng(0).normal(size=(7, 7, VOCABULARY, VOCABULARY)) * 2
ALLOWED = np.asarray([[True] * 4 + [False], [True, False, True, False, False]])


def log_p(ids, place, kind):
    """log p(token at `place` | the others), a softmax of sums over them; tokens that are not allowed have −inf."""
    logits = sum(TABLE[place, other, token] for other, token in enumerate(ids) if other != place)
    found = logits - np.logaddexp.reduce(logits)
    return np.where(ALLOWED[kind], found, -np.inf)


def distribution(queries):
    return [log_p(query.ids, query.places[0], query.kinds[0]) for query in queries]


def likeliest(queries):
    rows = [[log_p(q.ids, place, kind) for place, kind in zip(q.places, q.kinds, strict=True)] for q in queries]
    return [(np.argmax(row, axis=1), np.max(row, axis=1)) for row in rows]


def blank(text, kinds=None):
    ids = np.asarray(text, np.int32)
    places = tuple(np.flatnonzero(ids == MASK).tolist())
    return Blank(ids, places, tuple(kinds or [0] * len(places)))


BLANKS = [blank([0, 4, 2, 4, 4, 1]), blank([4, 3]), blank([0, 1]), blank([4, 4, 4, 4, 4], [0, 1, 1, 0, 0])]


def by_loop(one, choose_place):
    """Fills one place after the other, each with its likeliest token."""
    ids, left, found = one.ids.copy(), list(range(len(one.places))), {}
    while left:
        best = {step: log_p(ids, one.places[step], one.kinds[step]) for step in left}
        step = choose_place(best)
        ids[one.places[step]], found[step] = best[step].argmax(), best[step].max()
        left.remove(step)
    return ids.tolist(), sum(found.values())


@pytest.mark.parametrize(
    ("fill", "choose_place"),
    [(left_to_right, min), (confidence, lambda best: max(best, key=lambda step: (best[step].max(), -step)))],
)
def test_one_after_the_other(fill, choose_place):
    found = [(filled.ids.tolist(), filled.score) for filled in fill(BLANKS, likeliest)]
    assert found == [(ids, pytest.approx(score)) for ids, score in (by_loop(one, choose_place) for one in BLANKS)]
    assert BLANKS[0].ids.tolist() == [0, 4, 2, 4, 4, 1], "blanks are not changed"
    assert found[0][0] == fill(BLANKS[:1], likeliest)[0].ids.tolist(), "texts do not depend on each other"


@pytest.mark.parametrize("iterations", [1, 3, 4])
def test_mask_predict_masks_the_least_probable_again(iterations):
    one = BLANKS[3]
    ids, scores, changed = one.ids.copy(), [-np.inf] * 5, []
    for t in range(iterations):
        again = sorted(range(5), key=lambda step: scores[step])[: 5 * (iterations - t) // iterations]
        ids[again] = MASK
        best = {step: log_p(ids, step, one.kinds[step]) for step in again}
        for step, found in best.items():
            ids[step], scores[step] = found.argmax(), found.max()
        changed.append(len(again))
    assert changed == {1: [5], 3: [5, 3, 1], 4: [5, 3, 2, 1]}[iterations]
    found = mask_predict(BLANKS, likeliest, iterations, MASK)[3]
    assert found.ids.tolist() == ids.tolist() and found.score == pytest.approx(sum(scores))


def test_a_wide_beam_is_an_exhaustive_search_and_a_narrow_one_is_greedy():
    one = BLANKS[0]
    scores = {}
    for tokens in itertools.product(range(4), repeat=3):
        ids, total = one.ids.copy(), 0.0
        for place, token in zip(one.places, tokens, strict=True):
            total += log_p(ids, place, 0)[token]
            ids[place] = token
        scores[tokens] = total
    best = sorted(scores, key=lambda tokens: -scores[tokens])
    found = beam(BLANKS, distribution, 64)[0]
    assert [tuple(filled.ids[list(one.places)].tolist()) for filled in found] == best
    assert [filled.score for filled in found] == pytest.approx([scores[tokens] for tokens in best])
    narrow, greedy = beam(BLANKS, distribution, 1), left_to_right(BLANKS, likeliest)
    assert [[filled.ids.tolist() for filled in beams] for beams in narrow] == [[one.ids.tolist()] for one in greedy]
    assert [len(beams) for beams in beam(BLANKS, distribution, 3)] == [3, 3, 1, 3]
    restricted = beam([blank([4, 1], [1])], distribution, 5)[0]
    assert sorted(filled.ids[0] for filled in restricted) == [0, 2], "tokens that are not allowed are in no beam"


def test_gibbs_draws_from_the_conditional_distributions():
    """With one mask, the draws are of its distribution; with two, of the Markov chain's after one sweep and another."""
    one, count = blank([4, 3]), 3000
    draws = Counter(int(gibbs([one], distribution, 1, MASK, seed=seed)[0].ids[0]) for seed in range(count))
    expected = np.exp(log_p(one.ids, 0, 0))[:4]
    expected /= expected.sum()  # [MASK] itself is not allowed
    np.testing.assert_allclose([draws[token] / count for token in range(4)], expected, atol=0.035)
    cold, coldest = (gibbs(BLANKS, distribution, 1, MASK, temperature=t) for t in (1e-3, 5e-324))
    for found in (cold, coldest):
        assert [x.ids.tolist() for x in found] == [x.ids.tolist() for x in left_to_right(BLANKS, likeliest)]


def test_gibbs_depends_on_seed_and_text_alone():
    whole = gibbs(BLANKS, distribution, 4, MASK, seed=3)
    alone = [gibbs([one], distribution, 4, MASK, seed=3)[0] for one in BLANKS]
    assert [x.ids.tolist() for x in whole] == [x.ids.tolist() for x in alone]
    others = {tuple(gibbs(BLANKS[3:], distribution, 4, MASK, seed=seed)[0].ids.tolist()) for seed in range(20)}
    assert len(others) > 5
    assert not any(MASK in x.ids for x in whole)
    filled = whole[3].ids
    assert all(filled[place] in (0, 2) for place in (1, 2)), "kinds hold for draws too"
