"""A writer's three views of the same numbers: whole targets in training, token by token with a cache, plain rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.models.bert import Bert, Model, TrunkInputs
from bert_jax.models.config import BertConfig
from bert_jax.models.heads import MaskedLMHead
from bert_jax.models.writer import UniLM

QUICK = {"xla_backend_optimization_level": 0}  # compiling is all the time that these take
MASK = 4
SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SMALL |= {"embedding_size": 32, "max_position_embeddings": 24, "dtype": "float32"}
OTHER = {"position_embedding": "rotary", "norm": "pre", "gated": True, "layers": "scan"}
LENGTHS = (7, 3)  # of the sources in a batch


@pytest.mark.parametrize("other", [{}, OTHER], ids=["BERT", "other"])
def test_unilm_predicts_and_writes_the_same(random_model, other):
    model, source = _model(random_model, BertConfig(**SMALL, **other)), _source(LENGTHS)
    targets = jnp.asarray(np.random.default_rng(1).integers(5, 50, (2, 5)), jnp.int32)
    predicted = _predicted(model, source, targets)
    np.testing.assert_allclose(_written(model, source, targets), predicted, atol=1e-5)
    np.testing.assert_allclose(_in_plain_rows(model, source, targets), predicted, atol=1e-5)


def _model(random_model, config: BertConfig) -> Model:
    def make():
        rngs = nnx.Rngs(0)
        return Model(Bert(config, rngs=rngs), {"mlm": MaskedLMHead(config, rngs=rngs)})

    return random_model(make)


def _source(lengths, room: int = 8) -> TrunkInputs:
    ids = jnp.asarray(np.random.default_rng(0).integers(5, 50, (len(lengths), room)), jnp.int32)
    places = jnp.broadcast_to(jnp.arange(room)[None], ids.shape)
    real = (places < jnp.asarray(lengths)[:, None]).astype(jnp.int32)
    return TrunkInputs(ids * real, ids * 0, places * real, real)


@partial(jax.jit, compiler_options=QUICK)
def _predicted(model, source, targets):
    writer = UniLM(model, MASK)
    return writer.logits(writer.predict(source, targets))


def _written(model, source, targets, copies: int = 3):
    """Writes every target in three rows, as beams do; all of them must agree."""
    memory = jax.jit(lambda m, s: UniLM(m, MASK).read(s, targets.shape[1], copies), compiler_options=QUICK)(
        model, source
    )
    step = jax.jit(lambda m, *a: UniLM(m, MASK).next(*a), compiler_options=QUICK)
    last, found = jnp.full(copies * len(targets), 2), []
    for place in range(targets.shape[1]):
        logits, memory = step(model, memory, last)
        rows = logits.reshape(len(targets), copies, -1)
        np.testing.assert_allclose(rows[:, 1:], jnp.broadcast_to(rows[:, :1], rows[:, 1:].shape), atol=1e-6)
        found.append(rows[:, 0])
        last = jnp.repeat(targets[:, place], copies)
    return jnp.stack(found, axis=1)


def _in_plain_rows(model, source, targets):
    """The same without padding, cache or pseudo-masks: one row [source, targets before, MASK] for every token."""
    found = []
    for row, length in enumerate(LENGTHS):
        for place in range(targets.shape[1]):
            ids = jnp.concatenate([source.input_ids[row, :length], targets[row, :place], jnp.asarray([MASK])])[None]
            types = (jnp.arange(ids.shape[1]) >= length).astype(jnp.int32)[None]
            mask = np.tri(ids.shape[1], dtype=bool)
            mask[:length, :length] = True
            positions = jnp.arange(ids.shape[1])[None]
            inputs = TrunkInputs(ids, types, positions, ids * 0 + 1, mask=jnp.asarray(mask)[None, None])
            hidden = model.trunk.encode(inputs).hidden[:, -1:]
            found.append(model.heads["mlm"](hidden, model.trunk.embeddings.word.embedding[...])[0, 0])
    return jnp.stack(found).reshape(*targets.shape, -1)
