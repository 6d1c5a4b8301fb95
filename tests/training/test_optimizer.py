"""Golden values of the original's optimizer and of three learning-rate curves; LAMB against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.training.optimizer import make_optimizer, make_schedule, scale_by_adam
from experiments.base import get_config


def optimizer_config(**changes):
    config = get_config().optimizer
    config.update(changes)
    return config


def minimise(steps, learning_rate, decay, bias_correction):
    """Mean square distance of w to a target, as in the original's own test; float64 shows ten digits."""
    with jax.enable_x64(True):
        transformation = optax.chain(
            scale_by_adam(0.9, 0.999, 1e-6, bias_correction),
            optax.add_decayed_weights(decay),
            optax.scale(-learning_rate),
        )
        w, target = jnp.asarray([0.1, -0.2, -0.1]), jnp.asarray([0.4, 0.2, -0.5])
        state = transformation.init(w)

        @jax.jit
        def step(w, state):
            updates, state = transformation.update(jax.grad(lambda w: jnp.mean((w - target) ** 2))(w), state, w)
            return w + updates, state

        for _ in range(steps):
            w, state = step(w, state)
        return np.asarray(w)


@pytest.mark.parametrize(
    ("steps", "learning_rate", "decay", "bias_correction", "expected"),
    [
        (1, 0.2, 0, False, [0.7323555478, 0.4323805409, -0.7323805409]),
        (2, 0.2, 0, False, [0.6442623249, 0.6069053411, -0.9069053411]),
        (100, 0.2, 0, False, [0.4016460351, 0.1978244492, -0.4978244492]),
        (1, 1e-3, 0.01, False, [0.1031607777, -0.1968360973, -0.1031609027]),
        (3, 1e-3, 0.01, False, [0.1123517668, -0.1876373565, -0.1123536473]),
        (1, 1e-3, 0.01, True, [0.1009989950, -0.1989980037, -0.1009989963]),
    ],
)
def test_golden_adam(steps, learning_rate, decay, bias_correction, expected):
    np.testing.assert_allclose(minimise(steps, learning_rate, decay, bias_correction), expected, atol=6e-11, rtol=0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert", [5e-5, 9.999e-5, 9.9e-5, 5e-5, 0]),
        ("hf", [5e-5, 9.999e-5, 1e-4, 5.0505e-5, 0]),
        ("electra", [4.975e-5, 9.8990e-5, 9.9e-5, 5e-5, 0]),
        ("constant", [5e-5, 9.999e-5, 1e-4, 1e-4, 1e-4]),
        ("cosine", [5e-5, 9.999e-5, 1e-4, 0.5e-4 * (1 + np.cos(np.pi * 49 / 99)), 0]),
    ],
)
def test_golden_schedules(name, expected):
    schedule = make_schedule(optimizer_config(schedule=name), 10)
    rates = [float(schedule(step)) for step in (5000, 9999, 10_000, 500_000, 1_000_000)]
    np.testing.assert_allclose(rates, expected, rtol=2e-5, atol=1e-12)


def test_schedule_without_warmup_starts_at_the_peak_and_ends_with_train_steps():
    schedule = make_schedule(optimizer_config(schedule="hf", warmup_steps=0, decay_steps=0), 10)
    np.testing.assert_allclose([float(schedule(s)) for s in (0, 5, 10, 12)], [1e-4, 5e-5, 0, 0], rtol=1e-6)


def parameters():
    values = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    return {
        "encoder/layers/output/kernel": jnp.asarray(values),
        "encoder/layers/output_layer_norm/scale": jnp.ones((3, 5)),
        "heads/mlm/bias": jnp.zeros(7),
    }


def one_update(config, grads, params):
    optimizer = make_optimizer(config, lambda count: jnp.float32(0.1))
    return optimizer.update(grads, optimizer.init(params), params)[0]


def test_layer_norm_and_biases_do_not_decay():
    config = optimizer_config(weight_decay=0.5)
    params = parameters()
    updates = one_update(config, jax.tree.map(jnp.zeros_like, params), params)
    np.testing.assert_allclose(updates["encoder/layers/output/kernel"], -0.05 * params["encoder/layers/output/kernel"])
    assert not updates["encoder/layers/output_layer_norm/scale"].any() and not updates["heads/mlm/bias"].any()


def test_gradient_is_clipped_by_its_global_norm():
    params = parameters()
    grads = jax.tree.map(jnp.ones_like, params)  # global norm √(60 + 15 + 7)
    config = optimizer_config(weight_decay=0.0, eps=1.0, b1=0.0, b2=0.0)
    # With eps 1 and no memory an update is g / (|g| + 1): it shows the clipped gradient.
    g = 1 / np.sqrt(82)
    np.testing.assert_allclose(one_update(config, grads, params)["heads/mlm/bias"], -0.1 * g / (g + 1), rtol=1e-5)


def test_lamb_scales_each_layer_by_itself():
    params, config = parameters(), optimizer_config(name="lamb", weight_decay=0.0, clip_norm=0.0)
    grads = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(1).standard_normal(x.shape), jnp.float32), params)
    updates = one_update(config, grads, params)
    for layer in range(3):
        w = np.asarray(params["encoder/layers/output/kernel"][layer])
        g = np.asarray(grads["encoder/layers/output/kernel"][layer])
        u = 0.1 * g / (np.sqrt(0.001 * g * g) + 1e-6)
        expected = -0.1 * u * np.linalg.norm(w) / np.linalg.norm(u)
        np.testing.assert_allclose(updates["encoder/layers/output/kernel"][layer], expected, rtol=1e-5)
    g = np.asarray(grads["heads/mlm/bias"])
    np.testing.assert_allclose(updates["heads/mlm/bias"], -0.1 * 0.1 * g / (np.sqrt(0.001 * g * g) + 1e-6), rtol=1e-5)
