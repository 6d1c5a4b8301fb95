"""Attributions are derivatives and add up; losses of tokens are those of filling masks."""

from dataclasses import replace

import numpy as np
import pytest
from flax import nnx

import bert_jax
from bert_jax.config import UserError
from bert_jax.data.batching.batches import collate
from bert_jax.data.batching.shapes import Shape
from bert_jax.data.labelled.tables import Row
from bert_jax.lab.inspect.reading import Insides, batch_of, insides, read_text
from bert_jax.lab.inspect.tokens import gradient_times_input, integrated_gradients, token_losses
from bert_jax.models.bert import TrunkInputs
from experiments import classify, multiple_choice, squad

from .conftest import fine_tuned


def slopes(model, logit, tokens, *arguments, step=2e-3):
    """Returns the derivatives of a logit with respect to a factor on the word embedding of each token."""

    def scaled(whole, number, factor, *arguments):
        table = whole.trunk.embeddings.word.embedding[...]
        whole.trunk.embeddings.word.embedding = nnx.Param(table.at[number].multiply(factor))
        return logit(whole, table, *arguments)

    program = insides(model).opened.at_work.program(scaled)
    numbers = [np.int32(model.tokenizer.id(token)) for token in tokens]
    up, down = ([float(program(i, np.float32(1 + way * step), *arguments)) for i in numbers] for way in (1, -1))
    return (np.asarray(up) - np.asarray(down)) / (2 * step)


def class_logit(model, text, label):
    task = insides(model).opened.task
    [example] = task.prediction_examples([Row("x", {model.config.data.text: text})])
    batch = collate(task.encode([example]), [[0]], Shape(1, 1, 24))
    return lambda whole, _, batch: task.outputs(whole, batch, None)["logits"][0, 0, task.labels.index(label)], batch


def test_a_model_that_is_no_bert_inside_is_refused_in_one_line(classifier):
    others = replace(insides(classifier).opened, parameters={"network/kernel": np.zeros(2, np.float32)})
    with pytest.raises(UserError, match="the model of task=classification has no BERT inside to look at"):
        Insides(others, 8)


def test_gradient_times_input_is_a_derivative(classifier):
    text, label = "a good c d", "bad"
    found = gradient_times_input(classifier, text, target=label)
    assert found.reading.tokens == ("[CLS]", "a", "good", "c", "d", "[SEP]") and found.place is None
    logit, batch = class_logit(classifier, text, label)
    expected = slopes(classifier, logit, found.reading.tokens, batch)
    np.testing.assert_allclose(found.scores, expected, rtol=0.03, atol=0.02)
    assert found.target == label and np.ptp(found.scores) > 0.1


def test_a_text_that_is_cut_for_its_class_says_so(classifier):
    assert gradient_times_input(classifier, "a " * 30).reading.note == "Of 32 tokens the model read 24."
    assert gradient_times_input(classifier, "a " * 22).reading.note == ""


def test_the_likeliest_class_is_explained_by_default(classifier):
    text = "b good"
    found = gradient_times_input(classifier, text)
    assert found.target == classifier.predict(text)["label"]
    probabilities = classifier.predict(text)["probabilities"]
    other = gradient_times_input(classifier, text, target="fair").logit
    assert found.logit - other == pytest.approx(
        np.log(probabilities[found.target]) - np.log(probabilities["fair"]), abs=1e-4
    )


def test_the_same_word_at_two_places_has_two_scores(classifier):
    scores = gradient_times_input(classifier, "a good a").scores
    assert abs(scores[1] - scores[3]) > 1e-3


def test_gradient_of_a_masked_word_is_a_derivative(masked):
    text = "a [MASK] good c"
    found = gradient_times_input(masked, text, target="b")
    assert (found.target, found.place, found.reading.tokens[2]) == ("b", 2, "[MASK]")
    inputs = batch_of([read_text(masked, text).part], 32)

    def logit(whole, table, batch):
        hidden = whole.trunk.encode(TrunkInputs.from_batch(batch)).hidden[:, 2:3]
        return whole.heads["mlm"](hidden, table)[0, 0, masked.tokenizer.id("b")]

    expected = slopes(masked, logit, found.reading.tokens, inputs)
    np.testing.assert_allclose(found.scores, expected, rtol=0.03, atol=0.02)
    assert gradient_times_input(masked, text).target == masked.fill_mask(text)[0][0][0]


def test_a_tag_is_explained_where_it_is_likeliest(tagger):
    text = "a good b bad"
    found = gradient_times_input(tagger, text, target="B-X")
    logits = [gradient_times_input(tagger, text, target=tag).logit for tag in ("O", "I-X")]
    assert found.reading.is_word[found.place]
    best = gradient_times_input(tagger, text)
    assert best.target != "O" and best.logit == max(found.logit, logits[1])


def asked_of(model, name, place, **values):
    """The logit at a place, as a function of the whole model, and the batch of one example."""
    task = insides(model).opened.task
    [example] = task.prediction_examples([Row("x", values)])
    [item] = task.encode([example])
    batch = collate([item], [[0]], Shape(1, len(item.parts), 24))
    return lambda whole, _, batch: task.outputs(whole, batch, None)[name][0, 0, place], batch


