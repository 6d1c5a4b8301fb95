"""Checkpoints of google-research/bert: written by TensorFlow itself, computed in NumPy from its own names."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.convert import conversion, google_tf
from bert_jax.convert.mapping import parameter_shapes
from bert_jax.convert.names import google_names
from bert_jax.convert.tensor_files import open_tensors

SIZES = {"vocab_size": 33, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 24, "max_position_embeddings": 24, "type_vocab_size": 2}
OPTIONS = {"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
OPTIONS |= {"initializer_range": 0.02, "directionality": "bidi", "pooler_type": "first_token_transform"}
HEADS = {  # name of the folder → what it has besides trunk and pooler
    "pretrained": {
        "cls/predictions/transform/dense/kernel": (16, 16),
        "cls/predictions/transform/dense/bias": (16,),
        "cls/predictions/transform/LayerNorm/gamma": (16,),
        "cls/predictions/transform/LayerNorm/beta": (16,),
        "cls/predictions/output_bias": (33,),
        "cls/seq_relationship/output_weights": (2, 16),
        "cls/seq_relationship/output_bias": (2,),
    },
    "classifier": {"output_weights": (3, 16), "output_bias": (3,)},
    "regression": {"output_weights": (1, 16), "output_bias": (1,)},
    "squad": {"cls/squad/output_weights": (2, 16), "cls/squad/output_bias": (2,)},
}
SAVE = """
import sys, numpy as np, tensorflow as tf
for prefix in sys.argv[1:]:
    arrays = dict(np.load(prefix + ".npz"))
    names = [name.replace("|", "/") for name in arrays]
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=[*arrays.values()])
"""
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="needs TensorFlow: the extra 'parity'"
)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, tuple[Path, dict[str, np.ndarray]]]:
    """Folder and tensors of each kind in HEADS. The pretrained one has the optimizer's slots too."""
    from tests.convert.conftest import TOKENS

    made, root = {}, tmp_path_factory.mktemp("google")
    for kind, head in HEADS.items():
        tensors = _tensors(head)
        if kind == "pretrained":
            slots = {f"{name}/adam_{m}": value * 0 for name, value in tensors.items() for m in "mv"}
            saved = tensors | slots | {"global_step": np.asarray(7, np.int64)}
        else:
            saved = tensors
        folder = root / kind
        folder.mkdir()
        (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
        (folder / "bert_config.json").write_text(json.dumps(SIZES | OPTIONS))
        np.savez(folder / "bert_model.ckpt.npz", **{name.replace("/", "|"): value for name, value in saved.items()})
        made[kind] = (folder, tensors)
    prefixes = [str(folder / "bert_model.ckpt") for folder, _ in made.values()]
    subprocess.run([sys.executable, "-c", SAVE, *prefixes], check=True, capture_output=True, timeout=300)
    return made


@pytest.mark.parity
@needs_tensorflow
def test_the_pretrained_model_computes_what_its_tensors_say(published, ours, tools):
    folder, tensors = published["pretrained"]
    loaded = google_tf.read(folder)
    assert loaded.config.hidden_act == "gelu_tanh"
    assert loaded.report.missing == loaded.report.unexpected == []
    assert len(loaded.report.optimizer) == 2 * len(tensors) + 1
    assert loaded.tokenizer.original
    assert "lower-cased" in loaded.report.notes[0]
    batch = tools.rows([20], 33)
    found, expected = ours(loaded, batch), _forward(tensors, batch)
    for name in ("hidden", "pooled", "mlm", "nsp"):
        assert np.abs(found[name] - expected[name]).max() <= 2e-5, name


@pytest.mark.parity
@needs_tensorflow
def test_fine_tuned_heads_compute_what_their_tensors_say(published, ours, tools):
    batch = tools.rows([20], 33)
    folder, tensors = published["classifier"]
    loaded = google_tf.read(folder)
    labels = ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert loaded.task == "classification"
    assert loaded.description == {"labels": labels, "thresholds": [], "label_kind": "single"}
    expected = _forward(tensors, batch)["pooled"] @ tensors["output_weights"].T + tensors["output_bias"]
    assert np.abs(ours(loaded, batch)["logits"] - expected).max() <= 2e-5

    folder, tensors = published["squad"]
    loaded = google_tf.read(folder)
    assert loaded.task == "span_qa"
    head = tensors["cls/squad/output_weights"].T, tensors["cls/squad/output_bias"]
    expected = _forward(tensors, batch)["hidden"] @ head[0] + head[1]
    assert np.abs(ours(loaded, batch)["logits"] - expected).max() <= 2e-5
    assert google_tf.read(published["regression"][0]).description["label_kind"] == "regression"


@pytest.mark.parity
@needs_tensorflow
@pytest.mark.parametrize("kind", HEADS)
def test_from_tensorflow_to_ours_to_hugging_face_and_back_nothing_changes(published, tmp_path, kind, tools):
    folder, tensors = published[kind]
    steps = [str(folder), str(tmp_path / "ours"), str(tmp_path / "theirs"), str(tmp_path / "again")]
    for source, target, form in zip(steps, steps[1:], ("bert_jax", "huggingface", "bert_jax"), strict=False):
        conversion.convert(source, target, format=form)
    first, last = (conversion.open_source(steps[i]) for i in (1, 3))
    left_out = {"pooler/kernel", "pooler/bias"} if kind == "squad" else set()
    assert first.model.parameters.keys() == last.model.parameters.keys()
    assert conversion.open_source(str(folder / "bert_model.ckpt")).run["converted_from"] == "bert_model.ckpt"
    for name in first.model.parameters.keys() - left_out:
        np.testing.assert_array_equal(first.model.parameters[name], last.model.parameters[name], err_msg=name)
    assert (first.model.config, first.model.task) == (last.model.config, last.model.task)
    assert first.model.description == last.model.description
    assert first.model.tokenizer.content_hash == last.model.tokenizer.content_hash
    theirs = open_tensors(Path(steps[2]))
    kernel = theirs["bert.encoder.layer.1.intermediate.dense.weight"]()
    np.testing.assert_array_equal(kernel, tensors["bert/encoder/layer_1/intermediate/dense/kernel"].T)


def test_the_names_are_those_of_the_published_chinese_model(shared_data):
    folder = shared_data("bert_assets") / "bert_assets" / "chinese_L-12_H-768_A-12"
    rows = json.loads((folder / "bert_model.ckpt.index.contents.json").read_text())
    config = google_tf._config(folder / "bert_config.json")
    shapes, ours = parameter_shapes(config, num_labels=2), {}
    for name in google_names():
        if name.part not in ("classifier", "span"):
            shape = shapes[name.ours][1:] if name.stacked else shapes[name.ours]
            ours |= {their: shape[::-1] if name.transposed else shape for their in name.layers(12)}
    assert ours == {row["name"].removeprefix("bert/"): tuple(row["shape"]) for row in rows}
    assert (config.vocab_size, config.hidden_act, config.layer_norm_eps) == (21_128, "gelu_tanh", 1e-12)


@pytest.mark.parametrize(
    ("folder", "casing"), [("uncased", "lower-cased"), ("cased", "cased"), ("chinese_L-12_H-768_A-12", "lower-cased")]
)
def test_lower_casing_is_read_off_the_vocabulary(shared_data, folder, casing):
    tokenizer, found = google_tf._tokenizer(shared_data("bert_assets") / "bert_assets" / folder / "vocab.txt")
    assert found == casing
    words = [tokenizer.token(i) for i in tokenizer.encode_words(["A"])[0]]
    assert words == (["A"] if casing == "cased" else ["a"])


@pytest.mark.parity
@needs_tensorflow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "bert_config.json").unlink(), r"has no bert_config\.json; put it beside"),
        (lambda f: (f / "vocab.txt").unlink(), r"has no vocab\.txt; put it beside"),
        (lambda f: _config(f, hidden_act="relu"), "hidden_act is 'relu'; it can be gelu"),
        (lambda f: _config(f, hidden_act=None), "hidden_act is None"),
        (lambda f: _config(f, directionality="left"), "directionality is 'left'"),
        (lambda f: (f / "bert_config.json").write_text("{}"), "has no vocab_size, hidden_size"),
        (lambda f: _config(f, num_attention_heads=3), "hidden_size 16 is not a multiple of"),
        (
            lambda f: _config(f, vocab_size=34),
            r"embeddings/word_embeddings is \(33, 16\), but by the config \(34, 16\)",
        ),
        (lambda f: _config(f, num_hidden_layers=3), r"has 2 of 3 layers of encoder/layer_\{\}/attention/self/query/ke"),
        (lambda f: _config(f, num_hidden_layers=1), "no place here: encoder/layer_1/"),
        (lambda f: _cut(f / "vocab.txt", 1), "the vocabulary has 32 tokens, the word embeddings 33 rows"),
        (lambda f: _truncate(f / "bert_model.ckpt.data-00000-of-00001"), r"data-00000-of-00001 is too short"),
        (lambda f: _flip(f / "bert_model.ckpt.data-00000-of-00001"), "the checksum of .* is wrong"),
        (lambda f: (f / "bert_model.ckpt.data-00000-of-00001").unlink(), "there is no .*data-00000-of-00001"),
        (lambda f: _truncate(f / "bert_model.ckpt.index"), "is no index of a tensor bundle, or damaged"),
        (lambda f: (f / "other.ckpt.index").write_bytes(b""), "holds 2 checkpoints: name one of .*bert_model.ckpt"),
    ],
)
def test_what_is_wrong_is_one_line(published, tmp_path, change, message):
    folder = tmp_path / "google"
    folder.mkdir()
    for file in published["classifier"][0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        google_tf.read(folder)
    assert "\n" not in str(caught.value)


def _tensors(head: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    size, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "bert/embeddings/word_embeddings": (33, size),
        "bert/embeddings/position_embeddings": (24, size),
        "bert/embeddings/token_type_embeddings": (2, size),
        "bert/pooler/dense/kernel": (size, size),
        "bert/pooler/dense/bias": (size,),
    }
    norms = ["bert/embeddings/LayerNorm"]
    for layer in range(2):
        at = f"bert/encoder/layer_{layer}"
        for name in ("attention/self/query", "attention/self/key", "attention/self/value", "attention/output/dense"):
            shapes |= {f"{at}/{name}/kernel": (size, size), f"{at}/{name}/bias": (size,)}
        shapes |= {f"{at}/intermediate/dense/kernel": (size, inner), f"{at}/intermediate/dense/bias": (inner,)}
        shapes |= {f"{at}/output/dense/kernel": (inner, size), f"{at}/output/dense/bias": (size,)}
        norms += [f"{at}/attention/output/LayerNorm", f"{at}/output/LayerNorm"]
    shapes |= {f"{norm}/{name}": (size,) for norm in norms for name in ("gamma", "beta")} | head
    rng = np.random.default_rng(1)
    return {
        name: (rng.standard_normal(shape) * 0.3 + name.endswith("gamma")).astype(np.float32)
        for name, shape in shapes.items()
    }


def _forward(tensors, batch) -> dict[str, np.ndarray]:
    """modeling.py of google-research/bert in float64, for one row without padding."""
    t = {name.removeprefix("bert/"): value.astype(np.float64) for name, value in tensors.items()}
    ids, types = batch["input_ids"][0], batch["token_type_ids"][0]

    def norm(x, at):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * t[f"{at}/gamma"] + t[f"{at}/beta"]

    def dense(x, at):
        return x @ t[f"{at}/kernel"] + t[f"{at}/bias"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    word = t["embeddings/word_embeddings"]
    x = word[ids] + t["embeddings/token_type_embeddings"][types] + t["embeddings/position_embeddings"][: len(ids)]
    x = norm(x, "embeddings/LayerNorm")
    for at in ("encoder/layer_0", "encoder/layer_1"):
        q, k, v = (np.split(dense(x, f"{at}/attention/self/{n}"), 2, axis=-1) for n in ("query", "key", "value"))
        heads = []
        for i in range(2):
            scores = np.exp(q[i] @ k[i].T / np.sqrt(8))
            heads.append(scores / scores.sum(-1, keepdims=True) @ v[i])
        attended = dense(np.concatenate(heads, -1), f"{at}/attention/output/dense")
        x = norm(x + attended, f"{at}/attention/output/LayerNorm")
        x = norm(x + dense(gelu(dense(x, f"{at}/intermediate/dense")), f"{at}/output/dense"), f"{at}/output/LayerNorm")
    found = {"hidden": x[None], "pooled": np.tanh(dense(x[:1], "pooler/dense"))}
    if "cls/predictions/output_bias" in t:
        mlm = norm(gelu(dense(x, "cls/predictions/transform/dense")), "cls/predictions/transform/LayerNorm")
        found["mlm"] = (mlm @ word.T + t["cls/predictions/output_bias"])[None]
        found["nsp"] = (
            found["pooled"] @ t["cls/seq_relationship/output_weights"].T + t["cls/seq_relationship/output_bias"]
        )
    return found


def _config(folder, **change):
    path = folder / "bert_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def _cut(path, lines):
    path.write_text("\n".join(path.read_text().splitlines()[:-lines]) + "\n")


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
