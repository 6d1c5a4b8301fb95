"""The pretraining heads: parameter counts, the tied decoder, and what a step never holds in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from bert_jax.models.attention import take_places
from bert_jax.models.bert import Bert, Model, TrunkInputs
from bert_jax.models.config import SIZES, BertConfig
from bert_jax.models.heads import LinearHead, MaskedLMHead

TINY = {"vocab_size": 100, "hidden_size": 32, "embedding_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY |= {"intermediate_size": 64, "max_position_embeddings": 40, "dtype": "float32", "layers": "scan"}
QUICK = {"xla_backend_optimization_level": 0}  # compiling is all the time that these take


@pytest.mark.parametrize(
    ("size", "with_heads", "trunk"),
    [("base", 110_106_428, 109_482_240), ("large", 336_226_108, 335_141_888), ("tiny", 4_433_468, None)],
)
def test_parameter_counts_are_those_of_the_published_models(size, with_heads, trunk):
    hidden, layers, heads = SIZES[size]
    config = BertConfig(30_522, hidden, layers, heads, 4 * hidden, hidden)
    model = nnx.eval_shape(lambda: pretraining(config))
    assert _count(model) == with_heads
    if trunk:
        assert _count(model.trunk) == trunk


def test_mlm_logits_are_those_of_numpy_at_the_positions(random_model):
    model = random_model(lambda: pretraining(BertConfig(**TINY)))
    hidden = np.random.default_rng(0).standard_normal((2, 9, 32)).astype(np.float32)
    positions = np.asarray([[4, 8, 0], [1, 1, 7]])
    logits = mlm_logits(model, jnp.asarray(hidden), jnp.asarray(positions))

    transform, norm = model.heads["mlm"].transform, model.heads["mlm"].layer_norm
    x = hidden[np.arange(2)[:, None], positions].astype(np.float64)
    x = x @ np.asarray(transform.kernel[...]) + np.asarray(transform.bias[...])
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    x = x * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])
    expected = x @ np.asarray(model.trunk.embeddings.word.embedding[...]).T + np.asarray(model.heads["mlm"].bias[...])
    np.testing.assert_allclose(logits, expected, atol=5e-6)


def test_nsp_logits_read_the_first_token_only(random_model):
    model = random_model(lambda: pretraining(BertConfig(**TINY)))
    hidden = jax.random.normal(jax.random.key(0), (3, 9, 32))
    logits = nsp_logits(model, hidden)
    pooled = np.tanh(_linear(model.trunk.pooler, np.asarray(hidden[:, 0], np.float64)))
    np.testing.assert_allclose(logits, _linear(model.heads["nsp"], pooled), atol=2e-6)
    np.testing.assert_array_equal(nsp_logits(model, hidden.at[:, 1:].set(0)), logits)


def test_the_decoder_trains_the_embedding_table(random_model):
    # The table's gradient from the decoder is dense; from the input it is zero for pieces not in the row.
    model = random_model(lambda: pretraining(BertConfig(**TINY)))
    gradient = nnx.state(jax.jit(jax.grad(_loss), compiler_options=QUICK)(model, *_inputs(2, 12, 3)))
    table = np.asarray(gradient["trunk"]["embeddings"]["word"]["embedding"][...])
    assert table.shape == (100, 32)
    assert (np.abs(table).max(-1) > 0).all()
    assert "embedding" not in str(jax.tree.map(jnp.shape, nnx.state(model.heads["mlm"])))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_no_array_of_all_positions_and_all_pieces(dtype):
    # B=3, L=24, P=5, V=101: a size with factors L and V is seen in no step of the forward or the backward pass.
    config = BertConfig(**(TINY | {"vocab_size": 101, "dtype": dtype}))
    model = nnx.eval_shape(lambda: pretraining(config))
    jaxpr = jax.make_jaxpr(jax.grad(_loss))(model, *_inputs(3, 24, 5))
    sizes = set(_sizes(jaxpr.jaxpr))
    assert 3 * 5 * 101 in sizes  # the walk does see the logits
    assert not [size for size in sizes if size % 101 == 0 and size >= 24 * 101 and size != 101 * 32]


def test_logits_are_float32_whatever_the_dtype(random_model):
    model = random_model(lambda: pretraining(BertConfig(**(TINY | {"dtype": "bfloat16"}))))
    hidden = jnp.ones((2, 9, 32), jnp.bfloat16)
    assert mlm_logits(model, hidden, jnp.zeros((2, 3), int)).dtype == jnp.float32
    assert nsp_logits(model, hidden).dtype == jnp.float32


def pretraining(config):
    rngs = nnx.Rngs(0)
    heads = {"mlm": MaskedLMHead(config, rngs=rngs), "nsp": LinearHead(config, 2, rngs=rngs)}
    return Model(Bert(config, rngs=rngs), heads)


def mlm_logits(model, hidden, positions):
    return model.heads["mlm"](take_places(hidden, positions), model.trunk.embeddings.word.embedding[...])


def nsp_logits(model, hidden):
    return model.heads["nsp"].logits(model.trunk.pool(hidden))


def _inputs(rows, length, predictions):
    ids = jax.random.randint(jax.random.key(0), (rows, length), 0, 100)
    positions = jnp.broadcast_to(jnp.arange(predictions)[None], (rows, predictions))
    return ids, positions


def _loss(model, ids, positions):
    places = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
    hidden = model.trunk.encode(TrunkInputs(ids, ids * 0, places, ids * 0 + 1), key=jax.random.key(0)).hidden
    mlm = jax.nn.log_softmax(mlm_logits(model, hidden, positions))[..., 0].mean()
    return -mlm - jax.nn.log_softmax(nsp_logits(model, hidden))[:, 0].mean()


def _linear(part, x):
    return x @ np.asarray(part.kernel[...]) + np.asarray(part.bias[...])


def _count(module):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))


def _sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from _sizes(inner)
