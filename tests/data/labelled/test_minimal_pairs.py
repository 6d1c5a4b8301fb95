"""Folders of minimal pairs, the sample of an evaluation, and means over paradigms."""

import gzip
import json

import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.data.labelled.minimal_pairs import MinimalPair, accuracies, read_pairs, sample


def line(uid="agreement", **changes):
    pair = {"sentence_good": "He runs.", "sentence_bad": "He run.", "UID": uid, "field": "syntax"}
    return pair | {"linguistics_term": "verbs", "pairID": "0"} | changes


def write(path, *lines):
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))


def test_reads_all_files_by_name_and_one_spelling_of_a_field(tmp_path):
    write(tmp_path / "b.jsonl", line("b", field="syntax/semantics"))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps(line("a")) + "\n\n")
    (tmp_path / "SOURCE.txt").write_text("no pairs")
    assert read_pairs(tmp_path) == [
        MinimalPair(f"{tmp_path}/a.jsonl.gz:1", "He runs.", "He run.", "a", "verbs", "syntax"),
        MinimalPair(f"{tmp_path}/b.jsonl:1", "He runs.", "He run.", "b", "verbs", "syntax_semantics"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"sentence_good": "a"', r"x\.jsonl:2: not a whole JSON object"),
        ("[1]", r"x\.jsonl:2: a list, no JSON object"),
        (json.dumps({"sentence_good": "a", "UID": "u"}), r"x\.jsonl:2: no column 'sentence_bad'"),
        (json.dumps(line(sentence_bad=3)), r"x\.jsonl:2: column 'sentence_bad' holds 3, no text"),
        (json.dumps(line(sentence_good=" ")), r"x\.jsonl:2: sentence_good is empty"),
        (json.dumps(line(field="morphology")), r"x\.jsonl:2: UID 'agreement' is of verbs \(morphology\) here, but"),
    ],
)
def test_names_file_and_line_of_what_is_no_pair(tmp_path, content, message):
    (tmp_path / "x.jsonl").write_text(json.dumps(line()) + "\n" + content + "\n")
    with pytest.raises(UserError, match=message):
        read_pairs(tmp_path)


def test_names_a_folder_without_pairs(tmp_path):
    with pytest.raises(UserError, match=r"has no \.jsonl files; unpack"):
        read_pairs(tmp_path)
    with pytest.raises(UserError, match="missing is not a folder"):
        read_pairs(tmp_path / "missing")
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"x\.jsonl has no rows"):
        read_pairs(tmp_path)


def of(paradigm, number, phenomenon="verbs", field="syntax"):
    return MinimalPair(f"{paradigm}:{number}", "good", "bad", paradigm, phenomenon, field)


def test_sample_of_a_paradigm_depends_on_the_seed_and_its_own_pairs():
    pairs = [of("a", i) for i in range(30)] + [of("b", i) for i in range(3)]
    chosen = sample(pairs, 5, seed=1)
    assert [pair.paradigm for pair in chosen] == ["a"] * 5 + ["b"] * 3
    assert chosen == sample(pairs, 5, seed=1) and chosen != sample(pairs, 5, seed=2)
    assert chosen[:5] == sample(pairs[:30], 5, seed=1)
    assert sample(pairs, 0, seed=1) == pairs


def test_each_paradigm_counts_the_same():
    pairs = [of("a", 0), of("a", 1), of("a", 2), of("a", 3), of("b", 0), of("c", 0, "islands", "other")]
    found = accuracies(pairs, np.asarray([True, True, True, False, False, True]))
    assert found.paradigms == {"a": 0.75, "b": 0.0, "c": 1.0}
    assert found.phenomena == {"islands": 1.0, "verbs": 0.375}
    assert found.fields == {"other": 1.0, "syntax": 0.375}
    assert found.overall == pytest.approx(1.75 / 3)
