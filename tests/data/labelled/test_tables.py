"""Tables in every format read alike; which columns make which example; what each mistake is told."""

import csv
import gzip
import io
import json
import lzma
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import tensorflow_datasets as tfds
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from bert_jax.config import UserError
from bert_jax.data.labelled.columns import choice_examples, text_examples
from bert_jax.data.labelled.examples import ChoiceExample, TextExample
from bert_jax.data.labelled.tables import read_rows


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(spec: object, header: bool | None = None) -> list[dict[str, Any]]:
    return [row.values for row in read_rows(str(spec), header)]


def texts(spec: object, **changes) -> list[TextExample]:
    options: dict[str, Any] = dict(text="text", text_pair="", label="label", kind="single", separator="|")
    return list(text_examples(str(spec), **(options | changes)))


def labels(spec: object, **changes) -> list:
    return [example.label for example in texts(spec, **changes)]


def test_the_formats_read_alike(tmp_path):
    expected = [{"text": "one", "label": "a"}, {"text": "zwölf", "label": "b"}]
    parquet.write_table(pyarrow.Table.from_pylist(expected), tmp_path / "a.parquet")
    paths = {
        tmp_path / "a.parquet": 1,
        written(tmp_path / "a.csv", "text,label\none,a\n\nzwölf,b\n"): 2,
        written(tmp_path / "a.TSV", "text\tlabel\none\ta\nzwölf\tb"): 2,
        written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, expected))): 1,
        written(tmp_path / "a.json", "\n\n".join(map(json.dumps, expected))): 1,
    }
    for path, first in paths.items():
        rows = list(read_rows(str(path)))
        assert [row.values for row in rows] == expected, path
        assert rows[0].origin == f"{path}:{first}"
    assert [row.origin.split(":")[-1] for row in read_rows(str(tmp_path / "a.csv"))] == ["2", "4"]
    assert values(f"{tmp_path}/a.csv,{tmp_path}/a.json") == expected * 2
    assert values(tmp_path / "a.*") == expected * 5


def test_compressed(tmp_path):
    content = "text\tlabel\none\ta\n"
    packers = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstandard.compress}
    for suffix, pack in packers.items():
        assert values(written(tmp_path / f"a.tsv.{suffix}", pack(content.encode()))) == [{"text": "one", "label": "a"}]


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    for name, tab in (("a.csv", ","), ("a.tsv", "\t")):
        path = written(tmp_path / name, f"\ufefftext{tab}label\r\none{tab}a\r\n")
        assert values(path) == [{"text": "one", "label": "a"}]


def test_quotes_are_text_in_tsv_and_quotes_in_csv(tmp_path):
    assert values(written(tmp_path / "a.tsv", 'text\tlabel\n"unbalanced, he said\t"1"\n')) == [
        {"text": '"unbalanced, he said', "label": '"1"'}
    ]
    content = 'text,label\n"two\r\nlines, ""quoted""",1\nplain "inside",2\n'
    rows = list(read_rows(str(written(tmp_path / "a.csv", content))))
    assert [row.values["text"] for row in rows] == ['two\nlines, "quoted"', 'plain "inside"']
    assert [row.origin.split(":")[-1] for row in rows] == ["2", "4"]


cells = st.text(st.sampled_from('ab ",;\n\té漢\u2028\x85'), min_size=1)


@given(st.lists(st.tuples(cells, cells, cells), min_size=1))
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory, rows):
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(rows)
    path = written(tmp_path_factory.mktemp("csv") / "a.csv", stream.getvalue())
    assert values(path, header=False) == [dict(zip("012", row, strict=True)) for row in rows]


def test_a_cell_may_hold_a_book(tmp_path):
    book = "word " * 100_000
    assert values(written(tmp_path / "a.csv", f'text,label\n"{book}",1\n')) == [{"text": book, "label": "1"}]


def test_lines_of_text(tmp_path):
    path = written(tmp_path / "a.txt", "DESC:def What is  BERT ?\n\n  NUM:count\tHow many \n")
    assert values(path) == [{"text": "DESC:def What is  BERT ?"}, {"text": ""}, {"text": "  NUM:count\tHow many "}]
    assert texts(path, text="1", label="0") == [
        TextExample(f"{path}:1", "What is  BERT ?", None, "DESC:def"),
        TextExample(f"{path}:3", "How many ", None, "NUM:count"),
    ]


