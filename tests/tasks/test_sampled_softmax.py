"""The sampled softmax: its negatives, its loss and gradients against NumPy, on rows with copies of the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.tasks.losses import cross_entropy_sums
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.tasks.pretraining_text import token_counts
from bert_jax.tasks.sampled_softmax import cumulative_shares, draw_negatives, sampled_logits

ENTRIES, COUNT = 50, 16


@pytest.fixture(scope="module")
def counts():
    return np.floor(1000 / np.arange(1, ENTRIES + 1)) - 1


def test_negatives_are_drawn_as_often_as_they_say(counts):
    shares = (counts + 1) / np.sum(counts + 1)
    cumulative = jnp.asarray(cumulative_shares(counts))
    assert int(cumulative[-1]) == 2**32 - 1
    draw = jax.jit(jax.vmap(lambda seed: draw_negatives(cumulative, COUNT, jax.random.key(seed))))
    drawn, log_counts = jax.device_get(draw(jnp.arange(4000)))
    np.testing.assert_allclose(log_counts, np.log(COUNT * shares)[drawn], rtol=1e-4)
    often = np.bincount(drawn.ravel(), minlength=ENTRIES) / 4000
    np.testing.assert_allclose(often, COUNT * shares, atol=4 * np.sqrt(COUNT * shares.max() / 4000))
    # An entry with a fifth of the probability has three of the 16 parts to itself: it is never drawn less often.
    assert shares[0] > 0.2 and (drawn == 0).sum(axis=1).min() >= 3


def numpy_loss(vectors, table, bias, labels, weights, negatives, shares):
    """Returns the sum of weighted losses, and of weighted log²Z, in float64."""
    loss = square = 0.0
    for vector, label, weight in zip(vectors, labels, weights, strict=True):
        logits = table @ vector + bias
        z = np.exp(logits[label])
        for other in negatives:
            z += np.exp(logits[other]) / (len(negatives) * shares[other]) if other != label else 0
        loss += weight * (np.log(z) - logits[label])
        square += weight * np.log(z) ** 2
    return loss, square


@pytest.mark.parametrize("copies", [0, 2])
def test_loss_against_numpy(counts, copies):
    random = np.random.default_rng(0)
    vectors, table = random.normal(size=(4, 3, 8)), random.normal(size=(ENTRIES, 8))
    bias, weights = random.normal(size=ENTRIES), random.uniform(size=(4, 3))
    cumulative = cumulative_shares(counts)
    negatives, log_counts = draw_negatives(jnp.asarray(cumulative), COUNT, jax.random.key(0))
    labels = random.integers(0, ENTRIES, (4, 3))
    labels[0] = negatives[:3]  # what is both is counted once

    def loss(vectors, table, bias):
        own = jnp.broadcast_to(table[None], (copies, *table.shape)) if copies else table
        logits = sampled_logits(vectors, own, bias, jnp.asarray(labels), negatives, log_counts, "float32")
        first = jnp.zeros((4, 3), int)
        sums = cross_entropy_sums("x", logits, first, jnp.asarray(weights, jnp.float32), z_loss=True)
        return sums["x_loss"][0], sums["x_z_loss"][0]

    arguments = tuple(jnp.asarray(x, jnp.float32) for x in (vectors, table, bias))
    (value, square), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arguments)
    shares = np.diff(cumulative.astype(np.float64), prepend=0) / 2**32

    def reference(vectors, table, bias):
        flat = vectors.reshape(-1, 8), table, bias, labels.ravel(), weights.ravel(), np.asarray(negatives), shares
        return np.asarray(numpy_loss(*flat))

    np.testing.assert_allclose([value, square], reference(vectors, table, bias), rtol=1e-5)
    for place, (x, found) in enumerate(zip((vectors, table, bias), gradients, strict=True)):
        step = random.normal(size=x.shape) * 1e-5
        ends = []
        for sign in (-1, 1):
            moved = [vectors, table, bias]
            moved[place] = x + sign * step
            ends.append(reference(*moved)[0])
        np.testing.assert_allclose(np.sum(found * step), (ends[1] - ends[0]) / 2, rtol=1e-3)


def test_the_estimate_of_the_denominator_has_no_bias(counts):
    random = np.random.default_rng(1)
    vectors, table = jnp.asarray(random.normal(size=(1, 2, 8)), jnp.float32), random.normal(size=(ENTRIES, 8))
    table, bias = jnp.asarray(table, jnp.float32), jnp.zeros(ENTRIES)
    cumulative, labels = jnp.asarray(cumulative_shares(counts)), jnp.asarray([[0, 40]])

    def z(seed):
        negatives = draw_negatives(cumulative, COUNT, jax.random.key(seed))
        logits = sampled_logits(vectors, table, bias, labels, *negatives, "float32")
        return jnp.sum(jnp.exp(logits), axis=-1)

    found = jax.device_get(jax.jit(jax.vmap(z))(jnp.arange(20_000)))[:, 0]
    exact = np.exp(np.asarray(vectors[0]) @ np.asarray(table).T).sum(axis=-1)
    assert np.all(np.abs(found.mean(axis=0) - exact) < 4 * found.std(axis=0) / np.sqrt(len(found)))


def test_counts_are_those_of_the_corpus(small_config):
    small_config.train.sampled_softmax = 32
    task = Pretraining.over(small_config, prepare(small_config.data, small_config.data.seed, progress=False))
    source = task.prepared.source("train")
    expected = np.zeros(task.tokenizer.vocab_size)
    for number in range(len(source)):
        np.add.at(expected, source[number]["tokens"], 1)
    np.testing.assert_array_equal(token_counts(task.prepared), expected)
    np.testing.assert_array_equal(task.constants()["cumulative_shares"], cumulative_shares(expected))


def test_as_many_negatives_as_entries_are_refused(small_config):
    prepared = prepare(small_config.data, small_config.data.seed, progress=False)
    small_config.train.sampled_softmax = size = prepared.tokenizer.vocab_size
    with pytest.raises(UserError, match=f"sampled_softmax is {size}; it must be less than the vocabulary of {size}"):
        Pretraining.over(small_config, prepared)
