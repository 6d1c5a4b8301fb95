"""A writer's three views of the same numbers: whole targets in training, token by token with a cache, plain rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.models.bert import Bert, Model, TrunkInputs
from bert_jax.models.config import BertConfig
from bert_jax.models.writer import WriterConfig

QUICK = {"xla_backend_optimization_level": 0}  # compiling is all the time that these take
CLS, MASK = 2, 4
SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SMALL |= {"embedding_size": 32, "max_position_embeddings": 24, "dtype": "float32"}
OTHER = {"position_embedding": "rotary", "norm": "pre", "gated": True, "layers": "scan"}
LENGTHS = (7, 3)  # of the sources in a batch


UNILM = WriterConfig(CLS, MASK)
TWO = WriterConfig(CLS, MASK, model="encoder_decoder")
SHARED = WriterConfig(CLS, MASK, model="encoder_decoder", share=True)
KINDS = pytest.mark.parametrize("kind", [UNILM, TWO, SHARED], ids=["unilm", "encoder_decoder", "share"])


@KINDS
@pytest.mark.parametrize("other", [{}, OTHER], ids=["BERT", "other"])
def test_what_training_predicts_is_what_decoding_sees(random_model, kind, other):
    """Padded sources of two lengths; with a cache, and three rows for each source as for beams."""
    model, source, targets = _model(random_model, kind, BertConfig(**SMALL, **other)), _source(LENGTHS), _targets()
    predicted = _predicted(model, kind, source, targets)
    np.testing.assert_allclose(_written(model, kind, source, targets), predicted, atol=1e-5)
    if kind is UNILM:
        np.testing.assert_allclose(_in_plain_rows(model, source, targets), predicted, atol=1e-5)


@KINDS
def test_a_prediction_depends_on_the_source_and_on_what_was_written_before(random_model, kind):
    model, source, targets = _model(random_model, kind, BertConfig(**SMALL)), _source(LENGTHS), _targets()
    before = _predicted(model, kind, source, targets)
    other = source._replace(input_ids=source.input_ids.at[0, 1].set(49).at[1, 5].set(49))  # the second is padding
    changed = np.abs(np.asarray(_predicted(model, kind, other, targets) - before)).max(-1)
    assert (changed[0] > 1e-3).all()
    assert (changed[1] == 0).all()
    changed = np.abs(np.asarray(_predicted(model, kind, source, targets.at[:, 2].set(49)) - before)).max(-1)
    assert (changed[:, :3] == 0).all()
    assert (changed[:, 3:] > 1e-3).all()


@KINDS
@pytest.mark.parametrize("other", [{}, OTHER], ids=["BERT", "other"])
def test_attention_to_the_source(random_model, kind, other):
    """Shares of 1, none of them for padding; UniLM's are those of plain rows. (Those of an encoder–decoder are compared
    with Transformers in tests/convert/test_encoder_decoder.py.)"""
    model, source, targets = _model(random_model, kind, BertConfig(**SMALL, **other)), _source(LENGTHS), _targets()
    weights = jax.jit(lambda m: kind.writer(m).attention(source, targets), compiler_options=QUICK)(model)
    assert [of_layer.shape for of_layer in weights] == [(2, 2, 5, 8)] * 2
    for of_layer in map(np.asarray, weights):
        assert (of_layer[1, :, :, 3:] == 0).all() and (of_layer >= 0).all()
        if kind is not UNILM:
            np.testing.assert_allclose(of_layer.sum(-1), 1, atol=1e-5)
    if kind is UNILM and not other:
        for place, row, length in ((0, 0, 7), (3, 1, 3)):
            inputs = _plain_row(source, targets, row, place)
            states = model.trunk.encode(inputs, all_layers=True).layers
            x = model.trunk.embeddings(model.trunk.embeddings.word(inputs.input_ids), *inputs[1:3])
            for layer, state, found in zip(model.trunk.encoder.unstacked(), (x, states[0]), weights, strict=True):
                expected = layer.attention.weights(state[:, -1:], state, inputs.mask[:, :, -1:])
                np.testing.assert_allclose(found[row, :, place, :length], expected[0, :, 0, :length], atol=1e-5)


def _model(random_model, kind: WriterConfig, config: BertConfig) -> Model:
    def make():
        rngs = nnx.Rngs(0)
        return Model(Bert(config, rngs=rngs), kind.heads(config, rngs))

    return random_model(make)


def _targets():
    return jnp.asarray(np.random.default_rng(1).integers(5, 49, (2, 5)), jnp.int32)


def _source(lengths, room: int = 8) -> TrunkInputs:
    ids = jnp.asarray(np.random.default_rng(0).integers(5, 50, (len(lengths), room)), jnp.int32)
    places = jnp.broadcast_to(jnp.arange(room)[None], ids.shape)
    real = (places < jnp.asarray(lengths)[:, None]).astype(jnp.int32)
    return TrunkInputs(ids * real, ids * 0, places * real, real)


@partial(jax.jit, static_argnums=1, compiler_options=QUICK)
def _predicted(model, kind, source, targets):
    writer = kind.writer(model)
    return writer.logits(writer.predict(source, targets))


def _written(model, kind, source, targets, copies: int = 3):
    """Writes every target in three rows, as beams do; all of them must agree."""

    @partial(jax.jit, compiler_options=QUICK)
    def read(model, source):
        return kind.writer(model).read(source, targets.shape[1], copies)

    @partial(jax.jit, compiler_options=QUICK)
    def step(model, memory, tokens):
        return kind.writer(model).next(memory, tokens)

    memory = read(model, source)
    last, found = jnp.full(copies * len(targets), CLS), []
    for place in range(targets.shape[1]):
        logits, memory = step(model, memory, last)
        rows = logits.reshape(len(targets), copies, -1)
        np.testing.assert_allclose(rows[:, 1:], jnp.broadcast_to(rows[:, :1], rows[:, 1:].shape), atol=1e-6)
        found.append(rows[:, 0])
        last = jnp.repeat(targets[:, place], copies)
    return jnp.stack(found, axis=1)


def _in_plain_rows(model, source, targets):
    """The same without padding, cache or pseudo-masks."""
    found = []
    for row in range(len(LENGTHS)):
        for place in range(targets.shape[1]):
            hidden = model.trunk.encode(_plain_row(source, targets, row, place)).hidden[:, -1:]
            found.append(model.heads["mlm"](hidden, model.trunk.embeddings.word.embedding[...])[0, 0])
    return jnp.stack(found).reshape(*targets.shape, -1)


def _plain_row(source, targets, row: int, place: int) -> TrunkInputs:
    """Returns the row [source, targets before, MASK] for one token."""
    length = LENGTHS[row]
    ids = jnp.concatenate([source.input_ids[row, :length], targets[row, :place], jnp.asarray([MASK])])[None]
    types, positions = (jnp.arange(ids.shape[1]) >= length).astype(jnp.int32)[None], jnp.arange(ids.shape[1])[None]
    mask = np.tri(ids.shape[1], dtype=bool)
    mask[:length, :length] = True
    return TrunkInputs(ids, types, positions, ids * 0 + 1, mask=jnp.asarray(mask)[None, None])
