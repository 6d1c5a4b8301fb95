"""The shapes beyond BERT's (rotary positions, gates, no biases, an untied output, initialisation by width) against
NumPy in float64, and what they cost."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from bert_jax.inference.encode import trunk_outputs
from bert_jax.models.bert import Bert, Model
from bert_jax.models.config import BertConfig
from bert_jax.models.cost import training_bytes, training_flops
from bert_jax.models.encoder import Layer
from bert_jax.models.heads import MaskedLMHead
from bert_jax.training.parameters import flatten

SMALL = {"vocab_size": 60, "hidden_size": 32, "embedding_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 48, "max_position_embeddings": 40, "dtype": "float32", "layers": "scan"}
ALL = {"position_embedding": "rotary", "gated": True, "use_bias": False, "tie_embeddings": False}
QUICK = {"xla_backend_optimization_level": 0}  # compiling is all the time that these take


@pytest.mark.parametrize(
    "change",
    [
        {"position_embedding": "rotary"},
        {"gated": True, "hidden_act": "gelu"},
        {"use_bias": False, "tie_embeddings": False},
        ALL | {"norm": "pre", "embedding_size": 16, "causal": True},
    ],
    ids=lambda change: ",".join(change),
)
def test_model_is_that_of_numpy(random_model, change):
    """Hidden states and attention weights of every layer, and MLM logits. The first row holds two sequences, each with
    positions from 0, and padding."""
    config = BertConfig(**(SMALL | change))
    model, rows = _model(random_model, config), _rows()
    found = _outputs(model, rows)
    hidden, weights, logits = _reference(flatten(model), config, {name: np.asarray(x) for name, x in rows.items()})
    real = np.asarray(rows["sequence_ids"]) > 0
    for i, expected in enumerate(hidden):
        np.testing.assert_allclose(found[f"hidden {i}"][real], expected[real], atol=3e-5, err_msg=f"layer {i}")
    for i, expected in enumerate(weights):
        np.testing.assert_allclose(found[f"attention {i}"], expected, atol=3e-6, err_msg=f"layer {i}")
    np.testing.assert_allclose(found["logits"][real], logits[real], atol=1e-4)
    if config.position_embedding == "rotary":  # only distances count
        moved = _outputs(model, rows | {"position_ids": rows["position_ids"] + 27})
        np.testing.assert_allclose(moved["logits"][real], found["logits"][real], atol=1e-4)
        other = _outputs(model, rows | {"position_ids": rows["position_ids"][:, ::-1]})
        assert np.abs(other["logits"] - found["logits"])[real].max() > 0.1


def test_bfloat16_is_close_to_float32(random_model):
    exact, rounded = (
        _outputs(_model(random_model, BertConfig(**(SMALL | ALL | {"dtype": dtype}))), _rows())
        for dtype in ("float32", "bfloat16")
    )
    assert rounded["logits"].dtype == jnp.float32
    # Hidden states have σ ≈ 1 after LayerNorm; one bfloat16 step at 1 is 2⁻⁷.
    assert float(jnp.sqrt(jnp.mean(jnp.square(rounded["hidden 2"] - exact["hidden 2"])))) < 2 * 2**-7


def test_no_parameter_is_a_bias_and_none_is_there_in_vain():
    plain, changed = (
        flatten(nnx.eval_shape(lambda c=c: _build(BertConfig(**(SMALL | c)))))
        for c in ({}, {"num_hidden_layers": 2} | ALL)
    )
    biases = {name for name in plain if name.endswith("bias")}
    assert len(biases) == 13
    assert plain.keys() - changed.keys() == biases | {"embeddings/position/embedding"}
    assert changed.keys() - plain.keys() == {"encoder/layers/gate/kernel", "heads/mlm/decoder/embedding"}
    assert changed["encoder/layers/gate/kernel"].shape == (2, 32, 48)
    assert changed["heads/mlm/decoder/embedding"].shape == (60, 32)


def test_an_untied_output_reads_its_own_table(random_model):
    head = random_model(lambda: MaskedLMHead(BertConfig(**(SMALL | {"tie_embeddings": False})), rngs=nnx.Rngs(0)))

    @partial(jax.jit, compiler_options=QUICK)
    def gradients(head, hidden, words):
        return jax.grad(lambda head, words: jnp.sum(jnp.sin(head(hidden, words))), (0, 1))(head, words)

    of_head, of_words = gradients(head, jax.random.normal(jax.random.key(0), (2, 3, 32)), jnp.ones((60, 32)))
    assert not of_words.any()
    assert (np.abs(of_head.decoder.embedding[...]).max(1) > 0).all()


def test_a_layer_without_the_angles_that_it_needs_is_refused(random_model):
    x, mask = jnp.ones((1, 4, 32)), jnp.ones((1, 1, 4, 4), bool)
    for positions, angles in (("rotary", None), ("learned", jnp.ones((1, 4, 16)))):
        config = BertConfig(**SMALL, position_embedding=positions)
        with pytest.raises(ValueError, match="needs angles with rotary positions, and only then"):
            random_model(lambda config=config: Layer(config, rngs=nnx.Rngs(0)))(x, mask, angles=angles)


def test_initialisation_by_width_and_depth_is_the_table():
    """As multiples of the fixed σ. 48 inputs: √(768 / 48) = 4; 192 inputs: 2; 8 layers: ÷ √16."""
    shape = {"vocab_size": 20, "hidden_size": 48, "embedding_size": 48, "num_hidden_layers": 8}
    shape |= {"num_attention_heads": 2, "intermediate_size": 192, "tie_embeddings": False}

    def tables(name):
        config, rngs = BertConfig(**shape, initializer=name), nnx.Rngs(params=0)
        return flatten(Layer(config, rngs=rngs, stack=(8,))) | flatten(MaskedLMHead(config, rngs=rngs))

    fixed, width, depth = jax.jit(
        lambda: list(map(tables, ("fixed", "width", "width_depth"))), compiler_options=QUICK
    )()
    names = [name for name, x in fixed.items() if x.any() and not name.endswith("scale")]
    assert len(names) == 8
    for name in names:
        ratios = [float(x[name].ravel()[0] / fixed[name].ravel()[0]) for x in (width, depth)]
        expected = {"output/kernel": [2, 0.5], "attention/output/kernel": [4, 1], "decoder/embedding": [1, 1]}
        assert ratios == pytest.approx(expected.get(name, [4, 4])), name
        np.testing.assert_allclose(depth[name], fixed[name] * ratios[1], rtol=1e-5)


def test_a_gate_is_a_third_product():
    plain, gated = (BertConfig(**(SMALL | {"gated": gated})) for gated in (False, True))
    extra = training_flops(gated, 5, 24, 3) - training_flops(plain, 5, 24, 3)
    assert extra == 3 * 2 * (5 * 24) * 2 * 32 * 48  # passes, a multiply-add, tokens, layers, columns
    # In each layer, pass and token, 48 more numbers of 4 bytes are written and read.
    more = training_bytes(gated, 5, 24, fused_attention=True) - training_bytes(plain, 5, 24, fused_attention=True)
    assert more == 3 * 2 * (5 * 24) * 2 * 48 * 4


def _build(config):
    rngs = nnx.Rngs(0)
    return Model(Bert(config, rngs=rngs), {"mlm": MaskedLMHead(config, rngs=rngs)})


def _model(random_model, config):
    return random_model(lambda: _build(config))


def _rows():
    """Two rows of twelve tokens."""
    ids = jax.random.randint(jax.random.key(0), (2, 12), 5, 50)
    sequences = jnp.asarray([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12])
    positions = jnp.asarray([[*range(5), *range(4), *range(3)], [*range(12)]])
    return {"input_ids": ids, "token_type_ids": ids % 2, "position_ids": positions, "sequence_ids": sequences}


@partial(jax.jit, compiler_options=QUICK)
def _outputs(model, rows):
    found = trunk_outputs(model, rows, hidden=True, attentions=True)
    last = found[f"hidden {model.trunk.config.num_hidden_layers}"].astype(model.trunk.config.dtype)
    return found | {"logits": model.heads["mlm"](last, model.trunk.embeddings.word.embedding[...])}


def _reference(parameters, config, rows):
    """Returns the hidden states, attention weights and MLM logits, a token at a time where positions matter."""
    p = {name: np.asarray(x, np.float64) for name, x in parameters.items()}

    def linear(name, x, i=...):
        y = x @ p[f"{name}/kernel"][i]
        return y + p[f"{name}/bias"][i] if config.use_bias else y

    def norm(name, x, i=...):
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * p[f"{name}/scale"][i]
        return y + p[f"{name}/bias"][i] if config.use_bias else y

    def layer(x, i):
        at, before, after = "encoder/layers", config.norm == "pre", config.norm == "post"
        y = norm(f"{at}/attention_layer_norm", x, i) if before else x
        context, weights = _attend(partial(linear, i=i), f"{at}/attention", y, config, rows)
        x = x + linear(f"{at}/attention/output", context, i)
        x = norm(f"{at}/attention_layer_norm", x, i) if after else x
        y = norm(f"{at}/output_layer_norm", x, i) if before else x
        inner = linear(f"{at}/intermediate", y, i)
        inner = _gelu(linear(f"{at}/gate", y, i), config) * inner if config.gated else _gelu(inner, config)
        x = x + linear(f"{at}/output", inner, i)
        return norm(f"{at}/output_layer_norm", x, i) if after else x, weights

    words = p["embeddings/word/embedding"]
    x = words[rows["input_ids"]] + p["embeddings/token_type/embedding"][rows["token_type_ids"]]
    if config.position_embedding == "learned":
        x = x + p["embeddings/position/embedding"][rows["position_ids"]]
    x = norm("embeddings/layer_norm", x)
    hidden, weights = [linear("embeddings/projection", x) if config.embedding_size != config.hidden_size else x], []
    for i in range(config.num_hidden_layers):
        x, w = layer(hidden[-1], i)
        hidden.append(x)
        weights.append(w)
    if config.norm == "pre":
        hidden[-1] = norm("encoder/layer_norm", hidden[-1])
    x = norm("heads/mlm/layer_norm", _gelu(linear("heads/mlm/transform", hidden[-1]), config))
    logits = x @ (words if config.tie_embeddings else p["heads/mlm/decoder/embedding"]).T
    return hidden, weights, logits + p["heads/mlm/bias"] if config.use_bias else logits


def _attend(linear, at, x, config, rows):
    """One query at a time. Rotary positions as in RoFormer: a pair of columns is a complex number, times exp(i p θ)."""
    query, key, value = (
        linear(f"{at}/{part}", x).reshape(*x.shape[:2], config.num_attention_heads, -1)
        for part in ("query", "key", "value")
    )
    half = config.head_width // 2
    if config.position_embedding == "rotary":
        turn = np.exp(1j * rows["position_ids"][:, :, None] * 10_000.0 ** (-2 * np.arange(half) / config.head_width))
        query, key = ((y[..., :half] + 1j * y[..., half:]) * turn[:, :, None] for y in (query, key))
    context, weights = np.zeros_like(value), np.zeros((x.shape[0], value.shape[2], x.shape[1], x.shape[1]))
    for b, i, h in np.ndindex(value.shape[:3]):
        seen = [j for j in range(i + 1 if config.causal else x.shape[1])]
        seen = [j for j in seen if rows["sequence_ids"][b, j] == rows["sequence_ids"][b, i]]
        scores = [np.real(query[b, i, h] @ np.conj(key[b, j, h])) / np.sqrt(config.head_width) for j in seen]
        exponentials = np.exp(scores - np.max(scores))
        weights[b, h, i, seen] = exponentials / exponentials.sum()
        context[b, i, h] = weights[b, h, i] @ value[b, :, h]
    return context.reshape(x.shape), weights


def _gelu(x, config):
    if config.hidden_act == "gelu":
        return 0.5 * x * (1 + erf(x / np.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
