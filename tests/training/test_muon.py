"""Muon against NumPy and optax, on meshes, with frozen layers, and its bad inputs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.contrib import MuonDimensionNumbers
from optax.contrib._muon import orthogonalize_via_newton_schulz

from bert_jax.config import UserError, validate
from bert_jax.options import default_config
from bert_jax.sharding import as_placed, make_mesh, place
from bert_jax.training.muon import matrices, orthogonalised
from bert_jax.training.optimizer import learning_rate_multipliers, make_optimizer

SHAPES = {
    "embeddings/word/embedding": (24, 16),
    "encoder/layers/attention/query/kernel": (2, 16, 16),
    "encoder/layers/intermediate/bias": (2, 64),
    "encoder/layers/intermediate/kernel": (2, 16, 64),
    "encoder/layers/output/kernel": (2, 64, 16),
    "heads/nsp/kernel": (16, 2),
}
MATRICES = [name for name, shape in SHAPES.items() if len(shape) == 3]


def muon_config(**changes):
    config = default_config().optimizer
    config.update(name="muon", clip_norm=0.0, **changes)
    return config


def arrays(seed):
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def numpy_muon(gradients, parameters, momentum, rate, decay):
    """Returns the updates of a matrix in float64, one per gradient, by the formulas of Jordan et al. and Liu et al."""
    average, updates = np.zeros_like(parameters, np.float64), []
    for g in gradients:
        average = momentum * average + (1 - momentum) * g
        x = momentum * average + (1 - momentum) * g
        x = x / np.linalg.norm(x)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        updates.append(-rate * (0.2 * np.sqrt(max(x.shape)) * x + decay * parameters))
    return updates


def test_updates_against_numpy():
    """Two updates at twice the learning rate of the others; the lower layer of one matrix is frozen."""
    config = muon_config(learning_rate=0.1, muon_learning_rate=0.2, muon_momentum=0.9, weight_decay=0.5)
    config.freeze = "layers/0/attention"
    parameters, steps = arrays(0), [arrays(1), arrays(2)]
    multipliers = learning_rate_multipliers(config, SHAPES)
    optimizer = make_optimizer(config, lambda _: jnp.float32(0.1), multipliers)
    state, found = optimizer.init(parameters), []
    for gradients in steps:
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradients), state, parameters)
        found.append(updates)
    for name in MATRICES:
        for layer in range(2):
            of_layer = [gradients[name][layer] for gradients in steps]
            expected = numpy_muon(of_layer, parameters[name][layer], 0.9, 0.2, 0.5)
            if name.startswith("encoder/layers/attention") and layer == 0:
                expected = [np.zeros_like(x) for x in expected]
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one[name][layer], other, atol=2e-5, err_msg=f"{name} {layer}")


def test_everything_else_gets_the_updates_of_adam():
    parameters, gradients = arrays(0), jax.tree.map(jnp.asarray, arrays(1))
    config, found = muon_config(), {}
    for name in ("adamw", "muon"):
        config.name = name
        optimizer = make_optimizer(config, lambda _: jnp.float32(0.1))
        found[name] = optimizer.update(gradients, optimizer.init(parameters), parameters)[0]
    for name in SHAPES:
        assert np.array_equal(found["muon"][name], found["adamw"][name]) == (name not in MATRICES), name


@pytest.mark.parametrize(("dtype", "alike"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_orthogonalised_against_optax(dtype, alike):
    updates = {name: jnp.asarray(x) for name, x in arrays(3).items() if name in MATRICES}
    updates |= {"heads/x/kernel": jnp.asarray(np.random.default_rng(4).standard_normal((64, 16)), jnp.float32)}
    coefficients = jnp.asarray((3.4445, -4.7750, 2.0315))
    for name, x in orthogonalised(updates, dtype).items():
        axes = MuonDimensionNumbers(x.ndim - 2, x.ndim - 1)
        expected = orthogonalize_via_newton_schulz(updates[name], coefficients, dimension_numbers=axes)
        np.testing.assert_allclose(x, expected * 0.2 * max(x.shape[-2:]) ** 0.5, atol=alike, err_msg=name)
        values = np.linalg.svd(np.asarray(x) / (0.2 * max(x.shape[-2:]) ** 0.5), compute_uv=False)
        assert values.min() > 0.3 and values.max() < 1.3


@pytest.mark.parametrize(
    ("axes", "dtype"),
    [((8, 1, 1), "float32"), ((1, 8, 1), "float32"), ((2, 2, 2), "float32"), ((2, 2, 2), "bfloat16")],
)
def test_every_mesh_gives_the_same_updates_and_splits_the_state(axes, dtype):
    config = default_config()
    config.mesh.update(dict(zip(("data", "fsdp", "tensor"), axes, strict=True)), smallest=0)
    mesh = make_mesh(config.mesh, jax.devices()[:8])
    optimizer = make_optimizer(muon_config(), lambda _: jnp.float32(0.1), None, dtype)
    gradients = {name: jnp.asarray(x) for name, x in arrays(1).items()}
    expected: Any = optimizer.update(gradients, optimizer.init(arrays(0)), arrays(0))[0]
    parameters = place(mesh, arrays(0))
    state = place(mesh, optimizer.init(parameters))
    found, state = jax.jit(mesh.traced(optimizer.update))(place(mesh, arrays(1)), state, parameters)
    kernel = as_placed(mesh, state)[2].momentum["encoder/layers/output/kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // (axes[1] * axes[2])
    for name, update in found.items():
        alike = 2e-6 if dtype == "float32" else 2e-3  # of updates of about 0.02; both round
        np.testing.assert_allclose(update, expected[name], atol=alike, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"muon": "kernels$"}, "optimizer.muon=kernels. matches no parameter; names are encoder/layers/attention/q"),
        ({"muon": "intermediate"}, "matches encoder/layers/intermediate/bias, which is not a matrix: its shape is"),
    ],
)
def test_patterns_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        learning_rate_multipliers(muon_config(**changes), SHAPES)


def test_a_multiple_of_no_learning_rate():
    config = default_config()
    config.optimizer.update(name="muon", learning_rate=0.0, muon_learning_rate=0.1)
    with pytest.raises(UserError, match=r"optimizer\.learning_rate is 0, of which optimizer\.muon_learning_rate"):
        validate(config, 1)
    assert matrices(config.optimizer, SHAPES) == sorted(MATRICES)


def test_a_decoders_layers_are_matrices_of_their_own():
    config = muon_config(muon="(layers|cross)/.*kernel$")
    x = np.random.default_rng(0).normal(size=(3, 8, 4)).astype(np.float32)
    names = [f"{part}/output/kernel" for part in ("encoder/layers", "heads/decoder/layers", "heads/decoder/cross")]
    assert matrices(config, {name: x.shape for name in names}) == sorted(names)
    found = orthogonalised({name: jnp.asarray(x) for name in names}, "float32")
    for name in names[1:]:
        np.testing.assert_allclose(found[name], found[names[0]], rtol=1e-5)