def test_the_start_of_an_answer_is_explained(tmp_path):
    config = squad.get_config()
    config.data.update(max_query_length=8, window_stride=4)
    model = fine_tuned(tmp_path / "5", config, {"may_have_no_answer": False, "threshold": 0.0})
    question, context = "a good b", "c bad d e"
    found = gradient_times_input(model, question, context, target="bad")
    tokens = ("[CLS]", "a", "good", "b", "[SEP]", "c", "bad", "d", "e", "[SEP]")
    assert (found.reading.tokens, found.place, found.target) == (tokens, 6, "answer from bad")
    logit, batch = asked_of(model, "start_logits", 6, question=question, context=context)
    expected = slopes(model, logit, tokens, batch)
    once = [tokens.index(token) == i and tokens.count(token) == 1 for i, token in enumerate(tokens)]
    np.testing.assert_allclose(found.scores[once], expected[once], rtol=0.03, atol=0.02)
    starts = {word: gradient_times_input(model, question, context, target=word).logit for word in context.split()}
    assert gradient_times_input(model, question, context).target == f"answer from {max(starts, key=starts.get)}"
    for pair, target, problem in ((None, "", "give the context as --text_pair"), (context, "good", "no token 'good'")):
        with pytest.raises(UserError, match=problem):
            gradient_times_input(model, question, pair, target=target)


def test_a_choice_is_explained_by_the_words_of_all_choices(tmp_path):
    config = multiple_choice.get_config()
    config.data.update(text="context", text_pair="", choices="choices")
    model = fine_tuned(tmp_path / "5", config, {})
    found = gradient_times_input(model, "a good", "b bad | c", target="c")
    assert " ".join(found.reading.tokens) == "[CLS] a good [SEP] b bad [SEP] [CLS] a good [SEP] c [SEP]"
    assert (found.scores[:7] == 0).all() and found.scores[8:].any()  # a choice's logit is of its own words
    logit, batch = asked_of(model, "logits", 1, context="a good", choices=["b bad", "c"])
    assert found.scores[11] == pytest.approx(slopes(model, logit, ["c"], batch)[0], rel=0.03, abs=0.02)
    other = gradient_times_input(model, "a good", "b bad | c", target="b bad").logit
    likeliest = gradient_times_input(model, "a good", "b bad | c").target
    assert likeliest == ("c" if found.logit > other else "b bad")
    for pair, target, problem in (
        ("b", "", r"choices as --text_pair='first \| second'"),
        ("b | c", "d", "not among b, c"),
    ):
        with pytest.raises(UserError, match=problem):
            gradient_times_input(model, "a good", pair, target=target)


@pytest.mark.parametrize(("name", "text"), [("classifier", "a good c"), ("masked", "a [MASK] c"), ("tagger", "a bad")])
def test_integrated_gradients_add_up_to_the_difference(request, name, text):
    model = request.getfixturevalue(name)
    found = integrated_gradients(model, text, steps=400)
    assert found.scores.sum() == pytest.approx(found.logit - found.baseline, abs=0.02 * max(1, abs(found.logit)))
    assert found.logit == pytest.approx(gradient_times_input(model, text).logit, abs=1e-5)
    assert not found.scores[0] and not found.scores[-1]  # [CLS] and [SEP] are the same in both
    assert found.scores[np.asarray(found.reading.is_word)].all()


def test_what_cannot_be_explained(classifier, masked, encoder, tmp_path):
    number = fine_tuned(
        tmp_path / "5",
        classify.get_config("regression"),
        {"labels": [], "thresholds": [], "label_kind": "regression"},
    )
    assert gradient_times_input(number, "a good").target == "the number"
    for model, text, options, problem in (
        (encoder, "a", {}, "has no MLM head, nor was it fine-tuned"),
        (masked, "a b", {}, r"the text has no \[MASK\]"),
        (masked, "a [MASK]", {"target": "aa"}, "'aa' is not a token of the model's vocabulary"),
        (classifier, "a", {"target": "<b>"}, "'<b>' is not among bad, fair, good"),
        (classifier, "a", {"pair": "b"}, "was trained on single texts: leave out --text_pair"),
        (number, "a", {"target": "good"}, "this model predicts a number"),
    ):
        for method in (gradient_times_input, integrated_gradients):
            with pytest.raises(UserError, match=problem):
                method(model, text, **options)


def test_token_losses_are_those_of_filling_masks(masked):
    text = "a good b bad c"
    found = token_losses(masked, text)
    words = text.split()
    for place, word in enumerate(words):
        filled = " ".join("[MASK]" if i == place else other for i, other in enumerate(words))
        [candidates] = masked.fill_mask(filled, top_k=masked.tokenizer.vocab_size)
        assert -found.losses[place + 1] == pytest.approx(np.log(dict(candidates)[word]), rel=1e-4)
        assert [token for token, _ in found.guesses[place + 1]] == [token for token, _ in candidates[:3]]
    assert np.isnan(found.losses[[0, -1]]).all()
    assert found.pseudo_log_likelihood == pytest.approx(-np.nansum(found.losses))


def test_losses_do_not_depend_on_the_size_of_batches(masked):
    few = bert_jax.load(masked.path, batch_size=2)
    for pair in (None, "c bad"):
        one, other = (token_losses(model, "a good b", pair).losses for model in (masked, few))
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert np.isnan(token_losses(masked, "[MASK]").losses).all()


def test_losses_need_the_head(encoder):
    with pytest.raises(UserError, match="has no MLM head, which fills masks"):
        token_losses(encoder, "a")
