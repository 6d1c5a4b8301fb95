"""Decoding of a table of probabilities, small enough to try all targets by hand or by brute force."""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.models.bert import TrunkInputs
from bert_jax.models.decoding.beams import search
from bert_jax.models.decoding.options import Decoding
from bert_jax.models.decoding.write import Written, write
from bert_jax.models.writer import Memory

QUICK = {"xla_backend_optimization_level": 0}  # compiling is all the time that these take
PAD, START, END = 0, 1, 2
LETTERS = (3, 4, 5)
VOCABULARY = 40  # so many tokens that there may be a beam for every beginning
OPTIONS: dict[str, Any] = {"end_id": END, "start_id": START, "max_length": 4, "min_length": 0, "never": (PAD, START)}


class Table(NamedTuple):
    """A writer whose logits depend on the source's first token and on the two tokens before. Only letters and the end
    have a probability."""

    logits: jax.Array  # [first token of the source, token before the last, last token, next token]

    def read(self, source, room, copies=1):
        rows = len(source.input_ids) * copies
        return Memory(source.input_ids[:, 0], (jnp.full(rows, START), jnp.zeros((), jnp.int32)))

    def next(self, memory, tokens):
        before, count = memory.written
        first = jnp.repeat(memory.source, len(tokens) // len(memory.source), total_repeat_length=len(tokens))
        return self.logits[first, before, tokens], Memory(memory.source, (tokens, count + 1))


def _table(seed: int = 0) -> Table:
    logits = np.full((8, 8, 8, VOCABULARY), -1e9, np.float32)
    logits[..., [END, *LETTERS]] = np.random.default_rng(seed).normal(0, 1.5, (8, 8, 8, 4))
    return Table(jnp.asarray(logits))


def _source(*firsts: int) -> TrunkInputs:
    ids = jnp.asarray(firsts, jnp.int32)[:, None]
    return TrunkInputs(ids, ids * 0, ids * 0, (ids > 0).astype(jnp.int32))


@partial(jax.jit, static_argnums=2, compiler_options=QUICK)
def _run(table, source, decoding, keys=None) -> Written:
    return write(table, source, decoding, keys)


def _all_targets(table: Table, first: int, decoding: Decoding) -> list[tuple[float, float, list[int]]]:
    """Returns (score, log-probability, tokens) of every possible target, the best first, by the definition."""
    logits, found = np.asarray(table.logits, np.float64), []
    allowed = [letter for letter in LETTERS if letter not in decoding.never]
    for length in range(1, decoding.max_length + 1):
        for letters in itertools.product(allowed, repeat=length - 1):
            lasts = [END] if length < decoding.max_length else [END, *allowed]
            for target in ([*letters, last] for last in lasts):
                before = [START, START, *target]
                rows = [logits[first, before[i], before[i + 1]] for i in range(length)]
                total = sum(row[token] - np.logaddexp.reduce(row) for row, token in zip(rows, target, strict=True))
                found.append((total / ((5 + length) / 6) ** decoding.length_penalty, total, target))
    return sorted(found, reverse=True)


def _targets(written: Written, row: int) -> list[list[int]]:
    lengths = np.asarray(written.lengths[row])
    return [np.asarray(tokens)[:n].tolist() for tokens, n in zip(written.tokens[row], lengths, strict=True)]


@pytest.mark.parametrize("penalty, never", [(0.0, ()), (0.6, (5,)), (2.0, ())])
def test_a_beam_for_every_beginning_finds_the_best_targets_of_all(penalty, never):
    """Also where a letter may not be written, whose share of the probability the others do not get."""
    never = {"never": (*OPTIONS["never"], *never)}
    table, decoding = _table(), Decoding(**OPTIONS | never, beams=30, n_best=5, length_penalty=penalty)
    written = _run(table, _source(3, 5), decoding)
    for row, first in enumerate((3, 5)):
        best = _all_targets(table, first, decoding)[:5]
        assert _targets(written, row) == [target for _, _, target in best]
        np.testing.assert_allclose(written.scores[row], [score for score, _, _ in best], rtol=1e-5)
        np.testing.assert_allclose(written.log_probabilities[row], [total for _, total, _ in best], rtol=1e-5)
        assert (
            np.asarray(written.tokens[row])[np.arange(4)[None] >= np.asarray(written.lengths[row])[:, None]] == 0
        ).all()


def test_greedy_takes_the_likeliest_token_at_each_place_as_does_a_search_with_one_beam():
    table, source, decoding = _table(), _source(3, 4, 5), Decoding(**OPTIONS | {"max_length": 6})
    greedy = _run(table, source, decoding)
    for row, first in enumerate((3, 4, 5)):
        before, expected = [START, START], []
        while len(expected) < 6 and END not in expected:
            expected.append(int(np.argmax(table.logits[first, before[-2], before[-1]])))
            before.append(expected[-1])
        assert _targets(greedy, row) == [expected]

    @partial(jax.jit, compiler_options=QUICK)
    def one_beam(table, source):
        return search(table, table.read(source, 6), jnp.zeros(3, bool), decoding)

    tokens, lengths, totals = one_beam(table, source)
    np.testing.assert_array_equal(tokens, greedy.tokens)
    np.testing.assert_array_equal(lengths, greedy.lengths)
    np.testing.assert_allclose(totals, greedy.log_probabilities, rtol=1e-5)


def test_a_search_that_ends_early_takes_the_first_whole_targets():
    """A source whose target may end at once, with less than even odds: two beams are whole after two steps, and the
    best target, which is longer, is not looked for."""
    logits = np.full((8, 8, 8, VOCABULARY), -1e9, np.float32)
    logits[..., END], logits[..., 3] = np.log(0.4), np.log(0.6)
    logits[:, :, 3, END], logits[:, :, 3, 3] = np.log(0.1), np.log(0.9)  # after the first letter there are more
    table, options = Table(jnp.asarray(logits)), OPTIONS | {"max_length": 8, "beams": 2, "n_best": 2}
    early = _run(table, _source(3), Decoding(**options, length_penalty=2.0, early=True))
    assert _targets(early, 0) == [[END], [3, END]]
    exact = _run(table, _source(3), Decoding(**options, length_penalty=2.0))
    assert _targets(exact, 0)[0] == [3] * 8
    assert exact.log_probabilities[0, 0] == pytest.approx(np.log(0.6) + 7 * np.log(0.9))
    assert exact.scores[0, 0] == pytest.approx((np.log(0.6) + 7 * np.log(0.9)) / (13 / 6) ** 2)


def test_drawn_tokens_have_the_probabilities_of_the_model():
    """The first token of 3,000 targets; with top_k = 2 the two likeliest, with top_p just over the share of the
    likeliest also two, with a low temperature the likeliest alone. The scores are those of the model itself."""
    table, source = _table(1), _source(3, 3, 3)
    logits = np.asarray(table.logits[3, START, START], np.float64)[[END, *LETTERS]]
    probabilities = np.exp(logits - np.logaddexp.reduce(logits))
    best = np.argsort(-probabilities)
    options = OPTIONS | {"max_length": 1, "n_best": 1000}

    keys = jax.vmap(jax.random.key)(jnp.arange(3))

    def shares(**given):
        written = _run(table, source, Decoding(**options, **given), keys)
        first = np.asarray(written.tokens).ravel()
        of_each = np.log(probabilities)[[[END, *LETTERS].index(token) for token in first]]
        np.testing.assert_allclose(written.log_probabilities.ravel(), of_each, rtol=1e-4)
        return np.asarray([(first == token).mean() for token in (END, *LETTERS)])

    np.testing.assert_allclose(shares(temperature=1.0), probabilities, atol=0.035)  # 4 standard errors
    flat = probabilities**0.5 / (probabilities**0.5).sum()
    np.testing.assert_allclose(shares(temperature=2.0), flat, atol=0.035)
    of_two = np.where(np.isin(np.arange(4), best[:2]), probabilities, 0)
    np.testing.assert_allclose(shares(temperature=1.0, top_k=2), of_two / of_two.sum(), atol=0.035)
    just_over = float(probabilities[best[0]]) + 0.01
    np.testing.assert_allclose(shares(temperature=1.0, top_p=just_over), of_two / of_two.sum(), atol=0.035)
    assert shares(temperature=1e-6)[best[0]] == 1


def test_what_is_drawn_for_a_source_depends_on_its_key_and_not_on_its_neighbours():
    table, decoding = _table(), Decoding(**OPTIONS, temperature=1.0, n_best=3)
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    together = _run(table, _source(3, 4, 5), decoding, keys)
    alone = _run(table, _source(5), decoding, keys[2:])
    np.testing.assert_array_equal(together.tokens[2], alone.tokens[0])
    other = _run(table, _source(5), decoding, keys[:1])
    assert not np.array_equal(other.tokens, alone.tokens)


@pytest.mark.parametrize("width", [{}, {"beams": 3, "n_best": 3}, {"temperature": 1.0, "n_best": 3}])
def test_lengths_and_repetitions_are_bounded(width):
    """No two letters in a row occur twice, and none of 4 to 7 tokens is the end before the least length. Repetition
    costs so much that a new letter comes first."""
    keys = jax.vmap(jax.random.key)(jnp.arange(2)) if "temperature" in width else None
    options = OPTIONS | {"max_length": 8} | width
    written = _run(_table(), _source(3, 6), Decoding(**options | {"min_length": 4}, no_repeat_ngram=2), keys)
    assert ((written.lengths >= 5) & (written.lengths <= 8)).all()
    for row in (0, 1):
        for target in _targets(written, row):
            assert len(set(itertools.pairwise(target))) == len(target) - 1
    if not width:
        positive = Table(_table().logits + 10)
        written = _run(positive, _source(3, 6), Decoding(**options | {"min_length": 3}, repetition_penalty=1000.0))
        assert all(sorted(_targets(written, row)[0][:3]) == list(LETTERS) for row in (0, 1))


@pytest.mark.parametrize("width", [{}, {"beams": 2}, {"temperature": 1.0}])
def test_a_target_ends_early_where_every_other_token_would_repeat(width):
    """Two letters may be written, each once, and four are asked for."""
    keys = jax.random.key(0)[None] if "temperature" in width else None
    never = tuple(token for token in range(VOCABULARY) if token not in (END, 3, 4))
    options = OPTIONS | {"max_length": 6, "min_length": 4, "never": never, "no_repeat_ngram": 1}
    [target] = _targets(_run(_table(), _source(3), Decoding(**options, **width), keys), 0)
    assert sorted(target[:2]) == [3, 4] and target[2:] == [END]


@pytest.mark.parametrize("width", [{}, {"beams": 3, "n_best": 2}])
def test_sources_without_tokens_and_those_with_few_targets(width):
    table, decoding = _table(), Decoding(**OPTIONS, **width)
    written = _run(table, _source(3, 0, 4), decoding)
    assert written.lengths[1].tolist() == [0] * decoding.n_best
    np.testing.assert_array_equal(written.tokens[2], _run(table, _source(4), decoding).tokens[0])
    if width:  # all that may be written is the end
        never = tuple(token for token in range(VOCABULARY) if token != END)
        few = Decoding(**OPTIONS | {"never": never}, beams=3, n_best=2)
        assert _targets(_run(table, _source(3), few), 0) == [[END], []]


def test_eight_devices_write_what_one_does():
    table, decoding = _table(), Decoding(**OPTIONS, beams=3, n_best=3)
    source = _source(*[3, 4, 5, 6, 7, 0, 3, 4] * 2)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, all_devices = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("data",), ()))
    expected = _run(table, source, decoding)
    found = _run(jax.device_put(table, all_devices), jax.device_put(source, rows), decoding)
    assert len(found.tokens.sharding.device_set) == 8
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"beams": 0}, "generate.beams is 0; it must be a whole number from 1 to 1024"),
        (
            {"beams": 2, "temperature": 1.0},
            "generate.temperature=1 draws tokens and generate.beams=2 searches: leave one of them out",
        ),
        ({"top_k": 5}, "generate.top_k is for drawing tokens: set generate.temperature, such as 1, or leave it out"),
        (
            {"n_best": 2},
            "generate.n_best=2 is over generate.beams=1: raise it, or draw tokens with a generate.temperature",
        ),
        (
            {"min_length": 4},
            "generate.min_length=4 leaves no room for the end: generate.max_length, the end included, is 4",
        ),
    ],
)
def test_what_does_not_go_together_is_an_error(given, message):
    with pytest.raises(UserError) as error:
        Decoding(**OPTIONS | given)
    assert str(error.value) == message


def test_more_beams_than_tokens_are_an_error():
    with pytest.raises(UserError, match="beams=39 is over the vocabulary of 38 tokens that can be written"):
        Decoding(**OPTIONS, beams=39).check_vocabulary(VOCABULARY)
    Decoding(**OPTIONS, beams=38).check_vocabulary(VOCABULARY)
