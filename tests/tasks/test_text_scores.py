"""Scores of written texts: numbers by hand, what newlines do to ROUGE-Lsum, what is refused."""

import importlib.util
import math

import pytest
from rouge_score.rouge_scorer import RougeScorer

from bert_jax.config import UserError
from bert_jax.tasks import text_scores
from bert_jax.tasks.text_scores import (
    KINDS,
    Scorer,
    rouge,
    rouge_of_each,
    rouge_words,
    sentences_on_lines,
    warn_of_letters,
)


def test_bleu_by_hand():
    """Seven of eight words are right: 7 unigrams, 6 bigrams, 5 trigrams and 4 four-grams."""
    found = Scorer("translation")(["a b c d e f g x"], ["a b c d e f g h"])
    by_hand = 100 * math.exp(sum(map(math.log, (7 / 8, 6 / 7, 5 / 6, 4 / 5))) / 4)
    assert found.scores["bleu"] == pytest.approx(by_hand)
    assert tuple(found.scores) == KINDS["translation"]
    for part in ("case:mixed", "tok:13a", "nc:6", "version:"):
        assert part in found.signature


def test_a_corpus_is_not_the_mean_of_its_sentences():
    scorer = Scorer("translation")
    texts, references = ["the cat sat on the mat", "no"], ["the cat sat on the mat", "yes"]
    assert scorer(texts, references).scores["bleu"] > 80  # BLEU of "no" alone is 0
    assert scorer.of_each(texts, references) == [pytest.approx(100), pytest.approx(0, abs=10)]


def test_case_counts_unless_the_vocabulary_has_none():
    texts, references = ["EIN HUND LÄUFT IM PARK"], ["Ein Hund läuft im Park"]
    assert Scorer("translation")(texts, references).scores["bleu"] < 1
    lower = Scorer("translation", lowercase=True)(texts, references)
    assert lower.scores["bleu"] == pytest.approx(100) == lower.scores["chrf"]
    assert lower.signature.count("case:lc") == 2


def test_chinese_needs_a_tokenizer_of_its_own():
    texts, references = ["我喜欢狗和猫。"], ["我喜欢狗和鸟。"]
    assert Scorer("translation")(texts, references).scores["bleu"] == pytest.approx(0, abs=1e-6)
    assert Scorer("translation", tokenizer="zh")(texts, references).scores["bleu"] > 30


def test_rouge_by_hand():
    """Of "the cat sat" and "the cat ran off": 2 words in common of 3 and 4, 1 pair of words of 2 and 3."""
    found = Scorer("summary")(["the cat sat"], ["the cat ran off"])
    assert found.scores["rouge1"] == pytest.approx(100 * 2 * 2 / (3 + 4))
    assert found.scores["rouge2"] == pytest.approx(100 * 2 * 1 / (2 + 3))
    assert found.scores["rougeL"] == found.scores["rougeLsum"] == pytest.approx(100 * 2 * 2 / (3 + 4))
    assert Scorer("summary")(["cats running"], ["cat runs"]).scores["rouge1"] == pytest.approx(100)  # stems
    assert rouge_words("Dogs, RUNNING about!") == ["dog", "run", "about"]
    # of 4 and 6 words 3 are common, of 3 and 5 pairs 1 ("the cat"), and in order 3 (the, cat, sat)
    found = rouge(["the cat sat. quickly"], ["the cat never once has sat"], ("rouge1", "rouge2", "rougeL"))
    assert found == pytest.approx({"rouge1": 60, "rouge2": 25, "rougeL": 60})
    assert rouge_of_each(["a b", "c", ""], ["a b", "d", "a"]).tolist() == [[100.0] * 4, [0.0] * 4, [0.0] * 4]


def test_newlines_make_rouge_lsum_what_papers_report():
    """Two sentences in the other order: ROUGE-L of the whole text sees one of them, ROUGE-Lsum by sentences both.
    Without newlines rouge-score takes the text for one sentence, and Lsum is L."""
    text, reference = "The sun shone in Rome. Rain fell on London.", "Rain fell on London. The sun shone in Rome."
    found = Scorer("summary")([text], [reference]).scores
    assert found["rougeLsum"] == pytest.approx(100) and found["rougeL"] == pytest.approx(100 * 5 / 9)
    plain = RougeScorer(["rougeLsum"], use_stemmer=True).score(reference, text)["rougeLsum"].fmeasure
    assert plain == pytest.approx(5 / 9)
    # Lines that a reference has are its sentences already.
    assert (
        sentences_on_lines("no full stop here\nHe said e.g. this. Yes.\n")
        == "no full stop here\nHe said e.g. this. Yes."
    )
    assert sentences_on_lines(" Mr. Smith left. He ran. ") == "Mr. Smith left.\nHe ran."


def test_none_counts_equal_texts():
    scorer = Scorer("none")
    assert scorer(["a", "b"], ["a", "c"]) == ({}, "")
    assert scorer.of_each(["a", "b"], ["a", "c"]) == [100.0, 0.0]


def test_what_is_refused(monkeypatch, caplog):
    with pytest.raises(UserError, match="1 texts and 2 references: give each text one reference"):
        Scorer("translation")(["a"], ["a", "b"])
    with pytest.raises(UserError, match="0 texts"):
        Scorer("summary")([], [])
    warn_of_letters(["Привет, мир", "abc"])
    assert "75 % of the references' letters are not a–z" in caplog.text
    with pytest.raises(UserError, match="a reference has no word of the letters a-z"):
        text_scores.check_has_words("股票大涨", "a reference")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"scores of a summary need the extra generate: pip install -e"):
        Scorer("summary")
    text_scores._rouge_tokenizer.cache_clear()
    with pytest.raises(UserError, match="scores of a summary need the extra generate"):
        rouge_words("a")
