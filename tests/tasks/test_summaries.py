"""Selection of sentences by hand, and the oracle against a loop that asks rouge-score itself."""

import numpy as np
import pytest

from bert_jax.data.labelled.examples import DocumentExample
from bert_jax.tasks.summaries import Budget, baselines, oracle, select

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="pip install -e '.[generate]'")

SENTENCES = ["a b c d", "…", "x a b c", "e f", "c d e f g"]


def test_a_budget_counts_sentences_or_a_share_or_words():
    order = [4, 1, 0, 3, 2]
    assert select(SENTENCES, order, Budget(2)) == [0, 4], "a sentence without words is no candidate"
    assert select(SENTENCES, order, Budget(9)) == [0, 2, 3, 4]
    assert select(SENTENCES, order, Budget(3, share=0.5)) == [0, 3, 4], "of 5 sentences 2.5, rounded up"
    assert select(["a"] * 10, range(10), Budget(3, share=0.3)) == [0, 1, 2], "0.3 · 10 is over 3 in floating point"
    assert select(SENTENCES, order, Budget(1, words=7)) == [3, 4], "the next ones that fit"
    assert select(SENTENCES, order, Budget(1, words=1)) == [4], "one sentence is always allowed"


def test_trigrams_are_not_repeated():
    tokens = [sentence.split() for sentence in SENTENCES]
    assert select(SENTENCES, [0, 2, 3, 4], Budget(3), tokens) == [0, 3, 4], "the third one repeats a b c"
    assert select(SENTENCES, [2, 0, 4, 3], Budget(3), tokens) == [2, 3, 4]


def test_the_oracle_is_greedy_in_rouge():
    """One word per sentence of the summary: no pair of words reaches over the end of one, where rouge-score counts
    pairs and the oracle does not."""
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2"], use_stemmer=True)
    random = np.random.default_rng(0)
    for _ in range(20):
        document = [" ".join(random.choice(list("abcdefgh"), random.integers(1, 4))) for _ in range(6)]
        summary = random.choice(list("abcdefgh"), 4).tolist()

        def score(numbers, document=document, summary=summary):
            text = "\n".join(document[i] for i in numbers)
            return scorer.score("\n".join(summary), text)["rouge1"].fmeasure

        chosen, best = [], 0.0
        while len(chosen) < 3:
            left = [i for i in range(6) if i not in chosen]
            top = max(left, key=lambda i: (round(score([*chosen, i]), 9), -i))
            if score([*chosen, top]) <= best + 1e-9:
                break
            best = score([*chosen, top])
            chosen.append(top)
        assert oracle(document, summary, Budget(3)) == sorted(chosen)
    assert oracle(["b a", "a b"], ["a b"], Budget(3)) == [1], "pairs of words decide"
    assert oracle(["x", "y"], ["a"], Budget(3)) == [], "nothing helps"
    assert oracle(["a b c", "a", "b"], ["a b"], Budget(9, words=2)) == [0], "one sentence is always allowed"


def test_baselines_have_the_budget_of_the_model():
    examples = [DocumentExample("x:1", ("a b", "c", "d e", "f g"), ("d e",))] * 30
    found = baselines(examples, Budget(2), seed=1)
    assert found["lead"] == [[0, 1]] * 30 and found["oracle"] == [[2]] * 30
    assert {len(numbers) for numbers in found["random"]} == {2} and len({*map(tuple, found["random"])}) > 3
    assert found == baselines(examples, Budget(2), seed=1) and found != baselines(examples, Budget(2), seed=2)