def test_columns_by_number_mean_no_header(tmp_path):
    path = written(tmp_path / "cola.tsv", "gj04\t1\t\tThey drank.\ngj04\t0\t*\tThey drank the.\n")
    expected = [
        TextExample(f"{path}:1", "They drank.", None, "1"),
        TextExample(f"{path}:2", "They drank the.", None, "0"),
    ]
    assert texts(path, text="3", label="1") == texts(path, text="-1", label="-3") == expected
    assert texts(path, text="gj04", label="")[0].origin == f"{path}:2"


def test_pairs(tmp_path):
    path = written(tmp_path / "a.tsv", "id\tpremise\thypothesis\n7\tIt rains.\tIt is wet.\n")
    assert texts(path, text="premise", text_pair="hypothesis", label="") == [
        TextExample(f"{path}:2", "It rains.", "It is wet.", None)
    ]


def test_names_of_classes(tmp_path):
    found = ["pos", "", None, 1, -1, 2.5, True]
    path = written(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": "x", "label": label}) for label in found))
    assert labels(path) == ["pos", None, None, "1", "-1", "2.5", "true"]


def test_several_labels(tmp_path):
    path = written(tmp_path / "a.csv", "text,label,x,y\nfirst,oil|gas,1,0\nsecond,,0,0\nthird, gas | oil|gas,1,1\n")
    assert labels(path, kind="multi") == [("oil", "gas"), (), ("gas", "oil")]
    assert labels(path, kind="multi", label="x|y") == [("x",), (), ("x", "y")]
    assert labels(path, kind="multi", label="x;y", separator=";") == [("x",), (), ("x", "y")]
    assert labels(path, kind="multi", separator=";") == [("oil|gas",), (), ("gas | oil|gas",)]
    rows = [{"text": "x", "label": label} for label in (["a", "b|c"], [], None)]
    assert labels(written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))), kind="multi") == [
        ("a", "b|c"),
        (),
        None,
    ]
    rows = [{"text": "x", "a": 1, "b": True, "c": False}, {"text": "x", "a": 0, "b": "1", "c": 0.0}]
    path = written(tmp_path / "b.jsonl", "\n".join(map(json.dumps, rows)))
    assert labels(path, kind="multi", label="a|b|c") == [("a", "b"), ("b",)]


def test_numbers(tmp_path):
    path = written(tmp_path / "a.tsv", "4.400\tx\ty\n\tx\ty\n 3 \tx\ty\n-1e-2\tx\ty\n")
    found = labels(path, text="1", text_pair="2", label="0", kind="regression")
    assert found == [4.4, None, 3.0, -0.01]
    assert [type(label) for label in found] == [float, type(None), float, float]


