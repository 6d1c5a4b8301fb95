"""Vectors beside tokens: what the first layer reads equals NumPy's, and sequences of a row keep to themselves."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.data.batching.batches import collate
from bert_jax.data.batching.items import Item
from bert_jax.data.batching.shapes import Shape
from bert_jax.data.labelled.tables import Row
from bert_jax.data.media.source import vector_source
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.inference.encode import trunk_outputs
from bert_jax.models.bert import Bert, Model
from bert_jax.models.config import bert_config
from bert_jax.models.patches import trunk_inputs, vector_embedding
from bert_jax.tasks.texts import encode_texts, text_example
from bert_jax.training.parameters import flatten
from experiments import visual

TOKENIZER = make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcd"], "test", True, None, True)
RANDOM = np.random.default_rng(1)
ROWS = [("a b", RANDOM.random((4, 6), np.float32)), ("c", RANDOM.random((4, 6), np.float32))]


def build(positions="grid", **model):
    config = visual.get_config("classify")
    config.model.update(size="tiny", hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32)
    config.model.update({"dtype": "float32", "initializer_range": 0.5, "max_position_embeddings": 32} | model)
    config.data.update(image="image", sequence_length=24)
    config.image.update(height=4, width=6, channels=1, patch_size=2, mean="0.25", std="2")
    config.vectors.positions = positions
    source, own = vector_source(config), bert_config(config.model, TOKENIZER.vocab_size)
    rngs = nnx.Rngs(params=0)
    model = Model(Bert(own, rngs=rngs), vector_embedding(own, source, rngs=rngs))
    examples = [text_example(Row("x", {"text": text, "image": image}), config.data, source) for text, image in ROWS]
    return model, [Item(parts, {}, values) for parts, values in encode_texts(TOKENIZER, examples, config.data)]


def by_numpy(parameters, text, image, positions):
    """What the first layer reads of one row, from the definition."""
    p = {name: np.asarray(x, np.float64) for name, x in parameters.items()}
    ids = [TOKENIZER.cls_id, *(TOKENIZER.id(letter) for letter in text.split()), TOKENIZER.sep_id]
    rows = [
        p["embeddings/word/embedding"][token]
        + p["embeddings/position/embedding"][i]
        + p["embeddings/token_type/embedding"][0]
        for i, token in enumerate(ids)
    ]
    for i in range(2):
        for j in range(3):
            patch = (image[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].astype(np.float64).reshape(-1) - 0.25) / 2
            x = patch @ p["heads/vectors/projection/kernel"] + p["heads/vectors/projection/bias"]
            x += p["heads/vectors/type/embedding"][0]
            if positions == "grid":
                x += p["heads/vectors/position/embedding"][3 * i + j]
            elif positions == "axes":
                x += p["heads/vectors/row/embedding"][i] + p["heads/vectors/column/embedding"][j]
            rows.append(x)
    x = np.stack(rows)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    return x * p["embeddings/layer_norm/scale"] + p["embeddings/layer_norm/bias"]


@pytest.mark.parametrize("positions", ["grid", "axes", "none"])
def test_the_first_layer_reads_what_numpy_computes(positions):
    model, items = build(positions)
    batch = collate(items, [[0], [1]], Shape(2, 1, 12))
    outputs = trunk_outputs(model, {name: jnp.asarray(x) for name, x in batch.items()}, hidden=True, attentions=True)
    for row, (text, image) in enumerate(ROWS):
        expected = by_numpy(flatten(model), text, image, positions)
        found = np.asarray(outputs["hidden 0"])[row, : len(expected)]
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-5)
    weights = np.asarray(outputs["attention 0"])
    assert weights[0, :, 1, 4:10].sum(-1).min() > 0.05, "a word looks at the patches"
    np.testing.assert_array_equal(weights[1, :, :9, 9:], 0)  # [CLS] c [SEP] and 6 patches; then padding


def test_rows_that_are_shared_give_what_rows_of_their_own_give():
    model, items = build()

    def states(groups, shape):
        batch = {name: jnp.asarray(x) for name, x in collate(items, groups, shape).items()}
        return np.asarray(model.trunk.encode(trunk_inputs(model, batch)).hidden)

    alone, shared = states([[0], [1]], Shape(2, 1, 12)), states([[0, 1]], Shape(1, 1, 24, 2))
    np.testing.assert_allclose(shared[0, :10], alone[0, :10], atol=1e-5)
    np.testing.assert_allclose(shared[0, 10:19], alone[1, :9], atol=1e-5)


def test_in_bfloat16_the_states_are_close():
    (whole, items), (rounded, _) = build(), build(dtype="bfloat16")
    batch = {name: jnp.asarray(x) for name, x in collate(items, [[0], [1]], Shape(2, 1, 12)).items()}
    one, other = (
        np.asarray(m.trunk.encode(trunk_inputs(m, batch)).hidden, np.float32)[batch["sequence_ids"] > 0]
        for m in (whole, rounded)
    )
    assert np.abs(one - other).max() < 0.15 and np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.999


def test_a_text_without_a_picture_is_read_as_by_the_trunk_alone():
    model, items = build()
    [part] = items[0].parts
    text = Item((type(part)(part.ids[:4], part.type_ids[:4]),))
    batch = {name: jnp.asarray(x) for name, x in collate([text], [[0]], Shape(1, 1, 4)).items()}
    plain = Model(model.trunk, {})
    np.testing.assert_array_equal(*(m.trunk.encode(trunk_inputs(m, batch)).hidden for m in (model, plain)))
