"""Pseudo-log-likelihoods against a loop over tokens, and the accuracy on minimal pairs as a metric of a run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.config import UserError
from bert_jax.data.labelled.minimal_pairs import MinimalPair
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.models.bert import Bert, Model, TrunkInputs
from bert_jax.models.config import BertConfig
from bert_jax.models.heads import MaskedLMHead
from bert_jax.tasks.likelihood import (
    METHODS,
    EncodedPairs,
    hidden_token_batches,
    row_lengths,
    text_log_likelihoods,
    token_log_probabilities,
)

TOKENIZER = make_wordpiece(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##friend", "##ly", "dog", "##s", "run"],
    "test",
    True,
    None,
    True,
)
CONFIG = BertConfig(
    TOKENIZER.vocab_size, 32, 2, 2, 64, 32, max_position_embeddings=16, initializer_range=0.5, dtype="float32"
)
TEXTS = ["unfriendly dogs run", "dog", "run dogs", "dogs run run dog unfriendly run"]


@pytest.fixture(scope="module", params=[False, True], ids=["both ways", "left to right"])
def model(request) -> Model:
    config = dataclasses.replace(CONFIG, causal=request.param)
    rngs = nnx.Rngs(0)
    return Model(Bert(config, rngs=rngs), {"mlm": MaskedLMHead(config, rngs=rngs)})


def ids_of(text):
    return TOKENIZER.row(TOKENIZER.encode_words([text])[0]).ids


log_probabilities = jax.jit(token_log_probabilities)


def scores_of(model, texts, rows, method="within_word"):
    batches = hidden_token_batches(texts, TOKENIZER, row_lengths(16), lambda length: rows, method)
    found = [(batch.pop("text_ids"), log_probabilities(model, batch)) for batch in batches]
    assert {len(numbers) for numbers, _ in found} == {rows}
    return text_log_likelihoods(((n, np.asarray(x)) for n, x in found), len(texts))


@jax.jit
def padded_logits(model, row, size):
    real = (jnp.arange(16) < size).astype(jnp.int32)[None]
    hidden = model.trunk.encode(TrunkInputs(row[None], jnp.zeros_like(real), jnp.arange(16)[None], real)).hidden
    return model.heads["mlm"](hidden, model.trunk.embeddings.word.embedding[...])[0]


def logits_of(model, ids):
    """[L, V]"""
    return padded_logits(model, np.pad(ids, (0, 16 - len(ids))), len(ids))


def by_hand(model, ids, method):
    """Hides one token after the other, and with it the later pieces of its word, unless by the original method."""
    total = 0.0
    for place in range(1, len(ids) - 1):
        shown = ids.copy()
        shown[place] = TOKENIZER.mask_id
        after = place + 1
        while method == "within_word" and TOKENIZER.is_continuation[ids[after]]:
            shown[after] = TOKENIZER.mask_id
            after += 1
        total += float(jax.nn.log_softmax(logits_of(model, shown)[place])[ids[place]])
    return total


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [5, 64])
def test_equals_a_loop_over_tokens_whatever_the_batch(model, rows, method):
    texts = [ids_of(text) for text in TEXTS]
    expected = [by_hand(model, ids, method) for ids in texts]
    np.testing.assert_allclose(scores_of(model, texts, rows, method), expected, rtol=1e-5)


def test_later_pieces_of_a_word_are_hidden_and_earlier_ones_are_not():
    [batch] = hidden_token_batches([ids_of("unfriendly run")], TOKENIZER, [8], lambda length: 4)
    shown = [" ".join(map(TOKENIZER.token, row)) for row in batch["input_ids"]]
    assert shown == [
        "[CLS] [MASK] [MASK] [MASK] run [SEP] [PAD] [PAD]",
        "[CLS] un [MASK] [MASK] run [SEP] [PAD] [PAD]",
        "[CLS] un ##friend [MASK] run [SEP] [PAD] [PAD]",
        "[CLS] un ##friend ##ly [MASK] [SEP] [PAD] [PAD]",
    ]
    assert [TOKENIZER.token(i) for i in batch["masked_labels"][:, 0]] == ["un", "##friend", "##ly", "run"]


def test_left_to_right_model_predicts_each_token_from_those_before_it(model):
    if not model.trunk.config.causal:
        pytest.skip("the other model sees both sides")
    ids, total = ids_of("unfriendly dogs run"), 0.0
    for place in range(1, len(ids) - 1):
        beginning = np.append(ids[:place], TOKENIZER.mask_id).astype(np.int32)
        total += float(jax.nn.log_softmax(logits_of(model, beginning)[place])[ids[place]])
    assert scores_of(model, [ids], 16)[0] == pytest.approx(total, rel=1e-5)


def test_equal_scores_are_wrong_and_sentences_of_equal_tokens_are_one_text():
    pairs = [
        MinimalPair("x:1", "dogs run", "dog run", "p", "f", "s"),
        MinimalPair("x:2", "a dog", "the dog", "q", "f", "s"),
    ]
    encoded = EncodedPairs(pairs, TOKENIZER, 16)
    assert len(encoded.texts) == 3  # "a" and "the" are unknown
    assert encoded.accuracies(np.asarray([-1.0, -2.0, -3.0])).paradigms == {"p": 1.0, "q": 0.0}
    assert encoded.accuracies(np.asarray([-2.0, -2.0, -3.0])).paradigms == {"p": 0.0, "q": 0.0}


def test_refuses_sentences_without_tokens_or_with_too_many():
    pair = MinimalPair("blimp/x.jsonl:7", "dog", "run " * 15, "p", "f", "s")
    with pytest.raises(
        UserError, match=r"blimp/x\.jsonl:7: 'run run .*' has 17 tokens, over 16, the model's positions"
    ):
        EncodedPairs([pair], TOKENIZER, 16)
    with pytest.raises(UserError, match=r"x\.jsonl:7: '\\u200b' has no tokens|x\.jsonl:7: '.' has no tokens"):
        EncodedPairs([pair._replace(bad="\u200b")], TOKENIZER, 16)


def test_row_lengths_end_with_the_longest():
    assert row_lengths(40) == [8, 12, 16, 24, 32, 40]
    assert row_lengths(8) == [8] and row_lengths(5) == [5]
