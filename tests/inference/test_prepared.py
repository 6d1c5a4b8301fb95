"""What is done to parameters once, when they are loaded, changes no bit of what comes out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.inference.prepared import Prepared
from bert_jax.models.config import BertConfig
from bert_jax.models.heads import BertForTokenClassification

SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("norm", "layers"), [("post", "unroll"), ("pre", "unroll"), ("post", "scan")])
def test_equals_the_model_it_was_made_of(dtype, norm, layers):
    config = BertConfig(
        vocab_size=50, embedding_size=32, initializer_range=0.5, dtype=dtype, norm=norm, layers=layers, **SHAPE
    )
    model = BertForTokenClassification(config, 5, rngs=nnx.Rngs(params=0))
    kernels = {"attention": model.encoder.layers.attention, "outer": model.encoder.layers}
    ids = np.random.default_rng(0).integers(1, 50, (3, 24)).astype(np.int32)
    sequences = np.sort(np.random.default_rng(1).integers(0, 3, (3, 24)), axis=1)[:, ::-1].astype(np.int32)
    places = np.tile(np.arange(24, dtype=np.int32), (3, 1))

    def outputs(model, ids, sequences):
        encoded = model.encode(ids, jnp.zeros_like(ids), jnp.asarray(places), sequences, all_layers=True)
        return model.logits(encoded.hidden), encoded.layers

    plain = jax.jit(outputs)(model, ids, sequences)
    found = Prepared(model).program(outputs)(ids, sequences)
    assert len(found[1]) == 3
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))
    assert np.ptp(np.asarray(plain[0])) > 1
    assert kernels["attention"].query.kernel.shape == (3, 32, 32), "the model that was given has not changed"


def test_programs_share_one_set_of_parameters_and_compile_once_a_shape():
    config = BertConfig(vocab_size=50, embedding_size=32, **SHAPE)
    prepared = Prepared(BertForTokenClassification(config, 5, rngs=nnx.Rngs(params=0)))
    traced = []

    def size(model, x):
        traced.append(x.shape)
        kernel = model.encoder.layers[0].intermediate.kernel[...]
        return kernel.dtype == jnp.bfloat16, model.classifier.kernel[...].dtype == jnp.float32, jnp.sum(x)

    run = prepared.program(size)
    for length in (3, 4, 3, 4):
        assert [float(x) for x in run(np.ones(length, np.float32))] == [1, 1, length]
    assert traced == [(3,), (4,)]
    other = prepared.program(lambda model, x: x + model.pooler.bias[0])
    assert float(other(np.float32(2))) == 2