def test_choices(tmp_path):
    swag = "id,sent1,sent2,ending0,ending1,label\n9,He sits.,He,stands.,flies.,1\n8,He sits.,He,stands.,flies.,\n"
    path = written(tmp_path / "swag.csv", swag)
    columns = dict(context="sent1", ending_start="sent2", choices="ending0, ending1", label="label")
    assert list(choice_examples(str(path), **columns)) == [
        ChoiceExample(f"{path}:2", "He sits.", "He", ("stands.", "flies."), 1),
        ChoiceExample(f"{path}:3", "He sits.", "He", ("stands.", "flies."), None),
    ]
    codah = written(tmp_path / "codah.tsv", "i\tWhy?\tone\ttwo\tthree\tfour\t3\n")
    (example,) = choice_examples(str(codah), context="1", ending_start="", choices="2,3,4,5", label="6")
    assert example == ChoiceExample(f"{codah}:1", "Why?", "", ("one", "two", "three", "four"), 3)
    lists = written(tmp_path / "a.jsonl", json.dumps({"ctx": "c", "endings": ["a", "b"], "label": 0}))
    (example,) = choice_examples(str(lists), context="ctx", ending_start="", choices="endings", label="label")
    assert (example.choices, example.label) == (("a", "b"), 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": 2}, "column 'label' holds 2; it must be the number of the right choice, 0 to 1"),
        ({"label": "a"}, "holds 'a'; it must be the number"),
        ({"label": -1}, "holds -1; it must be the number"),
        ({"label": True}, "holds True; it must be the number"),
        ({"endings": ["a"]}, "1 choices; name two columns or more"),
        ({"endings": "a"}, "column 'endings' holds 'a', no list of texts"),
        ({"ctx": None}, "column 'ctx' holds null, no text"),
    ],
)
def test_mistakes_in_choices(tmp_path, row, message):
    path = written(tmp_path / "a.jsonl", json.dumps({"ctx": "c", "endings": ["a", "b"], "label": 0} | row))
    with pytest.raises(UserError, match=f"a.jsonl:1: .*{message}"):
        list(choice_examples(str(path), context="ctx", ending_start="", choices="endings", label="label"))


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", 'text,label\nx,1\n"open,1\ny,2\n', {}, "a.csv:3: the row that begins here is no CSV .unexpected end"),
        ("a.csv", 'text,label\n"x" y,1\n', {}, "a.csv:2: the row that begins here is no CSV"),
        ("a.csv", "text,label\nx\n", {}, "a.csv:2: 1 columns, where the first line has 2"),
        ("a.tsv", "text\tlabel\nx\t1\ny\t1\t2\n", {}, "a.tsv:3: 3 columns, where the first line has 2"),
        ("a.tsv", "x\t1\ny\n", {"text": "0", "label": "1"}, "a.tsv:2: 1 columns, where the first line has 2"),
        ("a.tsv", "text\tlabel\ttext\nx\t1\ty\n", {}, "a.tsv:1: two columns are called 'text'"),
        ("a.tsv", "sentence\tlabel\nx\t1\n", {"text": "sentnce"}, r"a.tsv:2: no column 'sentnce' \(did you mean 'sen"),
        ("a.tsv", "gj04\t1\nx\t1\n", {}, r"no column 'text' \(columns: gj04, 1\): .* number the columns from 0"),
        ("a.tsv", "x\t1\n", {"text": "0", "label": "2"}, r"a.tsv:1: no column '2' \(columns: 0, 1\)"),
        ("a.tsv", "x\t1\n", {"text": "0", "label": "-3"}, "a.tsv:1: no column '-3'"),
        ("a.csv", "", {}, "a.csv has no rows"),
        ("a.csv", "text,label\n\n", {}, "a.csv has no rows"),
        ("a.txt", "", {}, "a.txt has no rows"),
        ("a.txt", "A text\nB\n", {"text": "1", "label": "0"}, "a.txt:2: one word, where a label and a text"),
        ("a.csv", b"text,label\nx,1\ncaf\xe9,2\n", {}, "a.csv:3: not UTF-8 .byte 0xe9.: convert the file"),
        ("a.csv", b"\xef\xbb\xbftext,label\n\xe9,2\n", {}, "a.csv:2: not UTF-8 .byte 0xe9"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b', {}, "a.jsonl:2: not a whole JSON object"),
        ("a.json", "\n[\n{}]", {}, "a.json is one JSON array: write one object per line"),
        ("a.json", '[{"text": "a"}]', {}, "a.json is one JSON array: write one object per line, e.g. with jq -c"),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n[1]',
            {},
            "a.jsonl:2: a list, no JSON object: write one object per line",
        ),
        ("a.jsonl", '{"text": "a", "label": Infinity}', {}, "a.jsonl:1: column 'label' holds inf, no name"),
        ("a.tsv", "text\tlabel\nx\0\t1\n", {}, "a.tsv:2: binary data .a zero byte."),
        ("a.tsv", b"text\tlab\xe9l\nx\t1\n", {}, "a.tsv:1: not UTF-8 .byte 0xe9"),
        ("a.jsonl", '{"text": 3, "label": 1}', {}, "a.jsonl:1: column 'text' holds 3, no text"),
        ("a.jsonl", '{"text": null, "label": 1}', {}, "a.jsonl:1: column 'text' holds null, no text"),
        ("a.jsonl", '{"text": "a", "label": ["b"]}', {}, r"a.jsonl:1: column 'label' holds \['b'\], no name"),
        ("a.jsonl", '{"text": "a", "label": NaN}', {}, "a.jsonl:1: column 'label' holds nan, no name"),
        ("a.jsonl", '{"text": "a", "label": 1}', {"kind": "multi"}, "holds 1, no list and no text"),
        ("a.jsonl", '{"text": "a", "label": [1]}', {"kind": "multi"}, r"holds \[1\], no list of texts"),
        (
            "a.csv",
            "text,a,b\nx,1,-1\n",
            {"kind": "multi", "label": "a|b"},
            "a.csv:2: column 'b' holds '-1'; it must be",
        ),
        ("a.parquet", b"PAR1", {}, "a.parquet: not whole Parquet, after row 0"),
        ("a.parquet.gz", gzip.compress(b"PAR1", mtime=0), {}, "Parquet compresses inside: unpack"),
        ("a.xlsx", b"PK", {}, "unknown suffix '.xlsx': rename it to one of .csv, .tsv, "),
        ("noname", b"x", {}, "unknown suffix ''"),
        ("a.txt", "x\n", {"text": ""}, "no column is named for the text: set data.text"),
        (
            "a.txt",
            "x\n",
            {"kind": "multiple"},
            "label_kind 'multiple' is unknown .*: choose single, multi or regression",
        ),
        ("a.txt", "x\n", {"kind": "multi", "separator": ""}, "data.label_separator is empty .*: give the text between"),
    ],
)
def test_mistakes(tmp_path, name, content, options, message):
    path = written(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as caught:
        texts(path, **options)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["high", "NaN", "nan", "inf", "-Infinity", "1e999", "4e38", "3,5", "1_0", "0x1"])
