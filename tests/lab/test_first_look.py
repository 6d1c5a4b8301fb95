"""The lines that a first look shows are chosen by their rule alone, and the loss stands beside a guesser's."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from bert_jax.command import exit_status
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.lab.first_look import describe_loss, hidden_words, main

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "value", "of", "list", "##s", "is", "array", "return", "##ed", "a", ".", ",", "12"]
TOKENIZER = make_wordpiece([*SPECIAL, *WORDS], "test", True, None, True)


def record(document: int, *sentences: str) -> dict:
    """A chunk as preparation writes it."""
    encoded = TOKENIZER.encode_words(sentences)
    tokens = np.array([token for ids in encoded for token in ids], np.int32)
    return {"document": document, "tokens": tokens, "sentence_lengths": np.array([len(ids) for ids in encoded])}


def digest(text: str, word: str) -> bytes:
    return hashlib.blake2b(f"{text} {word}".encode(), digest_size=8).digest()


def test_lines_are_those_of_the_smallest_hashes_one_per_document(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bert_jax.lab.first_look._FREQUENT", 3)  # the, value, of
    good = "The value of the list is returned, a value of array."
    records = [
        record(7, "The list.", good, "12 value of the list is a value of the array."),  # too short; a number
        record(7, "The value of the lists is a array of the list."),
        record(8, "The value of the list is the value of the array"),  # no full stop
        record(9, "The value of a list is of a array."),
    ]
    lines = hidden_words(records, TOKENIZER, 4)
    # Hidden are frequent words of two letters or more and one piece: not `returned` and `lists`, nor the first word.
    candidates = [
        ("the [MASK] of the list is returned, a value of array.", "value"),
        ("the value [MASK] the list is returned, a value of array.", "of"),
        ("the value of [MASK] list is returned, a value of array.", "the"),
        ("the value of the list is returned, a [MASK] of array.", "value"),
        ("the value of the list is returned, a value [MASK] array.", "of"),
        ("the [MASK] of the lists is a array of the list.", "value"),
        ("the value [MASK] the lists is a array of the list.", "of"),
        ("the value of [MASK] lists is a array of the list.", "the"),
        ("the value of the lists is a array [MASK] the list.", "of"),
        ("the value of the lists is a array of [MASK] list.", "the"),
    ]
    others = [("the [MASK] of a list is of a array.", "value"), ("the value [MASK] a list is of a array.", "of")]
    others += [("the value of a list is [MASK] a array.", "of")]
    wanted = [min(found, key=lambda item: digest(*item)) for found in (candidates, others)]
    assert [tuple(line) for line in lines] == sorted(wanted, key=lambda item: digest(*item))
    assert hidden_words(records[::-1], TOKENIZER, 1) == lines[:1]


def test_the_loss_stands_beside_that_of_a_guesser(tmp_path: Path):
    metrics = {"mlm_loss": 3.912, "unigram_entropy": 6.011, "mlm_accuracy": 0.327, "majority_accuracy": 0.048}
    lines = [{"step": 5, "split": "eval", "mlm_loss": 9.0}, {"step": 10, "split": "eval"} | metrics]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = describe_loss(tmp_path)
    for part in ("step 10", "costs the model 3.91 nats", "6.01 to a guesser", "33 % of the pieces", "in 5 %"):
        assert part in text


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "0 runs are given; give one workdir"), (["nothing"], "nothing is not the workdir of a run")],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture):
    assert exit_status(main, words) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1
