"""Attention is the model's own, rollout is that of the paper, and a head counts for what it does."""

import jax.numpy as jnp
import numpy as np
import pytest

import bert_jax
from bert_jax.config import UserError
from bert_jax.lab.inspect.heads import attention, head_importance, rollout
from bert_jax.lab.inspect.tokens import token_losses
from bert_jax.models.attention import attention_mask
from experiments import classify
from tests.inference.conftest import write_rows
from tests.inference.test_open import pretrained

from .conftest import CLASSES, fine_tuned

KERNEL = "encoder/layers/attention/{}/kernel"


def test_rows_sum_to_one_and_are_those_of_encode(masked):
    found = attention(masked, "a good b", "c bad")
    assert found.reading.tokens == ("[CLS]", "a", "good", "b", "[SEP]", "c", "bad", "[SEP]")
    assert found.weights.shape == (2, 2, 8, 8)
    np.testing.assert_allclose(found.weights.sum(axis=-1), 1, rtol=1e-5)
    own = masked.encode(["a good b"], ["c bad"], attentions=True).attentions
    np.testing.assert_allclose(found.weights, np.stack(own)[:, 0], atol=1e-6)


def test_the_weights_are_what_the_model_multiplies_its_values_by(masked):
    """The output of a layer's attention is the weighted sum of the values, by the weights shown."""
    found = attention(masked, "a good b")
    opened = masked.tool(_Layers).opened
    hidden = masked.encode("a good b", hidden_states=True).hidden_states

    def outputs(model, x0, x1, weights):
        results = []
        for layer, x, own in zip(model.trunk.encoder.unstacked(), (x0, x1), weights, strict=True):
            ids = jnp.ones(x.shape[:2], jnp.int32)
            expected = layer.attention(x, x, attention_mask(ids, False))[0]
            value = layer.attention.project(x, x)[2]
            context = jnp.einsum("hij,bjhk->bihk", own, value, precision="highest").reshape(x.shape)
            results.append((expected, layer.attention.output(context, "float32")))
        return results

    for expected, again in opened.at_work.program(outputs)(*hidden[:2], found.weights):
        np.testing.assert_allclose(again, expected, atol=1e-4)


class _Layers:
    def __init__(self, opened, batch_size):
        self.opened = opened


def test_rollout_by_hand():
    first = [[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]  # mean: rows (½, ½) and (½, ½)
    second = [[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]]
    flow = rollout(np.asarray([first, second]))
    np.testing.assert_allclose(flow[0], [[0.75, 0.25], [0.25, 0.75]])
    # second layer with the residual: [[1, 0], [½, ½]], times the flow of the first
    np.testing.assert_allclose(flow[1], [[0.75, 0.25], [0.5, 0.5]])


def test_a_text_is_cut_to_what_the_model_takes_and_says_so(masked):
    found = attention(masked, "a " * 50)
    assert len(found.reading.tokens) == 32 and found.reading.tokens[-1] == "[SEP]"
    assert found.reading.note == "Of 52 tokens the model read 32."
    assert len(attention(masked, "a b c", max_length=4).reading.tokens) == 4
    with pytest.raises(UserError, match="max_length is 33; for this model it can be 3 to 32"):
        attention(masked, "a", max_length=33)
    for text, problem in ((" ", "is empty"), (3, "the text is int, not a text"), ("\ud800", "surrogate")):
        with pytest.raises(UserError, match=problem):
            attention(masked, text)


def test_a_head_without_values_is_needed_for_nothing(tmp_path):
    """Its output is zero already; the loss without another head is that of a model whose output kernel lacks it."""
    texts = ["a good b", "c d bad"]
    at, value = KERNEL.format("output"), KERNEL.format("value")
    parameters = _parameters(tmp_path / "whole")
    silent = parameters[value].copy()
    silent[0, :, 8:] = 0  # the second head of the first layer
    model = bert_jax.load(pretrained(tmp_path / "silent", change={value: silent}))
    found = head_importance(model, texts=texts)
    assert found.loss.shape == (2, 2) and found.metric is None
    assert found.loss[0, 1] == 0
    assert np.all(np.abs(np.delete(found.loss.ravel(), 1)) > 1e-4)
    without = parameters[at].copy()
    without[1, :8] = 0  # the first head of the second layer
    other = bert_jax.load(pretrained(tmp_path / "without", change={value: silent, at: without}))
    losses = np.concatenate([token_losses(other, text).losses for text in texts])
    assert found.whole_loss + found.loss[1, 0] == pytest.approx(np.nanmean(losses), rel=1e-5)


def test_heads_of_a_classifier_on_labelled_examples(classifier, tmp_path):
    rows = [{"text": f"{a} good {b}", "label": label} for a, b, label in zip("abcde", "fghij", ["bad", "good"] * 3)]  # noqa: B905
    file = write_rows(tmp_path / "dev.jsonl", rows)  # none of them is fair: the classes are those of the model
    found = head_importance(classifier, examples=file)

    def metrics(model):
        predictions = model.predict([row["text"] for row in rows])
        right = [p["label"] == row["label"] for p, row in zip(predictions, rows, strict=True)]
        loss = [-np.log(p["probabilities"][row["label"]]) for p, row in zip(predictions, rows, strict=True)]
        return np.mean(loss), np.mean(right)

    whole = metrics(classifier)
    assert found.whole_loss == pytest.approx(whole[0], rel=1e-4)
    assert (found.metric_name, found.whole_metric) == ("accuracy", pytest.approx(whole[1]))

    def without(parameters):
        kernel = parameters[KERNEL.format("output")].copy()
        kernel[0, 8:] = 0
        return parameters | {KERNEL.format("output"): kernel}

    ablated = metrics(fine_tuned(tmp_path / "5", classify.get_config(), CLASSES, without))
    assert found.loss[0, 1] == pytest.approx(ablated[0] - whole[0], abs=1e-4)
    assert found.metric[0, 1] == pytest.approx(ablated[1] - whole[1])
    assert head_importance(classifier, examples=file, limit=2).examples == "2 examples of dev.jsonl"


def test_heads_need_something_to_be_needed_for(classifier, encoder, masked):
    with pytest.raises(UserError, match="this run had no validation data; name a file"):
        head_importance(classifier)
    with pytest.raises(UserError, match=r"--examples: no/such\.jsonl"):
        head_importance(classifier, examples="no/such.jsonl")
    with pytest.raises(UserError, match="has no MLM head"):
        head_importance(encoder, texts=["a"])
    with pytest.raises(UserError, match="no text to measure"):
        head_importance(masked)


def _parameters(folder):
    from bert_jax.inference.open import open_model

    return {name: np.asarray(x) for name, x in open_model(pretrained(folder)).parameters.items()}
