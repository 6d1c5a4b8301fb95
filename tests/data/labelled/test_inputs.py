"""Input of predictions: what is wrong with a line costs that line; formats are told apart; pipes are streamed."""

import json
import os
import threading
from typing import get_args

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from bert_jax.config import UserError
from bert_jax.data.labelled import inputs
from bert_jax.data.labelled.columns import Kind, text_examples
from bert_jax.data.labelled.conll import tagged_examples
from bert_jax.data.labelled.inputs import read_input
from bert_jax.data.labelled.squad import question_examples
from bert_jax.data.labelled.tables import Row, read_rows

FORMATS = {
    "a.jsonl": b'{"t": "x"}\r\n\n{"t": "y\xc3\xa4"}',
    "a.csv": b't,u\nx,1\n\n"y\xc3\xa4",2\n',
    "a.tsv": b"u\tt\n1\tx\n\n2\ty\xc3\xa4\n",
    "a.txt": b"\xef\xbb\xbfx\nz\ny\xc3\xa4\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name, tmp_path):
    (tmp_path / name).write_bytes(FORMATS[name])
    rows = {row.line: row.row for row in read_input(str(tmp_path / name), text="t")}
    first = 1 if name in ("a.jsonl", "a.txt") else 2
    assert rows[first].values["t"] == "x" and rows[first + 2].values["t"] == "yä"
    assert rows[first].origin == f"{tmp_path / name}:{first}"
    assert len(rows) == (3 if name == "a.txt" else 2)


def test_broken_csv_costs_its_own_rows_only(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'0,1\nx,"a "b" c"\ny,2,3\nz,\xe4\nw,"two\nlines"\nv,5\nend,"open\n')
    rows = list(read_input(str(path), text="0", has_header=False))
    assert [row.line for row in rows] == [1, 2, 3, 4, 5, 7, 8]
    good = {row.line: row.row.values for row in rows if isinstance(row.row, Row)}
    assert good == {1: {"0": "0", "1": "1"}, 5: {"0": "w", "1": "two\nlines"}, 7: {"0": "v", "1": "5"}}
    reasons = [str(row.row).partition(": ")[2] for row in rows if not isinstance(row.row, Row)]
    assert [reason.split(" (")[0] for reason in reasons[:1]] == ["the row that begins here is no CSV"]
    assert reasons[1].startswith("3 columns, where the first line has 2") and reasons[2].startswith("not UTF-8")
    assert "unexpected end of data" in reasons[3]


def test_empty_input_and_unknown_suffix(tmp_path):
    (tmp_path / "a.txt").touch()
    assert list(read_input(str(tmp_path / "a.txt"), text="t")) == []
    (tmp_path / "a.doc").write_text("x\n")
    with pytest.raises(UserError, match=r"unknown suffix: say --input_format=csv\|jsonl\|tsv\|txt"):
        read_input(str(tmp_path / "a.doc"), text="t")
    assert [r.row.values for r in read_input(str(tmp_path / "a.doc"), text="t", file_format="txt")] == [{"t": "x"}]
    for missing, message in {
        str(tmp_path / "b.txt"): "b.txt cannot be read .No such file or directory.: give a file, - for standard",
        str(tmp_path): "is a folder: give a file",
        "a\0b": "cannot be read .*embedded null ",
    }.items():
        with pytest.raises(UserError, match=message):
            read_input(missing, text="t")


def test_lines_in_a_json_file_stay_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"question": "x", "context": "y"}\n{"question": "z", "context": "y"}\n')
    assert [row.row.values["question"] for row in read_input(str(path), text="text")] == ["x", "z"]


def from_stdin(content: bytes, monkeypatch, **options) -> list:
    """What comes of standard input, or the message of the error that ends it."""
    read, write = os.pipe()
    os.write(write, content)
    os.close(write)
    with os.fdopen(read) as stream:
        monkeypatch.setattr(inputs.sys, "stdin", stream)
        try:
            return [row.row.values if isinstance(row.row, Row) else str(row.row) for row in read_input("-", **options)]
        except UserError as error:
            return [str(error)]


ARRAY = ["stdin is one JSON array: write one object per line, e.g. with jq -c '.[]'"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"one\n\ntwo", [{"t": "one"}, {"t": ""}, {"t": "two"}]),
        (b'\n  \n{"t": "x"}\n', [{"t": "x"}]),
        (b'\xef\xbb\xbf{"t": "x"}\n', [{"t": "x"}]),
        (b"\n\nsome text\n", [{"t": ""}, {"t": ""}, {"t": "some text"}]),
        (b"[MASK] dogs bark.\n", [{"t": "[MASK] dogs bark."}]),
        (b'["a"]\n', ARRAY),
        (b"[1]\n", [{"t": "[1]"}]),
        (b"[]\n", [{"t": "[]"}]),
        (b'[{"t": "x"}, {"t": "y"}]', ARRAY),
        (b'\n[\n{"t": "x"}]', ARRAY),
        (b"", []),
        (b"\n", [{"t": ""}]),
    ],
)
def test_standard_input_shows_its_format(content, expected, monkeypatch):
    assert from_stdin(content, monkeypatch, text="t") == expected


