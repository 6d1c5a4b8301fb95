"""The SQuAD metrics: leaderboard files, a second scorer written another way, and a threshold search by brute force."""

import json
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.config import UserError
from bert_jax.data.labelled.examples import Answer, QuestionExample
from bert_jax.tasks.squad_scores import best_threshold, normalize_answer, squad_scores

Gold = list[list[str]]


def questions(gold: Gold) -> list[QuestionExample]:
    return [
        QuestionExample(f"test:{i}", f"q{i}", "?", "", tuple(Answer(text, 0) for text in texts))
        for i, texts in enumerate(gold)
    ]


def by_id(values: list) -> dict[str, object]:
    return {f"q{i}": value for i, value in enumerate(values)}


def score(gold: Gold, predictions: list[str], na_scores: list[float] | None = None) -> dict[str, float]:
    return squad_scores(questions(gold), by_id(predictions), None if na_scores is None else by_id(na_scores))


@pytest.mark.parametrize(
    ("name", "exact_match", "f1"),
    [
        ("v1.1_BERT_ensemble", 86.206, 92.196),
        ("v1.1_Logistic_Regression", 40.142, 50.982),  # 13 ids missing, 28 that are not asked for
        ("v1.1_Match-LSTM", 67.635, 76.756),
        ("v1.1_SLQA+", 81.949, 88.384),
        ("v1.1_r-net+", 82.469, 88.478),
        ("v2.0_BERT_single", 78.742, 81.775),
        ("v2.0_BiDAF", 65.704, 67.876),
        ("v2.0_nlnet", 75.828, 78.778),
    ],
)
def test_leaderboard_files_get_their_scores(shared_data, name, exact_match, f1):
    folder = shared_data("squad_dev") / "squad"
    document = json.loads((folder / f"dev-{name[:4]}.reconstructed.json").read_text("utf-8"))
    (predictions,) = (folder / "predictions").glob(f"{name}*.json")
    examples = [
        QuestionExample(name, qa["id"], "", "", tuple(Answer(a["text"], a["answer_start"]) for a in qa["answers"]))
        for article in document["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    scores = squad_scores(examples, json.loads(predictions.read_text("utf-8")))
    assert (round(scores["exact_match"], 3), round(scores["f1"], 3)) == (exact_match, f1)
    assert scores["total"] == len(examples) == (10_570 if name.startswith("v1.1") else 11_873)
    if name.startswith("v2.0"):
        assert (scores["HasAns_total"], scores["NoAns_total"]) == (5_928, 5_945)
        parts = scores["HasAns_f1"] * 5_928 + scores["NoAns_f1"] * 5_945
        assert parts / 11_873 == pytest.approx(scores["f1"], abs=1e-9)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Cat's\u00a0hat, a 10-K\n", "cats hat 10k"),
        ("An anthem: THE theatre_a", "anthem theatrea"),
        ("the-a", "thea"),  # punctuation goes first, and only then what is an article
        ("the–cat l’a “a”", "–cat l’ “ ”"),  # punctuation outside ASCII stays and ends a word
        ("A. an! (the)", ""),
        ("", ""),
    ],
)
def test_normalization(text, normalized):
    assert normalize_answer(text) == normalized


def test_scores_by_hand():
    gold = [["the Denver Broncos", "Broncos"], ["1066"], ["gold, gold and silver"]]
    scores = score(gold, ["Broncos!", "in 1066", "gold gold gold mine"])
    # F1: 1; precision 1/2 and recall 1 → 2/3; two "gold" in common, 2/4 and 2/4 → 1/2.
    assert scores == pytest.approx({"exact_match": 100 / 3, "f1": 100 * (1 + 2 / 3 + 1 / 2) / 3, "total": 3})


def test_the_versions_differ_over_answers_without_words():
    assert score([["The"]], ["a"]) == {"exact_match": 100.0, "f1": 0.0, "total": 1.0}
    scores = score([["The"], []], ["a", "?!"])
    assert scores["exact_match"] == scores["HasAns_f1"] == scores["NoAns_f1"] == 100.0
    scores = score([["the", "cat"], []], ["", ""])  # "the" is no gold answer, so "" is not one either
    assert (scores["HasAns_exact"], scores["HasAns_f1"], scores["NoAns_exact"]) == (0.0, 0.0, 100.0)


def test_missing_predictions():
    answered = questions([["x"], ["y"]])
    assert squad_scores(answered, {"q1": "y", "other": "z"}) == {"exact_match": 50.0, "f1": 50.0, "total": 2.0}
    with pytest.raises(UserError, match=r"no prediction for 2 of 3 questions, q0 first: SQuAD 2\.0 wants one for each"):
        squad_scores(questions([["x"], [], ["y"]]), {"q1": ""})


@pytest.mark.parametrize(
    ("examples", "predictions", "na_scores", "message"),
    [
        ([], {}, None, "no questions to score: the set is empty"),
        (questions([["x"]]), {"q0": None}, None, "the prediction for question q0 is None: give text"),
        (questions([["x"]]), {"q0": ["x"]}, None, r"the prediction for question q0 is \['x'\]: give text"),
        (questions([["x"]]), {"q0": "x"}, {}, "no no-answer score for 1 of 1 questions, q0 first"),
        (questions([["x"]]), {"q0": "x"}, {"q0": float("nan")}, "score of question q0 is nan: give finite numbers"),
    ],
)
def test_what_cannot_be_scored(examples, predictions, na_scores, message):
    with pytest.raises(UserError, match=message):
        squad_scores(examples, predictions, na_scores)


# A second scorer: no regular expression, no Counter, words in common found by merging sorted lists.


