"""Scores of texts by a checkpoint, and `--mode=blimp` on real files."""

import csv
import json

import numpy as np
import pytest

import bert_jax
from bert_jax.command import exit_status
from bert_jax.config import UserError
from bert_jax.data.labelled.minimal_pairs import read_pairs
from bert_jax.inference.encode import InputError
from bert_jax.inference.score import Scorer
from bert_jax.main import main

from .test_open import pretrained

TEXTS = ["a good dog", "b", "bad bads x y z", "a a a a a a a a a"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("pretrained") / "x")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Two paradigms of one phenomenon; the sentences of the last pair are the same tokens."""
    folder = tmp_path_factory.mktemp("pairs")
    terms = {"linguistics_term": "letters", "field": "syntax"}
    rows = {
        "one": [("a good b", "b good a"), ("x y", "y x z")],
        "two": [("goods a", "good a"), ("a Ω", "a Δ")],
    }
    for uid, sentences in rows.items():
        lines = [{"sentence_good": good, "sentence_bad": bad, "UID": uid} | terms for good, bad in sentences]
        (folder / f"{uid}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_scores_do_not_depend_on_the_batch(checkpoint):
    model, one = bert_jax.load(checkpoint), Scorer(checkpoint)
    one._tokens = 1  # a row per batch
    scores = model.score(TEXTS)
    assert all(isinstance(score, float) and score < 0 for score in scores)
    np.testing.assert_allclose([model.score(text) for text in TEXTS], scores, rtol=1e-5)
    rows = one.score([one.tokenizer.row(one.tokenizer.encode_words([text])[0]).ids for text in TEXTS])
    np.testing.assert_allclose(rows, scores, rtol=1e-5)
    assert model.score([]) == []


def test_a_text_that_cannot_be_scored_has_an_error_in_its_place(checkpoint, tmp_path):
    model = bert_jax.load(checkpoint)
    long, number, good, empty = model.score(["a " * 31, 3, "a", "\u200b"])
    assert isinstance(long, InputError) and "input 0: 33 tokens, over 32" in str(long)
    assert isinstance(empty, InputError) and "input 3: no tokens in" in str(empty)
    assert isinstance(number, InputError) and isinstance(good, float)
    with pytest.raises(InputError, match="input 1: no tokens in ''; there is nothing to score"):
        model.rank(["a", ""])
    with pytest.raises(UserError, match="method 'masked' of scoring is unknown; it can be within_word or original"):
        model.score("a", method="masked")
    with pytest.raises(UserError, match=r"method '\['original'\]' of scoring is unknown"):
        model.score("a", method=["original"])
    with pytest.raises(UserError, match="rank compares texts: give a list of them"):
        model.rank("ab")
    with pytest.raises(UserError, match="has no MLM head, which scores texts"):
        Scorer(pretrained(tmp_path / "headless", "heads/mlm/"))


def test_the_table_of_a_text_has_its_tokens_and_adds_up(checkpoint):
    model = bert_jax.load(checkpoint)
    text = "Good  bads, b"
    record = model.score(text, by_token=True)
    assert [row["token"] for row in record["table"]] == ["good", "bad", "##s", "[UNK]", "b"]
    assert [text[row["start"] : row["end"]] for row in record["table"]] == ["Good", "bad", "s", ",", "b"]
    total = sum(row["log_probability"] for row in record["table"])
    assert record["score"] == pytest.approx(total) == pytest.approx(model.score(text), rel=1e-5)
    assert record["tokens"] == 5 and record["perplexity"] == pytest.approx(np.exp(-total / 5))
    original = model.score(text, method="original", by_token=True)
    same = [
        one["log_probability"] == pytest.approx(other["log_probability"], rel=1e-4)
        for one, other in zip(record["table"], original["table"], strict=True)
    ]
    assert same == [True, False, True, True, True], "only bad sees that s follows"


def test_candidates_are_ranked_by_their_scores_or_by_the_means_of_their_tokens(checkpoint, tmp_path, capsys):
    model = bert_jax.load(checkpoint)
    found = model.rank(TEXTS)
    assert found == sorted(zip(TEXTS, model.score(TEXTS), strict=True), key=lambda pair: -pair[1])
    means = [(text, score / len(model.tokenizer.encode_words([text])[0])) for text, score in found]
    per_token = model.rank(TEXTS, per_token=True)
    assert [text for text, _ in per_token] == [text for text, _ in sorted(means, key=lambda pair: -pair[1])]
    assert [text for text, _ in per_token] != [text for text, _ in found]

    rows = [{"id": "x", "text": TEXTS}, {"text": []}, {"text": "b"}, {"text": ["a", 1]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--mode=score", "--config=experiments/base.py", f"--config.init_from={checkpoint}"]
    command += [
        f"--input={tmp_path / 'in.jsonl'}",
        f"--workdir={tmp_path / 'none'}",
        f"--output={tmp_path / 'o.jsonl'}",
    ]
    assert exit_status(main, [*command, "--tokens", "--bad_lines=skip"]) == 0
    ranked, empty, one, wrong = map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())
    assert ranked["id"] == "x" and [TEXTS[i] for i in ranked["ranking"]] == [text for text, _ in found]
    assert [TEXTS[i] for i in ranked["ranking_per_token"]] == [text for text, _ in per_token]
    assert [len(candidate["table"]) for candidate in ranked["candidates"]] == [3, 1, 6, 9]
    assert one["line"] == 3 and one["score"] == pytest.approx(model.score("b"), rel=1e-5)
    assert "in.jsonl:2: column 'text' has no candidates" in empty["error"]
    assert "in.jsonl:4: column 'text' holds ['a', 1], no list of texts" in wrong["error"]
    capsys.readouterr()
    assert exit_status(main, command) == 2 and "in.jsonl:2: column 'text' has no" in capsys.readouterr().err
    assert exit_status(main, [word for word in command if not word.startswith("--input")]) == 2
    assert "--mode=score needs --input" in capsys.readouterr().err


def test_blimp_prints_and_writes_what_the_scores_say(checkpoint, pairs, tmp_path, capsys):
    command = ["--mode=blimp", "--config=experiments/base.py", f"--config.init_from={checkpoint}"]
    command += [f"--input={pairs}", f"--workdir={tmp_path / 'none'}"]
    assert exit_status(main, [*command, f"--output={tmp_path / 'found.json'}"]) == 0
    shown = capsys.readouterr().out
    model = bert_jax.load(checkpoint)
    right = [model.score(pair.good) > model.score(pair.bad) for pair in read_pairs(pairs)]
    assert right[3] is False  # equal scores
    one, two = np.mean(right[:2]), np.mean(right[2:])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["step"] == 3 and found["checkpoint"] == checkpoint
    expected = [("overall", "overall", 4), ("field", "syntax", 4), ("phenomenon", "letters", 4), ("paradigm", "one", 2)]
    expected.append(("paradigm", "two", 2))
    shares = [np.mean([one, two])] * 3 + [one, two]
    assert [(row["level"], row["name"], row["pairs"]) for row in found["accuracies"]] == expected
    assert [row["accuracy"] for row in found["accuracies"]] == pytest.approx(shares)
    assert [float(line.split()[-1]) for line in shown.splitlines()] == pytest.approx([100 * x for x in shares])

    one_each = [*command, "--config.eval.blimp_pairs=1", f"--output={tmp_path / 'found.csv'}"]
    assert exit_status(main, one_each) == 0
    with (tmp_path / "found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["pairs"] for row in rows] == ["2", "2", "2", "1", "1"]
    capsys.readouterr()
    (pairs / "three.jsonl").write_text(json.dumps({"UID": "three"}) + "\n")
    assert exit_status(main, command) == 2
    assert "three.jsonl:1: no column 'sentence_good'" in capsys.readouterr().err
