"""The official metrics of SQuAD, equal to those of evaluate-v1.1.py and evaluate-v2.0.py to the last digit.

Metrics are percentages over all questions. Version 2.0 rules hold when a question has no answer or when no-answer
scores are given, 1.1 rules otherwise. They differ in three points:
- answers of punctuation and articles only: 1.1 gives two of them exact match 1 but F1 0, 2.0 drops them
  from the gold answers and lets an empty prediction match an unanswerable question with F1 1;
- a question without prediction: 0 in 1.1, an error in 2.0;
- 2.0 reports answerable (HasAns) and unanswerable (NoAns) questions separately.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bert_jax.config import UserError
from bert_jax.data.labelled.examples import QuestionExample

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)  # of ASCII only: “ ” – stay


def squad_scores(
    examples: Sequence[QuestionExample],
    predictions: Mapping[str, str],
    na_scores: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Returns exact_match, f1 and total, by 2.0 rules also HasAns_… and NoAns_…, with `na_scores` also those of
    `best_threshold`.

    `predictions` by question id, "" for no answer, are scored as they stand: no threshold is applied to them (nor does
    evaluate-v2.0, whose default of 1 no probability exceeds). Predictions for other ids are ignored. Raises UserError
    for no questions, a prediction that is not text and, by 2.0 rules, a missing prediction or score.
    """
    is_v2 = na_scores is not None or not all(example.answers for example in examples)
    table = question_scores(examples, predictions, is_v2=is_v2)
    groups = {"": np.full(len(examples), True)}
    if is_v2:
        groups |= {"HasAns_": table.has_answer, "NoAns_": ~table.has_answer}
    scores: dict[str, float] = {}
    for name, members in groups.items():
        if members.any():
            scores[f"{name}exact" if name else "exact_match"] = 100.0 * float(table.exact[members].mean())
            scores[f"{name}f1"] = 100.0 * float(table.f1[members].mean())
            scores[f"{name}total"] = float(members.sum())
    return scores if na_scores is None else scores | best_threshold(examples, predictions, na_scores)


def best_threshold(
    examples: Sequence[QuestionExample], predictions: Mapping[str, str], na_scores: Mapping[str, float]
) -> dict[str, float]:
    """Returns best_exact, best_exact_thresh, best_f1, best_f1_thresh of answering iff score ≤ threshold.

    `na_scores` by question id, higher for "no answer": probabilities or BERT's score_null − best_non_null. Give for
    every question the best text there is, even where it will be rejected. The search of evaluate-v2.0, which adds the
    questions in the order of their scores, but a threshold here lies between different scores and every value is one
    that the metric gives. (The script also cuts between equal scores, and takes "the" on an unanswerable question for
    wrong although its metric takes it for no answer.) Of equal values the lowest threshold; where never answering
    is best, 0 or, should a score not be above 0, the lowest score − 1.
    """
    table = question_scores(examples, predictions, is_v2=True)
    missing = [example.id for example in examples if example.id not in na_scores]
    if missing:
        raise UserError(f"no no-answer score for {len(missing):,} of {len(examples):,} questions, {missing[0]} first")
    na = np.array([na_scores[example.id] for example in examples], np.float64)
    if not np.isfinite(na).all():
        bad = examples[int(np.argmin(np.isfinite(na)))].id
        raise UserError(f"the no-answer score of question {bad} is {na_scores[bad]}: give finite numbers")
    found: dict[str, float] = {}
    for name, scores in (("exact", table.exact), ("f1", table.f1)):
        found[f"best_{name}"], found[f"best_{name}_thresh"] = _search(scores, table.has_answer, na)
    return found


def normalize_answer(text: str) -> str:
    """Returns the text in lower case, without ASCII punctuation and English articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


class QuestionScores(NamedTuple):
    """One entry per question; scores in [0, 1]."""

    has_answer: Bool[np.ndarray, " N"]
    exact: Float[np.ndarray, " N"]
    f1: Float[np.ndarray, " N"]


def question_scores(
    examples: Sequence[QuestionExample], predictions: Mapping[str, str], *, is_v2: bool
) -> QuestionScores:
    """Returns exact match and F1 of each question, by the rules of 2.0 or 1.1. Raises UserError as `squad_scores`."""
    if not examples:
        raise UserError("no questions to score: the set is empty")
    missing = [example.id for example in examples if example.id not in predictions]
    if missing and is_v2:
        raise UserError(
            f"no prediction for {len(missing):,} of {len(examples):,} questions, {missing[0]} first: "
            'SQuAD 2.0 wants one for each, "" for no answer'
        )
    scores = [_scores_of(example, predictions, is_v2) for example in examples]
    exact, f1 = np.array(scores, np.float64).T
    return QuestionScores(np.array([bool(example.answers) for example in examples]), exact, f1)


def _scores_of(example: QuestionExample, predictions: Mapping[str, str], is_v2: bool) -> tuple[float, float]:
    """Returns exact match and F1, each the best over the gold answers."""
    if example.id not in predictions:
        return 0.0, 0.0
    prediction = predictions[example.id]
    if not isinstance(prediction, str):
        raise UserError(f"the prediction for question {example.id} is {prediction!r}: give text")
    gold = [normalize_answer(answer.text) for answer in example.answers]
    if is_v2:
        gold = [text for text in gold if text] or [""]
    guess = normalize_answer(prediction)
    return max(float(guess == text) for text in gold), max(_f1(guess, text, is_v2) for text in gold)


def _f1(prediction: str, gold: str, is_v2: bool) -> float:
    """Returns the harmonic mean of precision and recall over the words of two normalized texts, as bags."""
    if is_v2 and not (prediction and gold):
        return float(prediction == gold)
    predicted_words, gold_words = prediction.split(), gold.split()
    common = (Counter(predicted_words) & Counter(gold_words)).total()
    if not common:
        return 0.0
    precision, recall = common / len(predicted_words), common / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def _search(
    scores: Float[np.ndarray, " N"], has_answer: Bool[np.ndarray, " N"], na: Float[np.ndarray, " N"]
) -> tuple[float, float]:
    """Returns the best percentage and its threshold. The candidates are never to answer, and then to answer one more
    group of equal na-scores at a time."""
    never = float((~has_answer).sum())
    order = np.argsort(na, kind="stable")
    ascending = na[order]
    # An answer gains its own score and loses the 1 that no answer has on an unanswerable question.
    totals = np.cumsum([never, *(scores - ~has_answer)[order]])[1:]
    last_of_group = np.append(ascending[1:] > ascending[:-1], True)
    totals, thresholds = totals[last_of_group], ascending[last_of_group]
    best = int(np.argmax(totals))
    if totals[best] <= never:
        lowest = float(thresholds[0])
        return 100.0 * never / len(na), 0.0 if lowest > 0 else lowest - 1.0
    return 100.0 * float(totals[best]) / len(na), float(thresholds[best])
