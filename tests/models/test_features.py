"""What heads read: layers of the trunk, and an LSTM that is PyTorch's and stays inside its sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.config import UserError
from bert_jax.models.bert import Bert, TrunkInputs
from bert_jax.models.config import BertConfig
from bert_jax.models.features import BiLSTM, FeatureConfig, Features

CONFIG = {"vocab_size": 50, "hidden_size": 16, "embedding_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
CONFIG |= {"intermediate_size": 32, "max_position_embeddings": 12, "dtype": "float32", "initializer_range": 0.3}


def test_lstm_is_that_of_pytorch(random_model):
    """Two layers, both directions, and their gradients."""
    torch = pytest.importorskip("torch")
    sizes = [(6, 5), (10, 5)]
    ours = random_model(lambda: nnx.Dict({str(i): BiLSTM(*size, rngs=nnx.Rngs(0)) for i, size in enumerate(sizes)}))
    theirs = torch.nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
    with torch.no_grad():
        for number in range(2):
            for direction, suffix in (("forward", ""), ("backward", "_reverse")):
                lstm = getattr(ours[str(number)], direction)
                for name, value in (
                    ("weight_ih", lstm.kernel[...].T),
                    ("weight_hh", lstm.recurrent_kernel[...].T),
                    ("bias_ih", 0.25 * lstm.bias[...]),
                    ("bias_hh", 0.75 * lstm.bias[...]),
                ):
                    getattr(theirs, f"{name}_l{number}{suffix}").copy_(torch.tensor(np.asarray(value)))
    x = np.random.default_rng(0).standard_normal((3, 7, 6)).astype(np.float32)

    @jax.jit
    def run(x):
        ids = jnp.ones(x.shape[:2], jnp.int32)
        out = ours["1"](ours["0"](x, ids, "float32"), ids, "float32")
        return jnp.sum(jnp.sin(out)), out

    (_, out), gradient = jax.value_and_grad(run, has_aux=True)(jnp.asarray(x))
    of_x = torch.tensor(x, requires_grad=True)
    expected = theirs(of_x)[0]
    torch.sin(expected).sum().backward()
    np.testing.assert_allclose(out, expected.detach().numpy(), atol=2e-6)
    np.testing.assert_allclose(gradient, of_x.grad.numpy(), atol=2e-6)


def test_nothing_passes_from_one_sequence_of_a_row_to_the_next():
    lstm = BiLSTM(4, 3, rngs=nnx.Rngs(0))
    run = jax.jit(lambda x, ids: lstm(x, ids, "float32"))
    x = jax.random.normal(jax.random.key(0), (1, 9, 4))
    ids = jnp.asarray([[1, 1, 1, 2, 2, 2, 2, 0, 0]])
    packed = run(x, ids)
    for first, last in ((0, 3), (3, 7)):
        alone = jnp.zeros_like(x).at[:, : last - first].set(x[:, first:last])
        own = run(alone, (jnp.arange(9)[None] < last - first).astype(jnp.int32))
        np.testing.assert_array_equal(packed[:, first:last], own[:, : last - first])
    changed = run(x.at[:, 3:].multiply(5.0), ids)
    np.testing.assert_array_equal(changed[:, :3], packed[:, :3])
    assert not np.allclose(changed[:, 3:7], packed[:, 3:7])


@pytest.fixture(scope="module")
def trunk():
    return Bert(BertConfig(**CONFIG), rngs=nnx.Rngs(0))


def inputs():
    ids = jax.random.randint(jax.random.key(1), (2, 12), 5, 50)
    sequence_ids = jnp.asarray([[1] * 5 + [2] * 6 + [0], [1] * 12])
    positions = jnp.asarray([[*range(5), *range(6), 0], [*range(12)]])
    return TrunkInputs(ids, jnp.zeros_like(ids), positions, sequence_ids)


def features_of(trunk, layers, **options):
    features = Features(trunk.config, FeatureConfig(16, layers, **options), rngs=nnx.Rngs(1))
    return features, jax.jit(lambda features: features.tokens(trunk, inputs(), None))(features)


def test_layers_are_those_of_the_trunk(trunk):
    encoded = jax.jit(lambda: trunk.encode(inputs(), all_layers=True))()
    layers = [np.asarray(layer) for layer in encoded.layers]
    for name, expected in {
        "second_to_last": layers[2],
        "last4_concat": np.concatenate(layers, axis=-1),
        "last4_weighted": np.mean(layers, axis=0),  # as initialised
        "all_weighted": np.mean(layers, axis=0),
    }.items():
        _, found = features_of(trunk, name)
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)
    words = trunk.embeddings.word(inputs().input_ids)
    embedded = trunk.embeddings(words, inputs().token_type_ids, inputs().position_ids)
    np.testing.assert_allclose(features_of(trunk, "embeddings")[1], embedded, atol=1e-5)
    features, _ = features_of(trunk, "last4_weighted")
    features.layer_weights[...] = jnp.asarray([0.0, 0.0, 0.0, 50.0])
    found = features.tokens(trunk, inputs(), None)
    np.testing.assert_allclose(found, layers[3], atol=1e-5)


def test_vector_of_a_sequence_is_the_final_states_of_both_directions(trunk):
    features, tokens = features_of(trunk, "last", lstm_layers=1, lstm_size=3)
    vectors = features.sequences(tokens, inputs().sequence_ids, 2, "cls")
    for row, sequence, first, last in ((0, 0, 0, 4), (0, 1, 5, 10), (1, 0, 0, 11)):
        expected = np.concatenate([tokens[row, last, :3], tokens[row, first, 3:]])
        np.testing.assert_array_equal(vectors[row, sequence], expected)
    means = features.sequences(tokens, inputs().sequence_ids, 2, "mean")
    np.testing.assert_allclose(means[0, 1], np.mean(tokens[0, 5:11], axis=0), atol=1e-6)
    plain, hidden = features_of(trunk, "second_to_last")
    firsts = plain.sequences(hidden, inputs().sequence_ids, 2, "cls")
    np.testing.assert_array_equal(firsts[0], hidden[0, jnp.asarray([0, 5])])


@pytest.mark.parametrize(
    ("layers", "least"), [("last4_concat", 4), ("last4_weighted", 4), ("second_to_last", 2), ("all_weighted", 1)]
)
def test_a_trunk_with_too_few_layers_is_refused(layers, least):
    FeatureConfig(16, layers).check(least, "tagging", True)
    if least > 1:
        with pytest.raises(UserError, match=f"head.layers={layers} needs {least} layers; the model has {least - 1}"):
            FeatureConfig(16, layers).check(least - 1, "tagging", True)
    with pytest.raises(UserError, match=r"task=my\.Own reads the last layer only"):
        FeatureConfig(16, layers).check(least, "my.Own", False)