def test_no_finite_number(tmp_path, value):
    path = written(tmp_path / "a.tsv", f"text\tlabel\nx\t1\ny\t{value}\n")
    with pytest.raises(UserError, match=f"a.tsv:3: column 'label' holds '{value}', no finite number"):
        labels(path, kind="regression")


@pytest.mark.parametrize("value", ["true", "NaN", "[1]", "9" * 400])
def test_no_finite_number_in_json(tmp_path, value):
    path = written(tmp_path / "a.jsonl", f'{{"text": "x", "label": {value}}}')
    with pytest.raises(UserError, match=r"a.jsonl:1: column 'label' holds .*no finite number"):
        labels(path, kind="regression")


def test_mistakes_in_the_name_of_the_data(tmp_path):
    for spec, message in {
        " ": "no data is named",
        f"{tmp_path}/none.csv": "none.csv does not exist",
        f"{tmp_path}/*.csv": "no file matches",
        str(tmp_path): "is a folder",
    }.items():
        with pytest.raises(UserError, match=message):
            values(spec)


def test_rows_stream(tmp_path):
    """The mistake at the end of a file is met only when one gets there."""
    path = written(tmp_path / "a.tsv", "text\n" + "x\n" * 1000 + "x\ty\n")
    rows = read_rows(str(path))
    assert [next(rows).values for _ in range(1000)] == [{"text": "x"}] * 1000
    with pytest.raises(UserError, match=r"a\.tsv:1002"):
        next(rows)


def test_parquet_by_row_group(tmp_path):
    table = pyarrow.table({"text": [f"t{i}" for i in range(10_000)], "label": pyarrow.array([1, None] * 5_000)})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3_000)
    found = texts(tmp_path / "a.parquet")
    assert [example.text for example in found] == [f"t{i}" for i in range(10_000)]
    assert (found[0].label, found[1].label, found[-1].origin[-6:]) == ("1", None, ":10000")


