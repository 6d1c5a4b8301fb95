"""Fine-tuning metrics: worked examples, what is undefined, and counts made another way."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bert_jax.config import UserError
from bert_jax.tasks.scores import (
    classification_scores,
    confusion,
    entity_scores,
    entity_table,
    majority_baseline,
    mean_and_sd,
    multilabel_scores,
    per_label_table,
    regression_scores,
    tune_thresholds,
)

ABC = ["a", "b", "c"]


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def f1_of(tp: float, given: float, relevant: float) -> float:
    return 2 * tp / (given + relevant) if given + relevant else 0.0


def test_two_labels_by_hand():
    # Of label 1: 3 found of 4 there are, 1 false alarm; of label 0: 1 of 2, 1 false alarm.
    gold, predicted = ids(1, 1, 1, 1, 0, 0), ids(1, 1, 1, 0, 1, 0)
    scores = classification_scores(gold, predicted, ["no", "yes"])
    assert scores == pytest.approx(
        {
            "accuracy": 4 / 6,
            "macro_f1": (3 / 4 + 1 / 2) / 2,
            "micro_f1": 4 / 6,
            "mcc": (3 * 1 - 1 * 1) / math.sqrt(4 * 4 * 2 * 2),
            "f1": 3 / 4,
        }
    )
    assert confusion(gold, predicted, ["no", "yes"]).tolist() == [[1, 1], [1, 3]]
    assert per_label_table(gold, predicted, ["no", "yes"]) == {
        "no": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2.0},
        "yes": {"precision": 0.75, "recall": 0.75, "f1": 0.75, "support": 4.0},
    }


def test_three_labels_by_hand():
    gold, predicted = ids(0, 0, 1, 2), ids(0, 1, 1, 1)
    scores = classification_scores(gold, predicted, ABC)
    # a: 1 given, 2 there, 1 right → 2/3; b: 3, 1, 1 → 1/2; c: never given → 0.
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert scores["accuracy"] == scores["micro_f1"] == 0.5 and "f1" not in scores
    assert confusion(gold, predicted, ABC).tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert per_label_table(gold, predicted, ABC)["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1.0}


def test_a_label_that_does_not_occur_is_left_out_of_the_mean():
    assert classification_scores(ids(0, 2), ids(0, 2), ABC)["macro_f1"] == 1.0
    assert classification_scores(ids(0, 2), ids(0, 1), ABC)["macro_f1"] == pytest.approx(1 / 3)  # b was predicted
    assert per_label_table(ids(0, 2), ids(0, 2), ABC)["b"]["support"] == 0.0


@pytest.mark.parametrize(("gold", "correct"), [(ids(0, 0, 0), 1.0), (ids(1, 0, 1), 1 / 3), (ids(1, 1, 1), 0.0)])
def test_one_class_predicted_everywhere_has_no_correlation(gold, correct):
    scores = classification_scores(gold, ids(0, 0, 0), ["no", "yes"])
    assert (scores["mcc"], scores["f1"], scores["accuracy"]) == (0.0, 0.0, pytest.approx(correct))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_any_ids_score_as_counted_by_hand(pairs):
    gold, predicted = (ids(*column) for column in zip(*pairs, strict=True))
    labels = ["a", "b", "c", "d"]
    table = confusion(gold, predicted, labels)
    assert {(g, p): n for (g, p), n in np.ndenumerate(table) if n} == Counter(pairs)
    scores = classification_scores(gold, predicted, labels)
    f1 = [f1_of(table[k, k], table[:, k].sum(), table[k].sum()) for k in range(4)]
    occurring = [k for k in range(4) if table[k].sum() + table[:, k].sum()]
    assert scores["accuracy"] == pytest.approx(np.trace(table) / len(pairs))
    assert scores["macro_f1"] == pytest.approx(sum(f1[k] for k in occurring) / len(occurring))
    assert [line["f1"] for line in per_label_table(gold, predicted, labels).values()] == pytest.approx(f1)
    # The coefficient of K classes is the correlation of the one-hot matrices (Gorodkin 2004).
    x, y = (np.eye(4)[column] - np.eye(4)[column].mean(0) for column in (gold, predicted))
    scale = math.sqrt((x * x).sum() * (y * y).sum())
    assert scores["mcc"] == pytest.approx((x * y).sum() / scale if scale > 1e-9 else 0.0)


def test_regression_by_hand():
    scores = regression_scores(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 10.0]))
    # Deviations −1.5 −.5 .5 1.5 and −3 −1 −2 6: 13 / √(5 · 50). Ranks 1 3 2 4: 1 − 6 · 2 / (4 · 15) = 0.8.
    assert scores == pytest.approx({"pearson": 13 / math.sqrt(250), "spearman": 0.8, "mse": (1 + 1 + 36) / 4})
    assert regression_scores(np.array([1.0, 2.0]), np.array([3.0, -1.0]))["spearman"] == pytest.approx(-1.0)
    # Ties share the mean of their ranks: 1.5 1.5 3 against 1 2 3 is √3 / 2.
    tied = regression_scores(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 5.0]))
    assert tied["spearman"] == pytest.approx(math.sqrt(3) / 2)


def test_a_constant_correlates_with_nothing():
    some, same = np.array([1.0, 2.0, 3.0], np.float32), np.full(3, 2.0, np.float32)
    for gold, predicted in ((some, same), (same, some), (same, same), (some[:1], some[:1])):
        scores = regression_scores(gold, predicted)
        assert (scores["pearson"], scores["spearman"]) == (0.0, 0.0)
    assert regression_scores(some, same)["mse"] == pytest.approx(2 / 3)
    nearly = np.array([2.0, np.nextafter(2.0, 3), 2.0])
    assert regression_scores(some, nearly)["spearman"] == pytest.approx(0.0)  # and no warning


GOLD = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
PROBABILITIES = np.array([[0.9, 0.3, 0.1], [0.4, 0.6, 0.2], [0.6, 0.2, 0.1], [0.1, 0.1, 0.1]], np.float32)


def test_several_labels_by_hand():
    scores = multilabel_scores(GOLD, PROBABILITIES, np.full(3, 0.5), ABC)
    # a: right 1 of 2 given and 2 there → 1/2; b: 1 of 1 given and 2 there → 2/3; c never. Micro: 2 · 2 / (3 + 4).
    assert scores == pytest.approx({"macro_f1": (1 / 2 + 2 / 3) / 2, "micro_f1": 4 / 7, "subset_accuracy": 2 / 4})
    table = per_label_table(GOLD, PROBABILITIES >= 0.5, ABC)
    assert table["b"] == pytest.approx({"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 2})
    assert table["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0.0}
    at_the_threshold = multilabel_scores(GOLD[1:2], PROBABILITIES[1:2], PROBABILITIES[1], ABC)
    assert at_the_threshold["micro_f1"] == pytest.approx(2 * 2 / (3 + 2)), "p = threshold gives the label"
    nothing = multilabel_scores(GOLD[3:], PROBABILITIES[3:], np.full(3, 0.5), ABC)
    assert nothing == {"macro_f1": 0.0, "micro_f1": 0.0, "subset_accuracy": 1.0}


def test_thresholds_by_hand():
    # a: 0.9 and 0.4 are right, 0.6 between them is not. b: 0.6 right, 0.3 wrong, 0.2 right. c never occurs.
    # Micro F1 with the first of either: 2·2/(2+4); with three of one, one of the other 2·3/(4+4); three each 2·4/(6+4).
    assert tune_thresholds(GOLD, PROBABILITIES) == pytest.approx([(0.4 + 0.1) / 2, (0.2 + 0.1) / 2, 0.5])
    always = tune_thresholds(np.array([[True], [True]]), np.array([[0.2], [0.0]]))
    assert always == pytest.approx([0.0]), "nothing is below the lowest score"
    assert tune_thresholds(np.array([[True], [True]]), np.array([[0.8], [0.2]])) == pytest.approx([0.1])


def test_a_label_that_is_not_learned_is_given_to_nobody():
    """Alone, label b has its best F1 when all six examples get it: for micro F1 five errors for one hit."""
    gold = np.array([[i < 3, i == 5] for i in range(6)])
    scores = np.array([[0.9, 0.6], [0.8, 0.5], [0.7, 0.4], [0.3, 0.3], [0.2, 0.2], [0.1, 0.1]])
    assert tune_thresholds(gold, scores) == pytest.approx([(0.7 + 0.3) / 2, (1.0 + 0.6) / 2])
    certain = np.array([[0.9, 1.0], [0.8, 1.0], [0.7, 0.4], [0.3, 0.3], [0.2, 0.2], [0.1, 0.1]])
    assert tune_thresholds(gold, certain)[1] > 1.0, "nor to one whose score is 1"


some_scores = st.one_of(st.sampled_from([0.0, 0.1, 0.5, 0.75, 1.0]), st.floats(0, 1))


@given(
    st.integers(1, 3).flatmap(
        lambda n: st.lists(st.tuples(*[st.tuples(st.booleans(), some_scores)] * n), min_size=1, max_size=5)
    )
)
@example([((True, 0.5),), ((False, float(np.nextafter(0.5, 0))),)])
def test_no_thresholds_are_better(rows):
    gold, scores = (np.array([[pair[i] for pair in row] for row in rows]) for i in (0, 1))
    found = tune_thresholds(gold, scores)

    def micro_f1_at(limits) -> float:
        given = scores >= limits
        return f1_of((given & gold).sum(), given.sum(), gold.sum())

    ways = itertools.product(*[[*column, 2.0] for column in scores.T])
    assert (found[~gold.any(axis=0)] == 0.5).all()
    used = np.where(gold.any(axis=0), found, 2.0)  # a label without example has its threshold by rule
    assert micro_f1_at(used) == pytest.approx(max(micro_f1_at(limits) for limits in ways))


def test_entities_by_hand():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "B-LOC"], ["O"]]
    predicted = [["B-PER", "I-PER", "O", "B-PER"], ["B-LOC", "I-LOC"], ["B-ORG"]]
    # Four entities, four predicted; only the first agrees in type and both ends. Tags: 4 of 7.
    assert entity_scores(gold, predicted) == {
        "entity_precision": 0.25,
        "entity_recall": 0.25,
        "entity_f1": 0.25,
        "accuracy": pytest.approx(4 / 7),
    }
    assert entity_table(gold, predicted) == {
        "LOC": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 3.0},
        "ORG": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0.0},
        "PER": {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1.0},
    }


def test_an_entity_begins_with_b_and_nowhere_else():
    gold = [["B-X", "I-X", "O"]]
    assert entity_scores(gold, [["I-X", "I-X", "O"]])["entity_f1"] == 0.0  # conlleval would give 1
    assert entity_scores(gold, [["B-X", "I-X", "I-Y"]])["entity_f1"] == 1.0  # the stray I-Y is no entity
    assert entity_scores(gold, [["B-X", "I-Y", "O"]])["entity_f1"] == 0.0


def test_no_entities_anywhere():
    expected = {"entity_precision": 0.0, "entity_recall": 0.0, "entity_f1": 0.0, "accuracy": 1.0}
    assert entity_scores([["O", "O"], []], [["O", "O"], []]) == expected
    assert entity_table([["O"]], [["I-X"]]) == {}


def flat(parts: list[list[str]]) -> list[str]:
    return [tag for part in parts for tag in part]


def entities(sentences: list[list[str]]) -> set[tuple[int, int, int, str]]:
    """From each B- as far as its I- go: sentence, first word, end, type."""
    found = set()
    for number, tags in enumerate(sentences):
        for start, tag in enumerate(tags):
            if tag.startswith("B-"):
                end = start + 1
                while end < len(tags) and tags[end] == "I-" + tag[2:]:
                    end += 1
                found.add((number, start, end, tag[2:]))
    return found


phrases = st.sampled_from([["O"], ["B-X"], ["B-X", "I-X"], ["B-Y-Z", "I-Y-Z", "I-Y-Z"]])
any_tags = st.sampled_from(["O", "B-X", "I-X", "B-Y-Z", "I-Y-Z"])


@given(st.lists(st.lists(phrases, max_size=4).map(flat), min_size=1, max_size=4).filter(any), st.data())
def test_any_tags_score_as_counted_by_hand(gold, data):
    predicted = [[data.draw(st.one_of(st.just(tag), any_tags)) for tag in tags] for tags in gold]
    there, given = entities(gold), entities(predicted)
    right = len(there & given)
    words = sum(map(len, gold))
    scores = entity_scores(gold, predicted)
    assert scores["entity_precision"] == pytest.approx(right / len(given) if given else 0.0)
    assert scores["entity_recall"] == pytest.approx(right / len(there) if there else 0.0)
    assert scores["entity_f1"] == pytest.approx(f1_of(right, len(given), len(there)))
    same = sum(g == p for a, b in zip(gold, predicted, strict=True) for g, p in zip(a, b, strict=True))
    assert scores["accuracy"] == pytest.approx(same / words)
    table = entity_table(gold, predicted)
    assert {name: line["support"] for name, line in table.items()} == {
        name: sum(entity[3] == name for entity in there) for name in {entity[3] for entity in there | given}
    }


def test_baseline_and_spread():
    assert majority_baseline(ids(2, 0, 2, 2)) == 0.75
    assert mean_and_sd([1.0, 2.0, 6.0]) == pytest.approx((3.0, math.sqrt((4 + 1 + 9) / 2)))
    mean, sd = mean_and_sd([0.5])
    assert mean == 0.5 and math.isnan(sd)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classification_scores(ids(), ids(), ABC), "nothing to score: the set is empty"),
        (lambda: classification_scores(ids(0, 1), ids(0), ABC), "1 predictions for 2 examples"),
        (lambda: confusion(ids(0, 3), ids(0, 1), ABC), "gold label ids go from 0 to 3: 3 labels are known"),
        (lambda: per_label_table(ids(0), ids(-1), ABC), "predicted label ids go from -1 to -1"),
        (lambda: classification_scores(ids(0), ids(0), ["a"]), r"1 label \(a\): a choice needs two or more"),
        (lambda: multilabel_scores(GOLD[:, :1], PROBABILITIES[:, :1], np.ones(1), ["a"]), "a choice needs two or more"),
        (lambda: multilabel_scores(GOLD, PROBABILITIES[:2], np.ones(3), ABC), "2 predictions for 4 examples: predict"),
        (lambda: tune_thresholds(GOLD[:0], PROBABILITIES[:0]), "nothing to score"),
        (lambda: regression_scores(np.ones(2), np.array([1, np.inf])), "1 of 2 predictions are not finite: train with"),
        (lambda: entity_scores([], []), "nothing to score"),
        (lambda: entity_scores([[]], [[]]), "nothing to score: 1 sentences without a word"),
        (lambda: entity_scores([["O", "O"]], [["O"]]), "predicted sentence 0 has 1 tags, gold 2"),
        (lambda: entity_scores([["O"], ["S-X"]], [["O"], ["O"]]), "gold sentence 1, word 0: tag 'S-X' is not BIO"),
        (lambda: entity_table([["O"]], [["PER"]]), "predicted sentence 0, word 0: tag 'PER' is not BIO"),
        (
            lambda: entity_table([["O", "I-X"]], [["O", "O"]]),
            "I-X after O continues nothing: begin an entity with B-X",
        ),
        (lambda: entity_scores([["B-X", "I-Y"]], [["O", "O"]]), "word 1: I-Y after B-X continues nothing"),
        (lambda: mean_and_sd([]), "nothing to score"),
        (lambda: majority_baseline(ids()), "nothing to score"),
    ],
)
def test_what_cannot_be_scored(call, message):
    with pytest.raises(UserError, match=message):
        call()