def test_bad_lines_of_standard_input_cost_themselves(monkeypatch):
    lines = [b'{"t": "x"}', b'{"t": "\xe9"}', b'{"t": ', b"[1]", b'{"t": "\0"}', b'{"id": NaN}', b'{"id": [1]}']
    found = from_stdin(b"\n".join([*lines, b'{"id": 7}']), monkeypatch, text="t")
    assert [found[0], found[-1]] == [{"t": "x"}, {"id": 7}]
    beginnings = [
        "stdin:2: not UTF-8 (byte 0xe9)",
        "stdin:3: not a whole JSON object",
        "stdin:4: a list, no JSON object",
        "stdin:5: binary data (a zero byte)",
        "stdin:6: column 'id' holds nan, no text and no finite number",
        "stdin:7: column 'id' holds [1], no text",
    ]
    assert [message[: len(begin)] for message, begin in zip(found[1:-1], beginnings, strict=True)] == beginnings


def test_a_closed_standard_input_is_one_line(monkeypatch):
    monkeypatch.setattr(inputs.sys, "stdin", None)
    with pytest.raises(UserError, match="standard input is closed"):
        list(read_input("-", text="t"))


@pytest.mark.parametrize(("name", "first"), [("pipe", "one\n"), ("pipe.csv", "t\none\n")])
def test_a_pipe_gives_its_rows_as_they_come(tmp_path, name, first):
    path, seen = tmp_path / name, threading.Event()
    os.mkfifo(path)

    def write():
        with path.open("w") as stream:
            stream.write(first)
            stream.flush()
            assert seen.wait(30)  # the second line is written only when the first row was read
            stream.write("two\n")

    writer = threading.Thread(target=write)
    writer.start()
    rows = read_input(str(path), text="t")
    assert next(rows).row == Row(f"{path}:{1 + name.endswith('csv')}", {"t": "one"})
    seen.set()
    assert [row.row.values for row in rows] == [{"t": "two"}]
    writer.join(30)


def test_questions_of_squad_come_through_a_pipe(tmp_path):
    path = tmp_path / "dev.json"
    os.mkfifo(path)
    whole = {"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "a", "question": "q"}]}]}]}
    writer = threading.Thread(target=lambda: path.write_text(json.dumps(whole, indent=1)))
    writer.start()
    assert [row.row.values for row in read_input(str(path), text="t")] == [{"id": "a", "question": "q", "context": "c"}]
    writer.join(30)


def test_devices_end_at_once():
    assert list(read_input("/dev/null", text="t")) == []
    with pytest.raises(UserError, match="/dev/zero:1: a line of over 64 MiB"):
        list(read_input("/dev/zero", text="t"))


def test_odd_parquet(tmp_path):
    columns = [pyarrow.array([b"x", None]), pyarrow.array([[1], []]), pyarrow.array([1.5, float("nan")])]
    parquet.write_table(pyarrow.table(columns, names=["t", "u", "id"]), tmp_path / "a.parquet")
    first, second = read_input(str(tmp_path / "a.parquet"), text="t")
    assert first.row.values == {"t": b"x", "u": [1], "id": 1.5}
    assert str(second.row).endswith("a.parquet:2: column 'id' holds nan, no text and no finite number: correct it")
    parquet.write_table(pyarrow.table(columns[:2], names=["t", "t"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: two columns are called 't': rename one"):
        list(read_rows(str(tmp_path / "a.parquet")))
    far = pyarrow.array([1 << 62], pyarrow.timestamp("us"))
    parquet.write_table(pyarrow.table([far], names=["t"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: not whole Parquet, after row 0"):
        list(read_rows(str(tmp_path / "a.parquet")))


# Pieces of every format, well and badly formed, in any order
PIECES = [
    *(b"text,label\n", b"text\tlabel\n", b"a,1\n", b"a\t1\n", b'"', b"\n", b"\r\n", b"\r", b",", b"\t", b" "),
    *(b'{"text": "a", "label": "1"}', b'{"text": 1e999, "label": NaN, "id": -Infinity}', b"[", b"]", b"{", b"}"),
    *(b'{"data": ', b'"qas"', b'{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": 1}]}]}]}', b"null"),
    *(b"\0", b"\xff", b"\xef\xbb\xbf", "\u2028漢".encode(), b'{"text": "\\ud800"}', b"9" * 5000, b"[" * 2000),
    *(b"-DOCSTART- -X- O\n", b"EU B-ORG\n", b"x I-\n", b"B-ORG"),
]
contents = st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join) | st.binary(max_size=60)


@settings(max_examples=200, deadline=None)
@given(contents, st.sampled_from(["csv", "tsv", "jsonl", "json", "txt", "parquet", "csv.gz", "json.zst", "conll"]))
def test_whatever_is_in_a_file_it_is_read_or_refused_in_one_line(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"generated.{suffix}"
    path.write_bytes(content)
    options = dict(text="text", text_pair="", label="label", separator="|")
    numbered = dict(text="0", text_pair="", label="1", separator="|")
    tries = [
        lambda: read_input(str(path), text="text"),
        lambda: read_input(str(path), text="1", has_header=False, file_format="csv"),
        *(lambda kind=kind: text_examples(str(path), kind=kind, **options) for kind in get_args(Kind)),
        lambda: text_examples(str(path), kind="single", **numbered),
        lambda: tagged_examples(str(path), text="text", label="label"),
        lambda: tagged_examples(str(path), text="0", label="-1"),
        lambda: question_examples(str(path)),
    ]
    for attempt in tries:
        try:
            found = list(attempt())
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
        else:
            assert all(isinstance(getattr(row, "row", None), Row | UserError | None) for row in found)