class TinyTable(tfds.core.GeneratorBasedBuilder):
    """Pairs with a class."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["no", "yes"]),
            "score": tfds.features.Scalar(np.float32),
            "tokens": tfds.features.Sequence(tfds.features.Text()),
            "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=["O", "B-X"])),
            "answers": tfds.features.Sequence(
                {"text": tfds.features.Text(), "answer_start": tfds.features.Scalar(np.int32)}
            ),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        for key in range(4):
            answers = [{"text": "ünï", "answer_start": key}] * key
            tokens, tags = ["a", "ü"], ["O", "B-X"]
            yield (
                key,
                {"text": f"Ünï {key}", "label": key - 1 if key < 3 else -1, "score": key / 2}
                | {"tokens": tokens, "tags": tags, "answers": answers},
            )


@pytest.fixture(scope="module")
def tiny_table(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("tfds")))
        yield "tfds:tiny_table:1.0.0"


def test_tfds_names(tiny_table):
    rows = sorted(read_rows(f"{tiny_table}@train"), key=lambda row: row.values["text"])
    assert sorted(row.origin for row in rows) == [f"{tiny_table}@train:{number}" for number in range(1, 5)]
    assert rows[2].values == {
        "text": "Ünï 2",
        "label": "yes",
        "score": 1.0,
        "tokens": ["a", "ü"],
        "tags": ["O", "B-X"],
        "answers": {"text": ["ünï", "ünï"], "answer_start": [2, 2]},
    }
    assert [row.values["label"] for row in rows] == [None, "no", "yes", None]
    scores = [example.label for example in texts(f"{tiny_table}@test", label="score", kind="regression")]
    assert Counter(scores) == Counter([0.0, 0.5, 1.0, 1.5])
    assert len(values(f"{tiny_table}@train[:2]")) == 2


def test_tfds_mistakes(tiny_table, monkeypatch):
    for spec, message in {
        tiny_table: "no split is named: write tfds:tiny_table:1.0.0@SPLIT",
        f"{tiny_table}@dev": r"no split 'dev' \(splits: train, test\)",
        "tfds:no_such_data_set@train": "TFDS has no such data set",
    }.items():
        with pytest.raises(UserError, match=message):
            values(spec)

    def offline(self, dl_manager):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(TinyTable, "_split_generators", offline)
    monkeypatch.setenv("TFDS_DATA_DIR", "/dev/null/nowhere")
    with pytest.raises(UserError, match=r"tiny_table.*cannot be downloaded or prepared .*check the network"):
        values("tfds:tiny_table@train")


def counts(spec: object, **options) -> Counter:
    return Counter(labels(spec, **options))


def test_sst2(shared_data):
    folder = next(shared_data("sst2").rglob("train.tsv")).parent
    assert counts(folder / "dev.tsv", text="sentence") == {"1": 444, "0": 428}
    assert counts(folder / "train.tsv", text="sentence") == {"1": 37_569, "0": 29_780}
    assert counts(folder / "test.tsv", text="sentence", label="") == {None: 1821}


def test_mrpc_has_a_byte_order_mark_and_quotes_that_never_close(shared_data):
    pattern = next(shared_data("mrpc").rglob("msr-para-train.tsv")).parent / "msr-para-*.tsv"
    found = texts(pattern, text="#1 String", text_pair="#2 String", label="Quality")
    assert Counter(example.label for example in found) == {"1": 3900, "0": 1901}
    assert any(example.text.count('"') % 2 for example in found)


def test_trec_is_not_utf8_until_converted(shared_data, tmp_path):
    train = next(shared_data("trec_qc").rglob("train.txt"))
    with pytest.raises(UserError, match=r"train.txt:66: not UTF-8 \(byte 0xf0\).*iconv -f LATIN1 -t UTF-8"):
        texts(train, text="1", label="0")
    converted = written(tmp_path / "train.txt", train.read_bytes().decode("latin-1"))
    found = counts(converted, text="1", label="0")
    assert (found.total(), len(found), found["DESC:def"]) == (5452, 50, 421)
    assert Counter(label.split(":")[0] for label in found.elements())["ABBR"] == 86


def test_sts_of_2014_and_2015(shared_data):
    folder = next(shared_data("sts12-16").rglob("2015"))
    options = dict(text="1", text_pair="2", label="0", kind="regression")
    found = counts(folder / "*.tsv", **options)
    assert (found.total(), found[None]) == (8500, 5500)  # only 3,000 were scored, the others have no number
    found = counts(folder.parent / "2014" / "*.tsv", **options)
    assert (found.total(), found[None], min(found), max(found)) == (3750, 0, 0.0, 5.0)
