"""Attention against a NumPy reference, what its mask lets through, and decoding with a cache."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.config import UserError
from bert_jax.models.attention import Attention, Cache, attend, attention_mask, use_cudnn
from bert_jax.models.config import BertConfig
from bert_jax.models.layers import dropout, dropout_seeds

SMALL = {"vocab_size": 50, "hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 96, "embedding_size": 48}
SEQUENCES = jnp.asarray([[1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_that_of_numpy(random_model, causal):
    module = _attention(random_model, dtype="float32")
    x = np.random.default_rng(9).standard_normal((2, 7, 48)).astype(np.float32)
    y = jax.jit(lambda m, x, mask: m(x, x, mask)[0])(module, jnp.asarray(x), attention_mask(SEQUENCES, causal))
    sequences = np.asarray(SEQUENCES)
    mask = (sequences[:, :, None] == sequences[:, None]) & (np.tri(7, dtype=bool) if causal else True)
    np.testing.assert_allclose(y, _reference(module, x, x, mask), atol=5e-6)


def test_cross_attention_is_that_of_numpy(random_model):
    """Three queries of one text read five tokens of another, of which the second row has only two."""
    module, random = _attention(random_model, dtype="float32"), np.random.default_rng(3)
    x, source = (random.standard_normal((2, length, 48)).astype(np.float32) for length in (3, 5))
    mask = np.broadcast_to(np.asarray([[[1, 1, 1, 1, 1]], [[1, 1, 0, 0, 0]]], bool), (2, 3, 5))
    y, cache = module(jnp.asarray(x), jnp.asarray(source), jnp.asarray(mask)[:, None])
    assert y.shape == (2, 3, 48)
    assert cache is None
    np.testing.assert_allclose(y, _reference(module, x, source, mask), atol=5e-6)


@pytest.mark.parametrize("steps", [[1] * 7, [4, 1, 1, 1], [7], [2, 5]])
def test_decoding_with_a_cache_is_causal_attention(random_model, steps):
    """One token at a time, or a prompt of several first. The cache has room for more tokens than there are; the
    second row is padded on the left, as a shorter prompt would be."""
    module = _attention(random_model, dtype="float32")
    x = jax.random.normal(jax.random.key(0), (2, 7, 48))
    real = jnp.asarray([[True] * 9, [False] * 2 + [True] * 7])[:, None, None]
    causal = attention_mask(jnp.ones((2, 7), int), causal=True) & real[..., :7]
    expected, _ = module(x, x, causal)
    found, cache, step = [], Cache.empty(module.config, 2, 9), jax.jit(lambda m, x, *a: m(x, x, *a))
    for start, length in zip(np.cumsum([0, *steps]), steps, strict=False):
        y, cache = step(module, x[:, start : start + length], jnp.broadcast_to(real, (2, 1, length, 9)), cache)
        found.append(y)
    found = jnp.concatenate(found, axis=1)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1, 2:], expected[1, 2:], atol=1e-5)
    assert int(cache.length) == 7
    assert float(jnp.abs(cache.key[..., 7:]).max()) == float(jnp.abs(cache.value[:, :, 7:]).max()) == 0
    with pytest.raises(ValueError, match="1 queries and 2 keys: with a cache, both are new tokens"):
        module(x[:, :1], x[:, :2], jnp.ones((2, 1, 1, 9), bool), cache)


def test_bfloat16_attention_is_close_to_float32(random_model):
    f32, bf16 = (_attention(random_model, dtype=dtype) for dtype in ("float32", "bfloat16"))
    x = jax.random.normal(jax.random.key(0), (2, 32, 48))
    mask = attention_mask(jnp.ones((2, 32), int), causal=False)
    x16 = x.astype(jnp.bfloat16)
    expected, y = f32(x, x, mask)[0], bf16(x16, x16, mask)[0]
    assert y.dtype == jnp.bfloat16
    # Five roundings of 2⁻⁹ one after the other, relative to a typical value.
    assert float(jnp.abs(y.astype(jnp.float32) - expected).max()) < 5 * 2**-8 * float(jnp.abs(expected).max())


def test_mask_keeps_sequences_apart():
    mask = attention_mask(jnp.asarray([[1, 1, 2, 0]]), causal=False)[0, 0]
    np.testing.assert_array_equal(mask, [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    causal = attention_mask(jnp.asarray([[1, 1, 2, 0]]), causal=True)[0, 0]
    np.testing.assert_array_equal(causal, [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def test_dropout_falls_on_the_probabilities():
    # Equal scores, values 1: without dropout every context is 1, with it (number of kept keys) / (8 · 0.5).
    zeros, ones = jnp.zeros((1, 8, 1, 4)), jnp.ones((1, 8, 1, 4))
    mask = jnp.ones((1, 1, 8, 8), bool)
    np.testing.assert_array_equal(attend(zeros, zeros, ones, mask, 0.5, None, "float32"), ones)
    context = np.asarray(attend(zeros, zeros, ones, mask, 0.5, dropout_seeds(jax.random.key(0)), "float32"))[0, :, 0]
    kept = context * 4
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-6)
    assert (context == context[:, :1]).all()  # a key is dropped for all K numbers of a query's context
    assert len(np.unique(kept[:, 0])) > 1  # but not for all queries


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_gradient_is_that_of_autodiff(rate):
    """Several sequences in a row, of which a query sees its own only, and the same keys dropped."""
    q, k, v = (jax.random.normal(key, (2, 24, 3, 16)) for key in jax.random.split(jax.random.key(0), 3))
    mask = attention_mask(jnp.asarray([[1] * 9 + [2] * 15, [1] * 20 + [0] * 4]), causal=False)
    seed = dropout_seeds(jax.random.key(1))

    def plain(q, k, v):
        scores = jnp.where(mask, jnp.einsum("bphk,blhk->bhpl", q, k, precision="highest") / 4, -jnp.inf)
        weights = dropout(jax.nn.softmax(scores), rate, seed)
        return jnp.einsum("bhpl,blhk->bphk", weights, v, precision="highest")

    def loss(f, *qkv):
        return jnp.sum(jnp.sin(f(*qkv)))

    ours, autodiff = (
        jax.grad(partial(loss, f), (0, 1, 2))(q, k, v)
        for f in (lambda *qkv: attend(*qkv, mask, rate, seed, "float32"), plain)
    )
    for grad, expected in zip(ours, autodiff, strict=True):
        np.testing.assert_allclose(grad, expected, atol=1e-6 * float(jnp.abs(expected).max()))


def test_gradient_of_bfloat16_attention_is_close_to_that_of_float32():
    # The scores' gradient for the keys is a transposed product, which has a CPU kernel in one layout only.
    q, k, v = (jax.random.normal(key, (2, 24, 2, 16)) for key in jax.random.split(jax.random.key(0), 3))
    mask = jnp.ones((2, 1, 24, 24), bool)

    def loss(dtype, *qkv):
        return jnp.sum(jnp.sin(attend(*qkv, mask, 0.0, None, dtype).astype(jnp.float32)))

    grads, expected = (
        jax.jit(jax.grad(loss, (1, 2, 3)), static_argnums=0)(d, q, k, v) for d in ("bfloat16", "float32")
    )
    for grad, exact in zip(grads, expected, strict=True):
        assert float(jnp.linalg.norm(grad - exact) / jnp.linalg.norm(exact)) < 0.02


def test_cudnn_is_refused_where_it_cannot_do_the_job():
    assert not use_cudnn(BertConfig(**SMALL), training=False)  # "auto" on a CPU
    assert use_cudnn(BertConfig(**SMALL, attention="cudnn", attention_dropout=0.0), training=True)
    for change in ({"dtype": "float32", "attention_dropout": 0.0}, {"attention_dropout": 0.1}):
        with pytest.raises(UserError, match=r"needs model\.dtype=bfloat16 and model\.attention_dropout=0"):
            BertConfig(**SMALL, attention="cudnn", **change)


def _attention(random_model, **options):
    return random_model(lambda: Attention(BertConfig(**SMALL, **options), rngs=nnx.Rngs(0)))


def _reference(module, query_source, key_value_source, mask):
    """Attention one query of one head at a time, in float64. The mask is [rows, queries, keys]."""
    x, source = query_source.astype(np.float64), key_value_source.astype(np.float64)
    q, k, v = (
        _linear(part, y).reshape(*y.shape[:2], 3, 16)
        for part, y in ((module.query, x), (module.key, source), (module.value, source))
    )
    context = np.zeros_like(q)
    for b, i, h in np.ndindex(q.shape[:3]):
        seen = np.flatnonzero(mask[b, i])
        weights = np.exp([q[b, i, h] @ k[b, j, h] / np.sqrt(16) for j in seen])
        context[b, i, h] = sum(w * v[b, j, h] for w, j in zip(weights / weights.sum(), seen, strict=True))
    return _linear(module.output, context.reshape(x.shape))


def _linear(part, x):
    return x @ np.asarray(part.kernel[...], np.float64) + np.asarray(part.bias[...], np.float64)
