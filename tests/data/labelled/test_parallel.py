"""Pairs of texts: two files line by line, tables of two columns, dialogues; and what is refused, with its row."""

import gzip
import json

import pytest

from bert_jax.config import UserError
from bert_jax.data.labelled.examples import WritingExample
from bert_jax.data.labelled.parallel import file_pairs, writing_examples


def read(spec, source="source", target="target"):
    return list(writing_examples(str(spec), source=source, target=target))


def test_lines_with_the_same_number_belong_together(tmp_path):
    (tmp_path / "a.en").write_text("A dog.\r\nTwo cats.\n", encoding="utf-8")
    with gzip.open(tmp_path / "a.de.gz", "wt", encoding="utf-8") as file:
        file.write("\ufeffEin Hund.\nZwei Katzen.")  # no line feed at the end
    (tmp_path / "b.en").write_text("Rain.\n")
    (tmp_path / "b.de").write_text("Regen.\n")
    found = read(f"{tmp_path}/a.en+{tmp_path}/a.de.gz, {tmp_path}/b.en+{tmp_path}/b.de")
    assert found == [
        WritingExample(f"{tmp_path}/a.en:1", ("A dog.",), "Ein Hund."),
        WritingExample(f"{tmp_path}/a.en:2", ("Two cats.",), "Zwei Katzen."),
        WritingExample(f"{tmp_path}/b.en:1", ("Rain.",), "Regen."),
    ]


def test_a_name_that_is_there_may_hold_a_plus_sign(tmp_path):
    path = tmp_path / "c++.tsv"
    path.write_text("source\ttarget\na\tb\n")
    assert file_pairs(str(path)) == []
    assert read(path) == [WritingExample(f"{path}:2", ("a",), "b")]
    assert file_pairs("tfds:wmt/de-en@train+test") == []


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("t.tsv", "source\ttarget\na b\tc\n", ("source", "target")),
        ("t.csv", "x,y\na b,c\n", ("x", "y")),
        ("t.tsv", "a b\tc\n", ("0", "1")),
        ("t.jsonl", '{"source": "a b", "target": "c", "more": 1}\n', ("source", "target")),
    ],
)
def test_columns_of_tables(tmp_path, name, content, columns):
    (tmp_path / name).write_text(content)
    (found,) = read(tmp_path / name, *columns)
    assert found.source == ("a b",) and found.target == "c"


def test_the_turns_of_a_dialogue_are_a_list(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"source": ["hi", "who is there?"], "target": "me"}) + "\n")
    assert read(path) == [WritingExample(f"{path}:1", ("hi", "who is there?"), "me")]


@pytest.mark.parametrize(
    ("en", "de", "message"),
    [
        ("a\nb\nc\n", "x\ny\n", r"train.en:3: this line has no partner, .*train.de ends after line 2"),
        ("a\n", "x\ny\nz\n", r"train.de:2: this line has no partner, .*train.en ends after line 1"),
        ("a\n\nc\n", "x\ny\nz\n", r"train.en:2: column 'text' is empty: give the source"),
        ("a\nb\n", "x\n \n", r"train.de:2: the line is empty: give the text to write"),
        ("a\nb\n", "x\n\0\n", r"train.de:2: binary data"),
        ("", "", r"train.en and .*train.de have no lines"),
    ],
)
def test_files_that_do_not_fit_together(tmp_path, en, de, message):
    (tmp_path / "train.en").write_text(en)
    (tmp_path / "train.de").write_text(de)
    with pytest.raises(UserError, match=message):
        read(f"{tmp_path}/train.en+{tmp_path}/train.de")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"source": "a", "target": None}, r"t.jsonl:2: column 'target' is empty"),
        ({"source": "a", "target": " "}, r"t.jsonl:2: column 'target' is empty"),
        ({"source": "a", "target": 7}, r"t.jsonl:2: column 'target' holds 7, no text"),
        ({"source": "", "target": "b"}, r"t.jsonl:2: column 'source' is empty"),
        ({"source": [], "target": "b"}, r"t.jsonl:2: column 'source' is empty"),
        ({"source": ["a", ""], "target": "b"}, r"t.jsonl:2: has an empty turn in column 'source'"),
        ({"source": [1], "target": "b"}, r"t.jsonl:2: column 'source' holds \[1\], no list of texts"),
        ({"src": "a", "target": "b"}, r"t.jsonl:2: no column 'source'"),
    ],
)
def test_rows_that_are_refused(tmp_path, row, message):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"source": "a", "target": "b"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        read(path)


@pytest.mark.parametrize("spec", ["a.en+", "+a.de", "a+b+c", "a.en+a.de,b.en"])
def test_names_that_are_no_pairs(tmp_path, spec, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"names no two files: write source\+target"):
        read(spec)


def test_files_that_are_missing(tmp_path):
    (tmp_path / "a.en").write_text("a\n")
    with pytest.raises(UserError, match=r"a.de does not exist"):
        read(f"{tmp_path}/a.en+{tmp_path}/a.de")
    for name in ("b1.en", "b2.en"):
        (tmp_path / name).write_text("a\n")
    with pytest.raises(UserError, match=r"matches 2 files: name pairs of single files"):
        read(f"{tmp_path}/b*.en+{tmp_path}/a.en")
    with pytest.raises(UserError, match=r"a.en: unknown suffix '.en': .* or name two files .* train.en\+train.de"):
        read(tmp_path / "a.en")
    with pytest.raises(UserError, match=r"data.label is empty: name the column of the target"):
        read(tmp_path / "a.csv", target="")
