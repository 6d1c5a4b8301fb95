"""The parsers of benchmarks/finetune_data.py, on documents that are read by eye, and on the real sets where at hand."""

import importlib.util
import sys
from pathlib import Path

import pytest

from bert_jax.config import UserError

_PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "finetune_data.py"
_SPEC = importlib.util.spec_from_file_location("finetune_data", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
data = importlib.util.module_from_spec(_SPEC)
sys.modules["finetune_data"] = data  # dataclasses look their module up
_SPEC.loader.exec_module(data)

SGML = """<!DOCTYPE lewis SYSTEM "lewis.dtd">
<REUTERS TOPICS="YES" LEWISSPLIT="TRAIN" CGISPLIT="TRAINING-SET" OLDID="1" NEWID="1">
<TOPICS><D>grain</D><D>wheat</D></TOPICS>
<PLACES><D>usa</D></PLACES>
<TEXT>&#2;
<TITLE>WHEAT UP</TITLE>
<DATELINE>    CHICAGO, Feb 26 - </DATELINE><BODY>Prices &lt;at CBT>
    rose, AT&amp;T fell.
 REUTER
&#3;</BODY></TEXT>
</REUTERS>
<REUTERS TOPICS="YES" LEWISSPLIT="TEST" OLDID="2" NEWID="2">
<TOPICS><D>wheat</D><D>oat</D></TOPICS>
<TEXT TYPE="BRIEF">&#2;
******<TITLE>WHEAT DOWN
</TITLE>Blah blah blah.
&#3;
</TEXT>
</REUTERS>
<REUTERS TOPICS="YES" LEWISSPLIT="TRAIN" CSECS="540385847" OLDID="3" NEWID="3">
<TOPICS></TOPICS>
<TEXT TYPE="UNPROC">&#2;
FEDERAL RESERVE -
&#3;
</TEXT>
</REUTERS>
<REUTERS TOPICS="NO" LEWISSPLIT="TRAIN" OLDID="4" NEWID="4">
<TOPICS></TOPICS><TEXT><BODY>not looked at</BODY></TEXT>
</REUTERS>
<REUTERS TOPICS="BYPASS" LEWISSPLIT="TEST" OLDID="5" NEWID="5">
<TOPICS><D>oat</D></TOPICS><TEXT><BODY>bypassed</BODY></TEXT>
</REUTERS>
<REUTERS TOPICS="YES" LEWISSPLIT="NOT-USED" OLDID="6" NEWID="6">
<TOPICS><D>oat</D></TOPICS><TEXT><BODY>not used</BODY></TEXT>
</REUTERS>
"""


def test_reuters_stories_are_those_of_modapte_in_plain_text():
    assert list(data.parse_reuters(SGML)) == [
        ("train", "WHEAT UP Prices <at CBT> rose, AT&T fell. REUTER", ("grain", "wheat")),
        ("test", "WHEAT DOWN Blah blah blah.", ("wheat", "oat")),
        ("train", "FEDERAL RESERVE -", ()),
    ]


def test_reuters_keeps_topics_of_both_splits_and_stories_that_have_one():
    assert data.reuters_splits(data.parse_reuters(SGML)) == (
        [{"text": "WHEAT UP Prices <at CBT> rose, AT&T fell. REUTER", "label": ["wheat"]}],
        [{"text": "WHEAT DOWN Blah blah blah.", "label": ["wheat"]}],
    )


def test_a_reuters_story_without_text_is_an_error():
    with pytest.raises(UserError, match="story 7 has no <TOPICS> or no <TEXT>"):
        list(data.parse_reuters('<REUTERS TOPICS="YES" LEWISSPLIT="TEST" NEWID="7"><TOPICS></TOPICS></REUTERS>'))


def test_a_trec_line_has_a_coarse_and_a_fine_class():
    assert data.parse_trec("DESC:manner How did serfdom develop : in Russia ?\n") == {
        "text": "How did serfdom develop : in Russia ?",
        "coarse": "DESC",
        "fine": "DESC:manner",
    }


def test_mrpc_has_no_header_row_no_byte_order_mark_and_quotes_as_text(tmp_path: Path):
    folder = tmp_path / "glue" / "MRPC"
    folder.mkdir(parents=True)
    for number, name in enumerate(("train", "val", "test")):
        row = f'{number % 2}\t1\t2\t"A{number}\tB{number}'
        (folder / f"msr-para-{name}.tsv").write_text(f"\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n{row}\r\n")
    splits = data.SOURCES["mrpc"].read(tmp_path)
    assert splits.train == [
        {"text": '"A0', "text_pair": "B0", "label": "0"},
        {"text": '"A1', "text_pair": "B1", "label": "1"},
    ]
    assert splits.validation == [{"text": '"A2', "text_pair": "B2", "label": "0"}]


def test_sts_takes_scored_pairs_only_and_2016_to_score(tmp_path: Path):
    for year in range(2012, 2017):
        folder = tmp_path / "sts12-16" / str(year)
        folder.mkdir(parents=True)
        (folder / "x.test.tsv").write_text(f"{year - 2011}.5\ta{year}\tb\thttp://source\n\tno score\tb\n")
    splits = data.SOURCES["sts"].read(tmp_path)
    assert [(row["text"], row["label"]) for row in splits.train] == [(f"a{y}", y - 2010.5) for y in range(2012, 2016)]
    assert splits.validation == [{"text": "a2016", "text_pair": "b", "label": 5.5}]


def test_files_hold_a_sample_that_is_always_the_same_and_any_line_separator(tmp_path: Path):
    folder = tmp_path / "nltk" / "qc"
    folder.mkdir(parents=True)
    (folder / "train.txt").write_bytes(b"".join(b"NUM:date What\x85is %d ?\n" % i for i in range(50)))
    (folder / "test.txt").write_bytes(b"LOC:city Which sister\xf0city ?\n")
    files = [data.write_files("trec_fine", tmp_path, tmp_path / name, train_examples=20) for name in "ab"]
    assert files[0].counts == {"train": 20, "of": 50, "validation": 1}
    rows = [data.read_file(file.train) for file in files]
    assert rows[0] == rows[1] and len({row["text"] for row in rows[0]}) == 20
    assert all(row["text"].startswith("What\x85is ") and row["label"] == "NUM:date" for row in rows[0])
    assert data.read_file(files[0].validation) == [{"text": "Which sisterðcity ?", "label": "LOC:city"}]


def test_a_missing_archive_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"nltk/qc/train\.txt: unpack the archive"):
        data.write_files("trec", tmp_path, tmp_path / "out", train_examples=10)


@pytest.mark.parametrize(
    ("task", "archive", "sizes"),
    [
        ("trec", "trec_qc", (5452, 500)),
        ("mrpc", "mrpc", (4076, 1725)),
        ("sts", "sts12-16", (12_092, 1186)),
        ("wnut17", "wnut17", (3394, 1287)),
        ("reuters", "reuters21578", (7770, 3019)),
    ],
)
def test_the_real_sets_have_their_known_sizes(task: str, archive: str, sizes: tuple[int, int], shared_data):
    splits = data.SOURCES[task].read(shared_data(archive))
    assert (len(splits.train), len(splits.validation)) == sizes
    if task == "reuters":
        assert len({label for row in splits.train for label in row["label"]}) == 90


def test_squad_is_cut_between_articles(shared_data):
    train, validation = data.SOURCES["squad"].read(shared_data("squad_dev"))
    assert len(train) + len(validation) == 10_570
    assert not {row["context"] for row in train} & {row["context"] for row in validation}
