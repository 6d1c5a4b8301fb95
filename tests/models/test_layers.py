"""Products, LayerNorm, GELU, dropout and initialisation against NumPy, golden values and the table they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bert_jax.models.layers import (
    GEGLU,
    GELU,
    Embedding,
    LayerNorm,
    Linear,
    dot,
    dot_transposed,
    dropout,
    dropout_seeds,
)

# (x, w): shared and batched second operands, sides of 1 and 2, odd sides, sides around the CPU limit of 16.
SHAPES = [
    ((1, 1), (1, 1)),
    ((7, 5), (5, 2)),
    ((40, 64), (64, 2)),
    ((15, 32), (32, 48)),
    ((16, 16), (16, 16)),
    ((33, 65), (65, 17)),
    ((160, 64), (64, 300)),
    ((2, 24, 64), (64, 32)),
    ((3, 1, 64), (64, 64)),
    ((2, 3, 20, 16), (2, 3, 16, 20)),
    ((2, 2, 9, 4), (2, 2, 4, 9)),
]


@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_dot_and_gradients_are_exact_up_to_rounding_of_the_result(shapes, out_dtype):
    # Operands and cotangent are bfloat16 numbers already, so that only sums (float32) and results are rounded.
    x, w = (_bfloat16_values(shape, seed) for seed, shape in enumerate(shapes))
    exact_y = _f64(x) @ _f64(w)
    g = _bfloat16_values(exact_y.shape, seed=2)

    y, pullback = jax.vjp(lambda x, w: dot(x, w, "bfloat16", out_dtype=out_dtype), x, w)
    dx, dw = jax.jit(pullback)(g.astype(out_dtype))

    assert y.dtype == out_dtype
    assert (dx.dtype, dw.dtype) == (x.dtype, w.dtype)
    _assert_rounded(y, exact_y, np.abs(_f64(x)) @ np.abs(_f64(w)))
    _assert_rounded(dx, _f64(g) @ _t(_f64(w)), np.abs(_f64(g)) @ _t(np.abs(_f64(w))))
    _assert_rounded(
        dw, _weight_gradient(_f64(x), _f64(g), w.ndim), _weight_gradient(abs(_f64(x)), abs(_f64(g)), w.ndim)
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("x_dtype", ["bfloat16", "float32"])
def test_dot_gives_each_cotangent_the_dtype_of_its_operand(x_dtype, dtype):
    x, w = jnp.ones((32, 32), x_dtype), jnp.ones((32, 32), "float32")
    y, pullback = jax.vjp(lambda x, w: dot(x, w, dtype), x, w)
    dx, dw = pullback(y)
    assert (y.dtype, dx.dtype, dw.dtype) == (dtype, x_dtype, "float32")


def test_dot_rounds_large_operands_to_bfloat16_and_adds_in_float32():
    ones = jnp.ones((64, 64))
    # 1 + 2⁻⁹ rounds to 1 in bfloat16; a bfloat16 sum of 64 × 64 ones and a 1 would lose the 1.
    np.testing.assert_array_equal(
        dot(ones * (1 + 2**-9), ones, "bfloat16", out_dtype="float32"), 64 * np.ones((64, 64))
    )
    row = jnp.ones((16, 4097)).at[:, 0].set(1)
    np.testing.assert_array_equal(
        dot(row, jnp.ones((4097, 16)), "bfloat16", out_dtype="float32"), np.full((16, 16), 4097)
    )


def test_dot_in_float32_is_a_float32_product():
    x, w = (np.random.default_rng(seed).standard_normal((96, 96)).astype(np.float32) for seed in (0, 1))
    assert np.max(np.abs(dot(jnp.asarray(x), jnp.asarray(w), "float32") - _f64(x) @ _f64(w))) < 2e-5


@pytest.mark.parametrize("shape", [(40, 96), (3000, 128), (2, 3, 32, 16)], ids=str)
def test_a_transposed_operand_has_a_gradient(shape):
    # The caller's transpose, folded into the bfloat16 product by XLA, is "Unsupported element type" on a CPU.
    table = _bfloat16_values(shape, seed=0)
    x = _bfloat16_values((*shape[:-2], 24, shape[-1]), seed=1)
    g = _bfloat16_values((*shape[:-2], 24, shape[-2]), seed=2)
    gradient = jax.jit(jax.grad(lambda table: jnp.sum(dot(x, jnp.swapaxes(table, -1, -2), "bfloat16", "float32") * g)))
    _assert_rounded(gradient(table), _t(_f64(g)) @ _f64(x), _t(np.abs(_f64(g))) @ np.abs(_f64(x)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shapes", [((40, 64), (300, 64)), ((2, 24, 64), (130, 64)), ((3, 5, 64), (300, 64))], ids=str)
def test_dot_transposed_is_the_product_with_the_transpose_and_so_are_its_gradients(shapes, dtype):
    x, table = (_bfloat16_values(shape, seed) for seed, shape in enumerate(shapes))
    found, expected = (
        jax.vjp(function, x, table)
        for function in (
            lambda x, table: dot_transposed(x, table, dtype, out_dtype="float32"),
            lambda x, table: dot(x, table.T, dtype, out_dtype="float32"),
        )
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6, atol=1e-5)
    g = _bfloat16_values(found[0].shape, seed=2).astype("float32")
    for gradient, other, operand in zip(found[1](g), expected[1](g), (x, table), strict=True):
        assert gradient.dtype == operand.dtype and gradient.shape == operand.shape
        np.testing.assert_allclose(_f64(gradient), _f64(other), rtol=1e-2, atol=1e-4)


def test_bias_gradient_is_added_up_in_float32():
    linear = Linear(16, 16, stddev=0.02, rngs=nnx.Rngs(0))
    rows = 4096
    x = jnp.ones((rows, 16), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda m: jnp.sum(m(x, "bfloat16").astype(jnp.float32))))(linear)
    # In bfloat16 a running sum of ones stops at 256.
    np.testing.assert_array_equal(gradient.bias[...], np.full(16, rows))
    assert gradient.bias[...].dtype == jnp.float32


def test_layer_norm_epsilon_is_1e_12_under_the_root():
    norm = LayerNorm(2, eps=1e-12)
    # mean 1e-6, variance 1e-12: (x − mean) / √(1e-12 + 1e-12) = ±1/√2; with 1e-6 it would be ±0.001.
    np.testing.assert_allclose(norm(jnp.asarray([[0.0, 2e-6]]), "float32"), [[-(0.5**0.5), 0.5**0.5]], rtol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the choice is made on CPUs only")
def test_short_rows_are_one_product_in_bfloat16():
    x, w = (np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in ((4, 8, 32), (32, 16)))
    rounded = [np.asarray(jnp.asarray(a, jnp.bfloat16), np.float32) for a in (x, w)]
    np.testing.assert_allclose(
        dot(*map(jnp.asarray, (x, w)), "bfloat16", "float32"), rounded[0] @ rounded[1], atol=1e-5
    )
    batch = jnp.broadcast_to(w, (4, 32, 16))  # eight rows of a product of its own gain nothing: operands not rounded
    np.testing.assert_allclose(dot(jnp.asarray(x), batch, "bfloat16", "float32"), x @ w, atol=1e-5)
    assert np.abs(rounded[0] @ rounded[1] - x @ w).max() > 1e-3


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_layer_norm_is_that_of_numpy(offset):
    x = np.random.default_rng(0).standard_normal((5, 7, 64)) + offset
    x = np.asarray(x, np.float32)
    norm = LayerNorm(64, eps=1e-12)
    norm.scale[...], norm.bias[...] = jnp.linspace(0.5, 2, 64), jnp.linspace(-1, 1, 64)
    x64 = _f64(x)
    expected = (x64 - x64.mean(-1, keepdims=True)) / np.sqrt(x64.var(-1, keepdims=True) + 1e-12)
    expected = expected * np.linspace(0.5, 2, 64) + np.linspace(-1, 1, 64)
    # At 100 the float32 mean may be two steps of 7.6e-6 off; times scale 2, over the smallest σ of 0.8: 3.8e-5.
    # (The variance as E[x²] − E[x]², in float32, would be off by about 1e-3.)
    np.testing.assert_allclose(norm(jnp.asarray(x), "float32"), expected, atol=2e-6 if offset == 0 else 4e-5)


def test_layer_norm_has_the_gradient_that_autodiff_finds():
    x, g = np.random.default_rng(0).standard_normal((2, 5, 7, 64)).astype(np.float32)
    norm = LayerNorm(64, eps=1e-3)

    def plain(x):
        centred = x - x.mean(-1, keepdims=True)
        return jnp.sum(g * centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-3))

    own = jax.grad(lambda x: jnp.sum(g * norm(x, "float32")))(x)
    np.testing.assert_allclose(own, jax.grad(plain)(x), atol=2e-6)


def test_gelu_golden_values():
    # Both are published as "gelu"; the original's checkpoints want the first, Hugging Face computes the second.
    x = jnp.asarray([-3.0, -1.0, 0.5, 1.0])
    np.testing.assert_allclose(GELU["gelu_tanh"](x), [-0.00363739, -0.15880801, 0.34571401, 0.84119199], atol=2e-7)
    np.testing.assert_allclose(GELU["gelu"](x), [-0.00404969, -0.15865525, 0.34573123, 0.84134475], atol=2e-7)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_gelu_has_the_gradient_that_autodiff_finds(name):
    x = jnp.linspace(-12, 12, 1001)
    plain = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=name == "gelu_tanh")))(x)
    np.testing.assert_allclose(jax.vmap(jax.grad(GELU[name]))(x), plain, atol=2e-6)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_a_gates_gradients_are_those_that_autodiff_finds(name):
    gate, x = jnp.linspace(-6, 6, 201), jnp.cos(jnp.arange(201.0))
    plain = lambda gate, x: jax.nn.gelu(gate, approximate=name == "gelu_tanh") * x  # noqa: E731
    np.testing.assert_allclose(GEGLU[name](gate, x), plain(gate, x), atol=2e-6)
    own, expected = (jax.vmap(jax.grad(f, (0, 1)))(gate, x) for f in (GEGLU[name], plain))
    np.testing.assert_allclose(own, expected, atol=2e-6)


def test_initialisation_is_the_table():
    linear = Linear(300, 400, stddev=0.02, rngs=nnx.Rngs(0), stack=(3,))
    embedding = Embedding(1000, 300, stddev=0.02, rngs=nnx.Rngs(0))
    norm = LayerNorm(8, eps=1e-12, stack=(3,))
    for values in (linear.kernel[...], embedding.embedding[...]):
        # σ of a normal cut off at ±2σ: 0.8796 × 0.02 = 0.017593. 300,000 draws and more: standard error < 3e-5.
        assert abs(float(values.std()) - 0.017593) < 1e-4
        assert abs(float(values.mean())) < 2e-4
        assert 0.0399 < float(jnp.abs(values).max()) <= 0.04
    assert float(jnp.abs(linear.kernel[0] - linear.kernel[1]).max()) > 0.01  # every layer has its own draw
    assert linear.bias.shape == (3, 400)
    assert not linear.bias[...].any()
    assert not norm.bias[...].any()
    assert (norm.scale[...] == 1).all()


def test_dropout_rate_and_scale():
    n = 1_000_000
    y = np.asarray(dropout(jnp.ones((1000, 10, 100)), 0.1, dropout_seeds(jax.random.key(0))))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.9)}
    # Standard error of a share of 0.1 in a million draws is 3e-4.
    assert abs((y == 0).mean() - 0.1) < 4 * np.sqrt(0.09 / n)
    rounded = dropout(jnp.full((4, 8), 7, jnp.bfloat16), 0.1, dropout_seeds(jax.random.key(0)))
    assert set(np.unique(np.asarray(rounded, np.float32))) == {0, float(jnp.bfloat16(7 / 0.9))}, "rounded once"
    assert dropout(jnp.ones((2, 2)), 0.1, None).sum() == 4
    assert dropout(jnp.ones((2, 2)), 0.0, dropout_seeds(jax.random.key(0))).sum() == 4


def test_dropout_is_independent_of_key_row_place_and_neighbour():
    shape = (64, 32, 128)
    masks = [np.asarray(dropout(jnp.ones(shape), 0.5, dropout_seeds(jax.random.key(seed)))) > 0 for seed in range(4)]
    keys = [(masks[i], masks[j]) for i in range(4) for j in range(i)]
    rows = [(masks[0][:-lag], masks[0][lag:]) for lag in (1, 2, 32)]
    lengths = [(masks[0][:, :-lag], masks[0][:, lag:]) for lag in (1, 2, 16)]
    places = [(masks[0][..., :-lag], masks[0][..., lag:]) for lag in (1, 2, 4, 32, 64)]
    diagonals = [(masks[0][:-1, :-1], masks[0][1:, 1:]), (masks[0][:-1, :, 1:], masks[0][1:, :, :-1])]
    for one, other in keys + rows + lengths + places + diagonals:
        # The share of equal bits is 1/2 with standard error 1/(2√n); 17 comparisons, so 4.5 of them.
        assert abs((one == other).mean() - 0.5) < 4.5 / (2 * np.sqrt(one.size))


def test_dropout_of_each_row_and_place_is_fair():
    kept = np.mean(
        [np.asarray(dropout(jnp.ones((32, 64)), 0.1, dropout_seeds(jax.random.key(i)))) > 0 for i in range(400)], axis=0
    )
    # 2,048 places, 400 keys each: standard error 0.015, so none may be 5 of them away; the spread must be binomial.
    assert np.abs(kept - 0.9).max() < 5 * 0.015
    assert abs(kept.std() - 0.015) < 0.0015


def test_dropout_gives_the_same_bits_on_a_mesh_of_eight_devices():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    x = jax.random.normal(jax.random.key(1), (16, 8, 32))
    expected = dropout(x, 0.1, dropout_seeds(jax.random.key(0)))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data", None, "model")))
    y = jax.jit(lambda x, key: dropout(x, 0.1, dropout_seeds(key)))(sharded, jax.random.key(0))
    assert len(y.sharding.device_set) == 8
    np.testing.assert_array_equal(y, expected)


def _bfloat16_values(shape, seed):
    x = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)


def _assert_rounded(actual, exact, magnitude):
    """`actual` is `exact` but for a rounding to its dtype, and float32 sums of terms with total size `magnitude`."""
    half_step = 2.0**-8 if actual.dtype == jnp.bfloat16 else 2.0**-24
    excess = np.abs(_f64(actual) - exact) - half_step * np.abs(exact) - 1e-6 * magnitude
    assert actual.shape == exact.shape
    assert excess.max() <= 0


def _weight_gradient(x, g, ndim):
    if ndim == 2:
        x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    return _t(x) @ g


def _f64(x):
    return np.asarray(x, np.float64)


def _t(x):
    return np.swapaxes(x, -1, -2)
