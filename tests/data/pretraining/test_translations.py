"""Texts with their translations: how they are read, which pairs share a row, and what a row says of its two parts."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.data.pretraining import packing
from bert_jax.data.pretraining.chunks import Block
from bert_jax.data.pretraining.packing import PackedRows, Packing
from bert_jax.data.pretraining.pairs import PairRows, PairSettings
from bert_jax.data.pretraining.records import _decode, record_fields
from bert_jax.data.pretraining.translations import TranslationWork, fill_rows, open_parallel
from bert_jax.data.tokenizers.wordpiece import make_wordpiece

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "x", "y", "z"]
SETTINGS = PairSettings(12, "translation", 0.5, 0.1, cls_id=2, sep_id=3, vocab_size=11)


def record(one, other):
    lengths = np.asarray([len(one), len(other)])
    place = {"document": 0, "chunk_index": 0, "num_chunks": 1}
    return {"tokens": np.asarray([*one, *other]), "sentence_lengths": lengths, **place}


def documents(files, **options):
    corpus = open_parallel(str(files), **{"text_field": "text", "name_field": "id", "option": "files"} | options)
    return list(corpus.documents())


def test_the_positions_of_the_translation_begin_at_0_again():
    rows = PairRows([record([5, 6, 7], [8, 9])], replace(SETTINGS, restart_positions=True), 0)
    row = rows(0)
    assert row["input_ids"].tolist() == [2, 5, 6, 7, 3, 8, 9, 3, 0, 0, 0, 0]
    assert row["token_type_ids"].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]
    assert row["position_ids"][:8].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert row["sequence_ids"].tolist() == [1] * 8 + [0] * 4  # one sequence: both sides see each other
    assert row["next_sentence_weights"].tolist() == [0]
    whole = PairRows([record([5, 6, 7], [8, 9])], SETTINGS, 0)(0)
    assert whole["position_ids"][:8].tolist() == list(range(8))


def test_positions_and_types_where_pairs_share_a_row(short_stretches, monkeypatch):
    monkeypatch.setattr(packing, "_SAMPLE", 8)  # to shuffle two records takes long
    data = [record([5, 6], [8]), record([7], [9, 10])]
    settings = replace(SETTINGS, sequence_length=16, restart_positions=True)
    row = PackedRows(data, settings, Packing(16, 2, 4, np.full(17, 2)), 0)(0)
    assert sorted(row["sequence_ids"].tolist()) == [0] * 4 + [1] * 6 + [2] * 6
    for start in row["first_tokens"].tolist():
        ids = row["input_ids"][start : start + 6].tolist()
        first = ids.index(3) + 1
        assert row["position_ids"][start : start + 6].tolist() == [*range(first), *range(6 - first)]
        assert row["token_type_ids"][start : start + 6].tolist() == [0] * first + [1] * (6 - first)


def test_a_row_holds_as_many_pairs_as_fit():
    pairs = [([1, 2], [3]), ([4], [5, 6]), ([7] * 4, [8] * 5), ([], [9])]
    assert fill_rows(pairs, 6) == [([1, 2, 4], [3, 5, 6]), ([7, 7], [8, 8]), ([7, 7], [8, 8, 8])]
    assert fill_rows(pairs[:1], 2) == [([2], [3])]  # 1 has nothing beside it


def test_files_whose_lines_belong_together(tmp_path):
    (tmp_path / "t.en").write_text("one\n\nthree\n")
    (tmp_path / "t.de").write_text("eins\nzwei\ndrei\n")
    (found,) = documents(f"{tmp_path}/t.en+{tmp_path}/t.de")
    assert found.pairs == (("one", "eins"), ("three", "drei"))
    assert found.text == "one\neins\nthree\ndrei" and found.source == f"{tmp_path}/t.en:1"
    (tmp_path / "t.tsv").write_text("one\teins\nthree\tdrei\n")
    (table,) = documents(tmp_path / "t.tsv")
    assert table.pairs == found.pairs


def test_documents_of_one_name_belong_together_and_the_others_are_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    write = lambda name, rows: (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))  # noqa: E731
    pages = {"ls": "list\nfiles", "cp": "copy", "x": "y"}
    write("en.jsonl", [{"page": page, "text": text} for page, text in pages.items()])
    write("de.jsonl", [{"page": "cp", "text": "kopieren\nund mehr"}, {"page": "ls", "text": "Dateien\nauflisten"}])
    files = f"{tmp_path}/en.jsonl+{tmp_path}/de.jsonl"
    found = documents(files, name_field="page")
    assert [document.pairs for document in found] == [
        (("list", "Dateien"), ("files", "auflisten")),  # as many paragraphs: one beside the other
        (("copy", "kopieren\nund mehr"),),
    ]
    assert "2 documents have a translation, 1 of en.jsonl and 0 of de.jsonl have none" in caplog.text
    with pytest.raises(UserError, match="no column 'id'"):
        documents(files)
    write("de.jsonl", [{"page": "mv", "text": "z"}])
    with pytest.raises(UserError, match="have no name in common"):
        documents(files, name_field="page")
    write("de.jsonl", [{"page": "ls", "text": "z"}, {"page": "ls", "text": "z"}])
    with pytest.raises(UserError, match=r"de.jsonl:2: a document is called 'ls' already"):
        documents(files, name_field="page")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("t.en+t.de", "t.en:2: this line has no partner, .*t.de ends after line 1"),
        ("t.en", "files: t.en is no pair of files: write source"),
        ("", "files is empty: name the two files"),
        ("t.jsonl+t.de", "files: one of t.jsonl and t.de is JSONL, the other lines of text: give two alike"),
        ("three.tsv", "three.tsv:1: 3 columns, where a text and its translation were expected"),
        ("t.en+empty", "empty is empty"),
        ("t.en+missing", "missing does not exist"),
    ],
)
def test_files_that_are_no_translations(tmp_path, monkeypatch, files, message):
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "t.en": "a\nb\n",
        "t.de": "x\n",
        "three.tsv": "a\tb\tc\n",
        "empty": "",
        "t.jsonl": "{}\n",
    }.items():
        (tmp_path / name).write_text(content)
    if files == "t.en":
        (tmp_path / "t.en").rename("t.en.txt")
        files, message = "t.en.txt", message.replace("t.en ", "t.en.txt ")
    with pytest.raises(UserError, match=message):
        documents(files)


def test_records_hold_both_sides(tmp_path):
    (tmp_path / "t.tsv").write_text("a b\tx\nc\ty z\n? ?\t\n")
    tokenizer = make_wordpiece(TOKENS, "test", True, None, True)
    block = Block(4, [("train", document) for document in documents(tmp_path / "t.tsv")])
    result = TranslationWork(tokenizer, 12, np.dtype("<u2"))(block)
    (found,) = (_decode(one, record_fields("dynamic", 11)) for one in result.records["train"])
    assert found["tokens"].tolist() == [5, 6, 7, 8, 9, 10] and found["sentence_lengths"].tolist() == [3, 3]
    assert (found["document"], found["chunk_index"], found["num_chunks"]) == (4, 0, 1)
    assert result.statistics["train"].counts["tokens"] == 6