def other_normalized(text: str) -> list[str]:
    kept = [c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"]
    runs = ["".join(run) for _, run in groupby(kept, lambda c: c.isalnum())]
    return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()


def other_f1(predicted: list[str], gold: list[str]) -> float:
    a, b, common = sorted(predicted), sorted(gold), 0
    while a and b:
        if a[0] == b[0]:
            common += 1
            a, b = a[1:], b[1:]
        elif a[0] < b[0]:
            a = a[1:]
        else:
            b = b[1:]
    return 2 * common / (len(predicted) + len(gold)) if common else 0.0


def other_scores(gold: Gold, predictions: list[str], is_v2: bool) -> list[tuple[bool, float]]:
    scores = []
    for texts, prediction in zip(gold, predictions, strict=True):
        guess, answers = other_normalized(prediction), [other_normalized(text) for text in texts]
        if is_v2 and not any(answers):
            scores.append((not guess, float(not guess)))
        else:
            answers = [answer for answer in answers if answer] if is_v2 else answers
            scores.append((guess in answers, max(other_f1(guess, answer) for answer in answers)))
    return scores


words = ["a", "the", "The", "an", "cat", "Cat", "sat", "mat", ",", "a.", "!", "–", "the–", "été", "東京", "_a", "²"]
answer_texts = st.one_of(
    st.lists(st.sampled_from(words), max_size=5).map(" ".join), st.text("aA.t h–e\u00a0_", max_size=8)
)
answered = st.lists(answer_texts, min_size=1, max_size=3)


@given(st.lists(st.tuples(answered, answer_texts), min_size=1, max_size=6))
def test_any_answers_score_as_in_the_second_scorer(pairs):
    gold, predictions = [g for g, _ in pairs], [p for _, p in pairs]
    expected = other_scores(gold, predictions, is_v2=False)
    scores = score(gold, predictions)
    assert scores["exact_match"] == pytest.approx(100 * sum(exact for exact, _ in expected) / len(pairs))
    assert scores["f1"] == pytest.approx(100 * sum(f1 for _, f1 in expected) / len(pairs))
    assert scores["total"] == len(pairs) and len(scores) == 3


cases = st.lists(
    st.tuples(
        st.one_of(st.just([]), answered),
        answer_texts,
        st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, -2.0]), st.floats(-20, 20)),
    ),
    min_size=1,
    max_size=8,
)


@given(cases)
def test_the_best_threshold_is_the_best_of_all(case):
    """Brute force: what 2.0 rules give when every question over the threshold is left unanswered."""
    gold, predictions, na = (list(column) for column in zip(*case, strict=True))

    def at(threshold: float, which: int) -> float:
        kept = other_scores(gold, predictions, is_v2=True)
        scores = [float(s[which]) if n <= threshold else float(not g) for s, n, g in zip(kept, na, gold, strict=True)]
        return 100 * sum(scores) / len(scores)

    scores = score(gold, predictions, na)
    for which, name in enumerate(["exact", "f1"]):
        reached = scores[f"best_{name}"]
        assert reached == pytest.approx(at(scores[f"best_{name}_thresh"], which))
        assert reached == pytest.approx(max(at(threshold, which) for threshold in [min(na) - 1, *na]))


def official_search(scores: list[float], predictions: list[str], na: list[float], has_answer: list[bool]):
    """As evaluate-v2.0 goes about it, one question at a time."""
    current = best = float(has_answer.count(False))
    threshold = 0.0
    for i in sorted(range(len(na)), key=na.__getitem__):
        current += scores[i] if has_answer[i] else -1 if predictions[i] else 0
        if current > best:
            best, threshold = current, na[i]
    return 100 * best / len(scores), threshold


plain = st.tuples(  # scores of 0, 1/2 and 1, so that sums are exact and so are ties
    st.sampled_from([[], ["cat mat"], ["sat mat", "sat rat"]]),
    st.sampled_from(["", "cat mat", "sat mat", "rat hat"]),
    st.floats(0.001, 1),
)


@given(st.lists(plain, min_size=1, max_size=8, unique_by=lambda case: case[2]))
def test_different_probabilities_give_the_official_threshold(case):
    gold, predictions, na = (list(column) for column in zip(*case, strict=True))
    found = best_threshold(questions(gold), by_id(predictions), by_id(na))
    kept = other_scores(gold, predictions, is_v2=True)
    for which, name in enumerate(["exact", "f1"]):
        official = official_search([float(s[which]) for s in kept], predictions, na, [bool(g) for g in gold])
        assert (found[f"best_{name}"], found[f"best_{name}_thresh"]) == official


def test_best_threshold_by_hand():
    gold = [["cat"], [], ["mat"], []]
    predictions = ["cat", "cat", "mat", ""]
    # By score: q0 right (+1), q1 wrong (−1), q2 right (+1), q3 was none anyway: 2 → 3 → 2 → 3; the first 3 is taken.
    assert best_threshold(questions(gold), by_id(predictions), by_id([0.1, 0.2, 0.3, 0.4])) == {
        "best_exact": 75.0,
        "best_exact_thresh": 0.1,
        "best_f1": 75.0,
        "best_f1_thresh": 0.1,
    }
    # q0 and q1 share a score, so no threshold tells them apart.
    tied = best_threshold(questions(gold), by_id(predictions), by_id([-3.0, -3.0, -1.5, 9.0]))
    assert (tied["best_exact"], tied["best_exact_thresh"]) == (75.0, -1.5)
    # Never answering is best: 0 is below every probability, but not below every difference of logits.
    assert best_threshold(questions([[]]), by_id(["cat"]), by_id([0.2]))["best_f1_thresh"] == 0.0
    assert best_threshold(questions([[]]), by_id(["cat"]), by_id([-7.0])) == {
        "best_exact": 100.0,
        "best_exact_thresh": -8.0,
        "best_f1": 100.0,
        "best_f1_thresh": -8.0,
    }
