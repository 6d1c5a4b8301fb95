"""Losses and probabilities against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.tasks.losses import balanced_weights, check_finite, cross_entropy_sums, softmax


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_by_hand(smoothing):
    random = np.random.default_rng(0)
    logits, labels, weights = random.normal(size=(5, 3)), np.asarray([0, 2, 1, 1, 0]), np.asarray([1, 2, 0, 0.5, 1])
    target = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3
    expected = -np.sum(weights * np.sum(target * np.log(softmax(logits)), axis=1))
    arrays = (jnp.asarray(x, jnp.float32) for x in (logits, weights))
    logits32, weights32 = arrays
    sums = cross_entropy_sums("x", logits32, jnp.asarray(labels), weights32, smoothing=smoothing)
    assert float(sums["x_loss"][0]) == pytest.approx(expected, rel=1e-6) and float(sums["x_loss"][1]) == 4.5
    assert float(sums["x_accuracy"][0]) == np.sum(weights * (logits.argmax(axis=1) == labels))


def test_balanced_weights_keep_the_scale_of_the_loss():
    labels = [0, 0, 0, 2]
    weights = balanced_weights(labels, 3)
    np.testing.assert_allclose(weights, [4 / 9, 4 / 3, 4 / 3])
    assert balanced_weights([0, 0, 0, 1], 2)[[0, 0, 0, 1]].mean() == 1


def test_softmax_holds_for_large_logits():
    np.testing.assert_allclose(softmax(np.asarray([[1000.0, 1000.0], [0.0, -np.inf]])), [[0.5, 0.5], [1, 0]])


def test_what_is_not_finite_is_named():
    check_finite({"logits": [np.ones(2)]})
    with pytest.raises(UserError, match="model's b of 2 examples are NaN or infinite"):
        check_finite({"a": [np.ones(2)], "b": [np.asarray([np.inf]), np.ones(1), np.asarray([np.nan, 1.0])]})
