"""ROUGE by hand, where its variants differ, and what it cannot score."""

import sys

import pytest

from bert_jax.config import UserError
from bert_jax.tasks import text_scores
from bert_jax.tasks.text_scores import ROUGE, rouge, rouge_of_each, rouge_words

pytest.importorskip("rouge_score", reason="pip install -e '.[generate]'")


def test_scores_by_hand():
    # of 4 and 6 words 3 are common, of 3 and 5 pairs 1 ("the cat"), and in order 3 (the, cat, sat)
    found = rouge(["the cat sat. quickly"], ["the cat never once has sat"])
    expected = {"rouge1": 2 * 3 / (4 + 6), "rouge2": 2 * 1 / (3 + 5), "rougeL": 2 * 3 / (4 + 6)}
    assert {name: found[name] for name in expected} == pytest.approx({k: 100 * v for k, v in expected.items()})
    assert rouge(["", "a b"], ["a", "a b"]) == pytest.approx(dict.fromkeys(ROUGE, 50.0))
    assert rouge_words("Dogs, RUNNING about!") == ["dog", "run", "about"]


def test_sentences_in_another_order_cost_rouge_l_but_not_rouge_lsum():
    """The longest common subsequence of the whole texts is one of the two sentences (3 of 6 words); sentence by
    sentence both are found. Whether sentences are lines or end in full stops makes no difference."""
    one, other = "The cat sat. The dog ran.", "The dog ran. The cat sat."
    for prediction in (other, other.replace(". ", ".\n")):
        found = rouge([prediction], [one])
        assert (found["rouge1"], found["rougeL"], found["rougeLsum"]) == pytest.approx((100, 50, 100))
    # Without ends of sentences there is one sentence, and nothing to find but the subsequence of the whole.
    glued = rouge([other.replace(".", "")], [one.replace(".", "")])
    assert glued["rougeLsum"] == pytest.approx(50)


def test_pairs_are_scored_one_by_one():
    assert rouge_of_each(["a b", "c"], ["a b", "d"]).tolist() == [[100.0] * 4, [0.0] * 4]


def test_what_cannot_be_scored(monkeypatch):
    with pytest.raises(UserError, match="a reference has no word of the letters a-z"):
        rouge(["a"], ["股票大涨"])
    for cached in (text_scores._scorer, text_scores._tokenizer):
        cached.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    for name in [name for name in sys.modules if name.startswith("rouge_score.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"ROUGE needs the extra generate: pip install -e '\.\[generate\]'"):
        rouge(["a"], ["a"])
