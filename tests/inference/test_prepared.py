"""What is done to parameters once, when they are loaded, changes nothing that comes out, but for roundings."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.inference.prepared import PredictionModel, attend_on_cpu
from bert_jax.models.attention import attention_mask
from bert_jax.models.bert import Bert, Model, TrunkInputs
from bert_jax.models.config import BertConfig
from bert_jax.models.heads import Classifier
from bert_jax.models.writer import WriterConfig

SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}


def tagger(config: BertConfig) -> Model:
    rngs = nnx.Rngs(params=0)
    return Model(Bert(config, rngs=rngs), {"classifier": Classifier(config, 5, rngs=rngs)})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "options",
    [
        {"layers": "unroll"},
        {"layers": "unroll", "norm": "pre", "position_embedding": "rotary", "gated": True, "use_bias": False},
        {"layers": "scan"},
    ],
    ids=["unroll", "other", "scan"],
)
def test_equals_the_model_it_was_made_of(dtype, options):
    config = BertConfig(vocab_size=50, embedding_size=32, initializer_range=0.5, dtype=dtype, **SHAPE, **options)
    model = tagger(config)
    layers = model.trunk.encoder.layers
    ids = np.random.default_rng(0).integers(1, 50, (3, 24)).astype(np.int32)
    sequences = np.sort(np.random.default_rng(1).integers(0, 3, (3, 24)), axis=1)[:, ::-1].astype(np.int32)
    places = np.tile(np.arange(24, dtype=np.int32), (3, 1))

    def outputs(model, ids, sequences):
        inputs = TrunkInputs(ids, jnp.zeros_like(ids), jnp.asarray(places), sequences)
        encoded, logits = model.trunk.encode(inputs, all_layers=True), model.heads["classifier"].logits
        few = model.trunk.encode(inputs, places=jnp.asarray([[0], [23], [7]])).hidden
        return logits(encoded.hidden), encoded.layers, logits(few)

    plain = jax.jit(outputs)(model, ids, sequences)
    found = PredictionModel(model).program(outputs)(ids, sequences)
    assert len(found[1]) == 3
    if dtype == "float32":
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
            np.testing.assert_array_equal(one, other)
    else:  # attention rounds at another place: no further from the exact result than the model itself
        exact = tagger(replace(config, dtype="float32"))
        expected = jax.jit(outputs)(exact, ids, sequences)[0]
        error, of_model = (float(jnp.sqrt(jnp.mean((x - expected) ** 2))) for x in (found[0], plain[0]))
        assert error <= 1.25 * of_model < 0.05 * np.std(expected)
        of_places = expected[jnp.arange(3), jnp.asarray([0, 23, 7])]
        assert float(jnp.sqrt(jnp.mean((found[2][:, 0] - of_places) ** 2))) < 0.05 * np.std(expected)
    assert np.ptp(np.asarray(plain[0])) > 1
    assert layers.attention.query.kernel.shape == (3, 32, 32), "the model that was given has not changed"


@given(st.integers(1, 3), st.integers(16, 40), st.sampled_from([16, 24]), st.booleans(), st.integers(0, 9))
@settings(max_examples=10, deadline=None)
def test_attention_on_a_cpu_is_softmax_over_the_own_sequence(rows, length, size, causal, seed):
    """In float64; the weights of 8 bits are wrong by up to 2⁻⁹ of themselves each, and so is the result."""
    random = np.random.default_rng(seed)
    query, key, value = (jnp.asarray(random.normal(size=(rows, length, 2, size)) * 2, jnp.bfloat16) for _ in range(3))
    sequences = np.sort(random.integers(0, 3, (rows, length)), axis=1)[:, ::-1].copy()
    found = jax.jit(attend_on_cpu)(query, key, value, attention_mask(jnp.asarray(sequences), causal))
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    scores = np.einsum("bqhk,bshk->bhqs", q, k) / np.sqrt(size)
    allowed = sequences[:, None, :, None] == sequences[:, None, None, :]
    allowed = allowed & np.tri(length, dtype=bool) if causal else allowed
    weights = np.where(allowed, np.exp(scores), 0)
    expected = np.einsum("bhqs,bshk->bqhk", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=0.1)
    assert found.dtype == jnp.bfloat16


@pytest.mark.parametrize("share", [False, True])
def test_decoders_are_prepared_too(share):
    """In bfloat16: logits of every token of a target, and of the first by the cache, are those of the model."""
    kind = WriterConfig(2, 4, model="encoder_decoder", share=share)
    config, rngs = BertConfig(vocab_size=50, embedding_size=32, initializer_range=0.3, **SHAPE), nnx.Rngs(0)
    model = Model(Bert(config, rngs=rngs), kind.heads(config, rngs))
    ids = np.random.default_rng(0).integers(5, 50, (2, 16)).astype(np.int32)
    source = TrunkInputs(*map(jnp.asarray, (ids, ids * 0, np.arange(16)[None] + ids * 0, ids * 0 + 1)))

    def logits(model, targets):
        writer = kind.writer(model)
        memory = writer.read(source, 4)
        first = writer.next(memory, jnp.full(2, 2))[0]
        return writer.logits(writer.predict(source, targets)), first

    targets = jnp.asarray(ids[:, :4])
    expected, _ = jax.jit(logits)(model, targets)
    found, first = PredictionModel(model).program(logits)(targets)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=0.03 * scale)
    np.testing.assert_allclose(first, expected[:, 0], atol=0.03 * scale)


def test_programs_share_one_set_of_parameters_and_compile_once_a_shape():
    config = BertConfig(vocab_size=50, embedding_size=32, **SHAPE)
    prepared = PredictionModel(tagger(config))
    traced = []

    def size(model, x):
        traced.append(x.shape)
        kernel = model.trunk.encoder.layers[0].intermediate.kernel[...]
        return kernel.dtype == jnp.bfloat16, model.heads["classifier"].kernel[...].dtype == jnp.float32, jnp.sum(x)

    run = prepared.program(size)
    for length in (3, 4, 3, 4):
        assert [float(x) for x in run(np.ones(length, np.float32))] == [1, 1, length]
    assert traced == [(3,), (4,)]
    other = prepared.program(lambda model, x: x + model.trunk.pooler.bias[0])
    assert float(other(np.float32(2))) == 2


def test_float32_is_the_same_bits_where_a_joined_product_is_not():
    """On x86, XLA adds up 16 × 384 by 384 × 1152 in another order than three products of 384 columns."""
    shape = SHAPE | {"hidden_size": 384, "num_hidden_layers": 1}
    model = tagger(BertConfig(vocab_size=50, embedding_size=384, initializer_range=0.5, dtype="float32", **shape))
    ids = np.random.default_rng(0).integers(1, 50, (1, 16)).astype(np.int32)
    inputs = (ids, np.zeros_like(ids), np.arange(16, dtype=np.int32)[None], np.ones_like(ids))
    encode = lambda model, *inputs: model.trunk.encode(TrunkInputs(*inputs)).hidden  # noqa: E731
    expected = jax.jit(encode)(model, *inputs)
    np.testing.assert_array_equal(PredictionModel(model).program(encode)(*inputs), expected)
