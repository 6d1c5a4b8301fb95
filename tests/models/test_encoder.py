"""The trunk: what may influence what, and the options that must not change the result."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.config import UserError
from bert_jax.models.attention import Cache, attention_mask
from bert_jax.models.bert import Bert, TrunkInputs
from bert_jax.models.config import BertConfig
from bert_jax.models.cost import training_flops
from bert_jax.models.encoder import CrossAttention, Layer, rotary_angles, sinusoids

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 40}
# The same program with fewer optimizations: what is tested here holds with any, and compiling is all the time it takes.
QUICK = {"xla_backend_optimization_level": 0}
# Scanned layers compile in a third of the time; unrolled ones are compared with them.
# The options that a layer knows beyond BERT's.
OTHER = {"norm": "pre", "position_embedding": "rotary", "gated": True, "use_bias": False}
SMALL = {"vocab_size": 100, "hidden_size": 32, "embedding_size": 32, "dtype": "float32", "layers": "scan"} | SIZES


def test_padding_does_not_change_the_real_tokens(random_model):
    model = _bert(random_model, BertConfig(**SMALL))
    ids = _ids(2, 12)
    short = _encode(model, ids)
    padded_ids = jnp.concatenate([ids, _ids(2, 20, seed=5)], axis=1)  # what is in the padding must not matter either
    sequences = jnp.concatenate([jnp.ones((2, 12), int), jnp.zeros((2, 20), int)], axis=1)
    padded = _encode(model, padded_ids, sequences)
    np.testing.assert_allclose(padded[:, :12], short, atol=3e-6)


def test_two_sequences_packed_in_a_row_are_two_rows(random_model):
    model = _bert(random_model, BertConfig(**SMALL))
    one, other = _ids(2, 12), _ids(2, 12, seed=7)
    ids = jnp.concatenate([one, other, jnp.zeros((2, 8), int)], axis=1)
    sequences = jnp.asarray([[1] * 12 + [2] * 12 + [0] * 8] * 2)
    positions = jnp.asarray([[*range(12), *range(12), *range(8)]] * 2)
    packed = _encode(model, ids, sequences, positions)
    np.testing.assert_allclose(packed[:, :12], _encode(model, one), atol=3e-6)
    np.testing.assert_allclose(packed[:, 12:24], _encode(model, other), atol=3e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_left_to_right_looks_at_nothing_to_the_right(random_model, causal):
    model = _bert(random_model, BertConfig(**SMALL, causal=causal))
    length = 8
    ids = _ids(1, length)

    def token_sum(embedded, position):
        mask = attention_mask(jnp.ones((1, length), int), model.config.causal)
        return model.encoder(embedded, mask).hidden[0, position].sum()

    embedded = model.embeddings(model.embeddings.word(ids), ids * 0, jnp.arange(length)[None])
    influence = jax.vmap(jax.grad(token_sum), (None, 0))(embedded, jnp.arange(length))
    influence = np.abs(np.asarray(influence))[:, 0].max(-1)  # [output position, input position]
    assert (influence[np.tril_indices(length)] > 1e-6).all()
    above = influence[np.triu_indices(length, 1)]
    assert (above == 0).all() if causal else (above > 1e-6).all()


@pytest.mark.parametrize("other", [{}, OTHER], ids=["BERT", "other"])
def test_scan_and_remat_change_neither_values_nor_gradients(random_model, other):
    options = SMALL | other | {"remat": "none"}
    # With the other options one comparison, without dropout: what differs is inside the layer, which all share.
    changes = (
        ({"layers": "unroll", "remat": "dots"},)
        if other
        else ({"layers": "unroll"}, {"remat": "dots"}, {"remat": "full"})
    )
    key = None if other else jax.random.key(3)
    value, gradient = _value_and_gradient(_bert(random_model, BertConfig(**options)), key)
    for change in changes:
        changed = _bert(random_model, BertConfig(**(options | change)))
        other_value, other = _value_and_gradient(changed, key)
        np.testing.assert_allclose(other_value, value, atol=1e-4, err_msg=str(change))  # a sum of 768 sines
        assert other.keys() == gradient.keys()
        for name, expected in gradient.items():
            size = np.abs(expected).max()
            # A key's bias shifts all scores of a query alike: its gradient is 0 but for rounding. No pooler here.
            assert size > 1e-3 or name in ("encoder/layers/attention/key/bias", "pooler/kernel", "pooler/bias"), name
            np.testing.assert_allclose(other[name], expected, atol=1e-5 * size + 1e-5, err_msg=f"{change} {name}")


def test_dropout_differs_between_layers_and_keys_and_is_off_without_a_key(random_model):
    model = _bert(random_model, BertConfig(**SMALL))
    ids = _ids(2, 12)
    one, again, other = (_encode(model, ids, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert float(jnp.abs(one - other).max()) > 0.1
    assert float(jnp.abs(one - _encode(model, ids)).max()) > 0.1
    np.testing.assert_array_equal(_encode(model, ids), _encode(model, ids))


def test_bfloat16_is_close_to_float32(random_model):
    exact = _encode(_bert(random_model, BertConfig(**SMALL)), _ids(2, 32))
    rounded = _encode(_bert(random_model, BertConfig(**(SMALL | {"dtype": "bfloat16"}))), _ids(2, 32))
    assert rounded.dtype == jnp.bfloat16
    # Hidden states have σ ≈ 1 after LayerNorm; one bfloat16 step at 1 is 2⁻⁷.
    assert float(jnp.sqrt(jnp.mean(jnp.square(rounded.astype(jnp.float32) - exact)))) < 2 * 2**-7


@pytest.mark.parametrize(("norm", "layers"), [("post", "scan"), ("post", "unroll"), ("pre", "scan")])
def test_all_layers_are_the_outputs_of_shorter_models(random_model, norm, layers):
    config = SMALL | {"norm": norm, "layers": layers, "num_hidden_layers": 2}
    model = _bert(random_model, BertConfig(**config))
    ids = _ids(2, 12)
    outputs = _encode_compiled(model, ids, ids * 0, _positions(ids), ids * 0 + 1, all_layers=True)
    assert outputs.layers is not None
    assert len(outputs.layers) == 2
    for count in (1, 2):
        shorter = _first_layers(model, BertConfig(**(config | {"num_hidden_layers": count, "layers": "scan"})))
        last = outputs.layers[count - 1]
        np.testing.assert_allclose(
            last if norm == "post" else model.encoder.layer_norm(last, "float32"), _encode(shorter, ids), atol=2e-6
        )
    if norm == "post":
        np.testing.assert_array_equal(outputs.layers[-1], outputs.hidden)
    assert _encode_compiled(model, ids, ids * 0, _positions(ids), ids * 0 + 1).layers is None


@pytest.mark.parametrize("layers", ["unroll", "scan"])
@pytest.mark.parametrize("other", [{}, OTHER | {"causal": True}], ids=["BERT", "other"])
def test_hidden_states_of_some_places_are_those_of_all(random_model, layers, other):
    """And so are the gradients; a place may be asked for twice, and rows may hold two sequences and padding."""
    model = _bert(random_model, BertConfig(**(SMALL | other | {"layers": layers}), remat="full"))
    ids, places = _ids(3, 12), jnp.asarray([[0, 5, 5, 11], [0, 1, 2, 3], [7, 0, 11, 6]])
    sequences = jnp.asarray([[1] * 12, [1] * 5 + [2] * 7, [1] * 8 + [0] * 4])

    def loss(model, only):
        encoded = model.encode(_inputs(ids, sequences, ids % 2), places=places if only else None)
        hidden = encoded.hidden if only else jnp.take_along_axis(encoded.hidden, places[:, :, None], axis=1)
        return jnp.sum(jnp.sin(hidden * jnp.arange(4.0)[None, :, None])), hidden

    graph = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1, compiler_options=QUICK)
    ((_, some), gradient), ((_, of_all), expected) = graph(model, True), graph(model, False)
    np.testing.assert_allclose(some, of_all, atol=1e-5)
    # Of the largest gradient: that of the keys' bias is 0, but for rounding.
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * scale)


def test_the_last_layer_computes_no_more_than_is_asked_for(random_model):
    """Of 64 places one: the products of its feed-forward part have one row a sequence."""
    config = BertConfig(**(SMALL | {"layers": "unroll"}))
    model, ids = _bert(random_model, config), _ids(2, 64)
    inputs = TrunkInputs(ids, ids * 0, _positions(ids) % 40, ids * 0 + 1)
    encode = lambda places: model.encode(inputs, places=places).hidden  # noqa: E731
    flops = [jax.jit(encode).lower(places).cost_analysis()["flops"] for places in (None, jnp.zeros((2, 1), jnp.int32))]
    saved = (training_flops(config, 2, 64, 0) - training_flops(config, 2, 64, 0, places=1)) / 3
    assert flops[0] - flops[1] == pytest.approx(saved, rel=0.1)


@pytest.mark.parametrize("other", [{}, OTHER], ids=["BERT", "other"])
def test_layers_with_cross_attention_decode_one_token_at_a_time(random_model, other):
    """Two layers of a decoder, with and without a cache; and each token depends on the source. Rotary positions go on
    where the cache ends."""
    config = BertConfig(**SMALL, **other)
    layer = random_model(lambda: Layer(config, rngs=nnx.Rngs(0)))
    one, another = (random_model(lambda: CrossAttention(config, rngs=nnx.Rngs(0))) for _ in range(2))
    another.attention.query.kernel[...] = -another.attention.query.kernel[...]
    x, source = (jax.random.normal(jax.random.key(length), (2, length, 32)) for length in (6, 4))
    source_mask = jnp.asarray([[True] * 4, [True, True, False, False]])[:, None, None]

    @partial(jax.jit, compiler_options=QUICK)
    def decode(x, source, mask, caches, first=0):
        shown = jnp.broadcast_to(source_mask, (2, 1, x.shape[1], 4))
        angles = rotary_angles(config, jnp.broadcast_to(first + jnp.arange(x.shape[1])[None], x.shape[:2]))
        after = []
        for cross, cache in zip((one, another), caches, strict=True):
            x, cache = layer(x, mask, angles=angles, cross=cross, source=source, source_mask=shown, cache=cache)
            after.append(cache)
        return x, after

    causal = attention_mask(jnp.ones((2, 6), int), causal=True)
    expected, _ = decode(x, source, causal, [None, None])
    caches, found = [Cache.empty(config, 2, 6)] * 2, []
    for i in range(6):
        y, caches = decode(x[:, i : i + 1], source, jnp.ones((2, 1, 1, 6), bool), caches, i)
        found.append(y)
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), expected, atol=1e-5)
    changed = np.abs(np.asarray(decode(x, source.at[:, 1].add(1), causal, [None, None])[0] - expected)).max(-1)
    assert (changed > 1e-3).all()
    # What the mask hides has no effect: the last two tokens of the second row's source.
    hidden = decode(x, source.at[1, 2:].add(1), causal, [None, None])[0]
    np.testing.assert_array_equal(hidden, expected)
    with pytest.raises(ValueError, match="needs a source"):
        layer(x, causal, angles=rotary_angles(config, _positions(x)), cross=one)


def test_sinusoids_are_those_of_the_paper(random_model):
    table = sinusoids(6, 4)
    # Columns: sin(p), cos(p), sin(p / 100), cos(p / 100), for 10,000^(2/4) = 100.
    np.testing.assert_allclose(table[0], [0, 1, 0, 1])
    np.testing.assert_allclose(table[5], [np.sin(5), np.cos(5), np.sin(0.05), np.cos(0.05)], rtol=1e-6)
    assert sinusoids(6, 5).shape == (6, 5)
    model = _bert(random_model, BertConfig(**SMALL, position_embedding="sinusoidal"))
    assert not hasattr(model.embeddings, "position")
    ids = jnp.full((1, 8), 7)
    hidden = _encode(model, ids)
    assert float(jnp.abs(hidden[0, 0] - hidden[0, 1]).max()) > 0.01  # the same token, told apart by its place


def test_factorised_embeddings_are_small_tables_and_a_projection(random_model):
    config = BertConfig(**(SMALL | {"embedding_size": 8}))
    model = _bert(random_model, config)
    assert model.embeddings.word.embedding.shape == (100, 8)
    assert model.embeddings.projection.kernel.shape == (8, 32)
    ids = _ids(2, 5)
    embedded = model.embeddings(model.embeddings.word(ids), ids * 0, _positions(ids))
    tables = [np.asarray(t.embedding[...]) for t in (model.embeddings.word, model.embeddings.position)]
    norm = model.embeddings.layer_norm
    total = tables[0][np.asarray(ids)] + tables[1][None, :5] + np.asarray(model.embeddings.token_type.embedding[...])[0]
    normed = (total - total.mean(-1, keepdims=True)) / np.sqrt(total.var(-1, keepdims=True) + 1e-12)
    normed = normed * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])
    projection = model.embeddings.projection
    np.testing.assert_allclose(
        embedded, normed @ np.asarray(projection.kernel[...]) + np.asarray(projection.bias[...]), atol=2e-5
    )


def test_pre_norm_normalises_the_input_of_each_block_and_the_end(random_model):
    model = _bert(random_model, BertConfig(**SMALL, norm="pre"))
    hidden = _encode(model, _ids(2, 10))
    scale, bias = np.asarray(model.encoder.layer_norm.scale[...]), np.asarray(model.encoder.layer_norm.bias[...])
    normalised = (np.asarray(hidden) - bias) / scale
    np.testing.assert_allclose(normalised.mean(-1), np.zeros((2, 10)), atol=1e-5)
    np.testing.assert_allclose(normalised.std(-1), np.ones((2, 10)), atol=1e-5)
    # The residual stream is never normalised: blocks that give 0 leave the embeddings as they are.
    for part in (model.encoder.layers.attention.output, model.encoder.layers.output):
        part.kernel[...], part.bias[...] = part.kernel[...] * 0, part.bias[...] * 0
    ids = _ids(2, 10)
    embedded = model.embeddings(model.embeddings.word(ids), ids * 0, _positions(ids))
    np.testing.assert_allclose(_encode(model, ids), model.encoder.layer_norm(embedded, "float32"), atol=1e-6)


def test_token_types_and_positions_are_looked_up(random_model):
    model = _bert(random_model, BertConfig(**SMALL))
    ids = _ids(1, 6)
    base = model.embeddings(model.embeddings.word(ids), ids * 0, _positions(ids))
    typed = model.embeddings(model.embeddings.word(ids), jnp.asarray([[0, 0, 0, 1, 1, 1]]), _positions(ids))
    moved = model.embeddings(model.embeddings.word(ids), ids * 0, _positions(ids) + 1)
    changed = np.abs(np.asarray(typed - base)).max(-1)[0]
    np.testing.assert_array_equal(changed > 1e-3, [False, False, False, True, True, True])
    assert (np.abs(np.asarray(moved - base)).max(-1) > 1e-3).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size 32 is not a multiple of model.num_attention_heads 5"),
        (
            {"position_embedding": "rotary", "hidden_size": 10},
            r"the head size is 5 \(model.hidden_size 10 / model.num_attention_heads 2\)",
        ),
        ({"hidden_act": "relu"}, "model.hidden_act is 'relu'; it can be gelu_tanh, gelu"),
        ({"attention_dropout": 1.0}, "model.attention_dropout is 1.0; it must be a number from 0 to below 1"),
        ({"num_hidden_layers": 0}, "model.num_hidden_layers is 0; it must be a whole number from 1 to 4096"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_that_cannot_be_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        BertConfig(**(SMALL | change))


def _bert(random_model, config):
    return random_model(lambda: Bert(config, rngs=nnx.Rngs(0)))


def _first_layers(model, config):
    _, state = nnx.split(model)
    flat = [
        (path, nnx.Param(leaf[...][: config.num_hidden_layers] if "layers" in path else leaf[...]))
        for path, leaf in nnx.to_flat_state(state)
    ]
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Bert(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def _value_and_gradient(model, key):
    ids = _ids(2, 12)

    def loss(model):
        hidden = model.encode(_inputs(ids, ids * 0 + 1, ids % 2), key=key).hidden
        return jnp.sum(jnp.sin(hidden))

    value, gradient = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(model)
    flat = nnx.to_flat_state(nnx.state(gradient))
    return value, {"/".join(path): np.asarray(leaf[...]) for path, leaf in flat}


def _encode(model, ids, sequence_ids=None, position_ids=None, key=None):
    sequence_ids = jnp.ones_like(ids) if sequence_ids is None else sequence_ids
    position_ids = _positions(ids) if position_ids is None else position_ids
    return _encode_compiled(model, ids, ids * 0, position_ids, sequence_ids, key).hidden


@partial(jax.jit, static_argnames="all_layers", compiler_options=QUICK)
def _encode_compiled(model, ids, types, positions, sequences, key=None, all_layers=False):
    return model.encode(TrunkInputs(ids, types, positions, sequences), key=key, all_layers=all_layers)


def _inputs(ids, sequence_ids, types):
    return TrunkInputs(ids, types, _positions(ids), sequence_ids)


def _ids(rows, length, seed=0):
    return jax.random.randint(jax.random.key(seed), (rows, length), 5, 100)


def _positions(ids):
    return jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape[:2])
