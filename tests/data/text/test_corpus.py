"""Files, dumps, TFDS and the sample as streams of documents; where sentences end; what each mistake is told."""

import gzip
import json
import lzma
import os
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_jax.config import UserError
from bert_jax.data.text import text_files
from bert_jax.data.text.corpus import Document, open_corpus, split_sentences
from experiments.base import get_config

SENTENCES = "The first one ends here.\nA second follows it.\n\nAnother document begins.\nIt ends, too!\n"
WIKI = (
    '<doc id="1" url="u" title="A &amp; B">\nA & B\n\nFirst paragraph. Two sentences.\nSecond.\n</doc>\n'
    '<doc id="2" url="u" title="Empty">\nEmpty\n\n</doc>\n'
)
WRAPPED = """CHAPTER I

It was a long and winding road that led from the village to the old
mill, and nobody had walked along it for more than twenty years, or so
the miller used to say.  He was often wrong.

"Are you coming?" asked the boy, who had waited at the gate since the
morning and was by now rather hungry.
"""


def data_config(corpus: str = "text", files: object = "", **changes):
    data = get_config().data
    data.corpus, data.files = corpus, str(files)
    for key, value in changes.items():
        data[key] = value
    return data


def documents(corpus: str, files: object, **changes) -> list[Document]:
    return list(open_corpus(data_config(corpus, files, **changes)).documents())


def texts(corpus: str, files: object) -> list[str]:
    return [document.text for document in documents(corpus, files)]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def sentences(text: str) -> list[str]:
    return split_sentences(Document("test", text, False))


def test_one_sentence_a_line_with_blank_lines_between_documents(tmp_path):
    path = written(tmp_path / "a.txt", SENTENCES)
    found = documents("text", path)
    assert [document.source for document in found] == [f"{path}:1", f"{path}:4"]
    assert all(document.one_sentence_per_line for document in found)
    assert split_sentences(found[1]) == ["Another document begins.", "It ends, too!"]


LOWER_CASED = (
    "usually , he would be tearing around the room , playing with his toys .\n"
    "but just one look at a minion sent him practically catatonic .\n\n"
    "she had never seen him so quiet .\nit was as if someone had turned him off .\n"
)


@pytest.mark.parametrize(
    "content", [LOWER_CASED, LOWER_CASED.replace("she", "She"), LOWER_CASED.replace("him off .", "him off")]
)
def test_a_lower_cased_corpus_has_a_sentence_per_line(tmp_path, content):
    """As BookCorpus, which BERT was trained on."""
    found = documents("text", written(tmp_path / "books.txt", content))
    assert [document.text for document in found] == content.strip().split("\n\n")
    assert all(len(split_sentences(document)) == 2 for document in found)


def test_hard_wrapped_book_is_one_document_of_unwrapped_paragraphs(tmp_path):
    (book,) = documents("text", written(tmp_path / "book.txt", (WRAPPED + "\n") * 3))
    paragraphs = book.text.split("\n")
    assert len(paragraphs) == 9 and paragraphs[0] == "CHAPTER I"
    assert "the old mill, and nobody" in paragraphs[1]
    assert split_sentences(book)[2:4] == [
        "He was often wrong.",
        '"Are you coming?" asked the boy, who had waited at the gate since the morning and was by now rather hungry.',
    ]


def test_a_paragraph_a_line(tmp_path):
    paragraph = "One sentence here. A second one. And a third.\n"
    separated = documents("text", written(tmp_path / "a.txt", f"{paragraph}\n" * 3))
    grouped = documents("text", written(tmp_path / "b.txt", f"{paragraph * 2}\n" * 3))
    assert [len(document.text.split("\n")) for document in separated] == [3]
    assert [len(document.text.split("\n")) for document in grouped] == [2, 2, 2]
    assert len(split_sentences(separated[0])) == 9


def test_lines_without_punctuation_stay_apart(tmp_path):
    headlines = "Rain tomorrow\nParliament votes on the new budget after a long night\nMarkets up\nSun\n" * 5
    (document,) = documents("text", written(tmp_path / "a.txt", headlines))
    assert split_sentences(document)[:2] == ["Rain tomorrow", "Parliament votes on the new budget after a long night"]


def test_a_file_without_blank_lines_is_cut_after_a_million_characters(tmp_path):
    line = "This sentence has forty characters in it.\n"
    found = documents("text", written(tmp_path / "a.txt", line * 50_000))
    assert [len(document.text.split("\n")) for document in found] == [24_391, 24_391, 1_218]
    assert found[1].source.endswith(":24392")


def test_wikiextractor_drops_titles_and_empty_articles(tmp_path):
    path = written(tmp_path / "wiki_00", WIKI)
    for corpus in ("wikiextractor", "text"):
        assert texts(corpus, path) == ["First paragraph. Two sentences.\nSecond."]


def test_jsonl_field_and_halves_of_surrogates(tmp_path):
    lines = [{"body": "One. Two."}, {"body": "x\ud800y"}, {"body": " "}]
    path = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    found = documents("jsonl", path, text_field="body")
    assert [document.text for document in found] == ["One. Two.", "x\ufffdy"]
    assert found[1].source == f"{path}:2"


def test_compressed_files_read_alike(tmp_path):
    packers = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstandard.compress}
    for suffix, pack in packers.items():
        path = written(tmp_path / f"a.txt.{suffix}", pack(SENTENCES.encode()) + pack(SENTENCES.encode()))
        assert texts("text", path) == texts("text", written(tmp_path / "a.txt", SENTENCES * 2)), suffix
        assert open_corpus(data_config("text", path)).num_bytes is None


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    plain = texts("text", written(tmp_path / "a.txt", SENTENCES))
    assert (
        texts("text", written(tmp_path / "b.txt", b"\xef\xbb\xbf" + SENTENCES.replace("\n", "\r\n").encode())) == plain
    )


def test_files_are_sorted_and_read_once(tmp_path):
    for name in ("b.txt", "a.txt", "with, comma.txt"):
        written(tmp_path / name, f"This is the file {name}.\n")
    (tmp_path / "folder.txt").mkdir()
    found = texts("text", f"{tmp_path}/b.txt, {tmp_path}/*.txt")
    assert found == [f"This is the file {name}." for name in ("a.txt", "b.txt", "with, comma.txt")]
    assert texts("text", tmp_path / "with, comma.txt") == ["This is the file with, comma.txt."]


def test_fingerprint_follows_content_not_place(tmp_path):
    first = open_corpus(data_config("text", written(tmp_path / "a.txt", SENTENCES)))
    moved = open_corpus(data_config("text", written(tmp_path / "b.txt", SENTENCES)))
    changed = open_corpus(data_config("text", written(tmp_path / "c.txt", SENTENCES.replace("too", "two"))))
    assert first.fingerprint == moved.fingerprint != changed.fingerprint
    assert open_corpus(data_config("jsonl", tmp_path / "a.txt")).fingerprint != first.fingerprint
    assert first.num_bytes == len(SENTENCES)
    assert list(first.documents()) == list(first.documents())


def test_files_that_are_named_are_read_instead_of_the_sample(tmp_path):
    file = written(tmp_path / "a.txt", SENTENCES)
    assert documents("sample", file) == documents("text", file)
    with pytest.raises(UserError, match="nothing"):
        documents("sample", tmp_path / "nothing*.txt")


def test_prose_that_quotes_markup_is_prose(tmp_path):
    quoted = '{"text": 1} is an object.\n{"a": 2}\nA sentence ends here.\n'
    assert texts("text", written(tmp_path / "a.txt", quoted))[0].endswith("A sentence ends here.")
    assert texts("text", written(tmp_path / "b.txt", "[Music] {sic} <b>bold</b>.\n"))


def test_a_line_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_LONGEST_LINE", 3 << 20)
    with pytest.raises(UserError, match=r"a.txt:2: a line of over 3 MiB: put documents on lines of their own"):
        documents("text", written(tmp_path / "a.txt", b"short\n" + b"long " * (1 << 20)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["text", "jsonl", "wikiextractor"]),
    suffix=st.sampled_from(["", ".txt", ".gz", ".xz", ".zst", ".jsonl", ".csv"]),
    content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode),
)
def test_any_file_is_read_or_one_line(tmp_path, kind, suffix, content):
    try:
        assert all(document.text.strip() for document in documents(kind, written(tmp_path / f"file{suffix}", content)))
    except UserError as error:
        assert "\n" not in str(error) and str(error).startswith(str(tmp_path))


def test_sample_is_english_prose():
    corpus = open_corpus(get_config().data)
    found = list(corpus.documents())
    assert 1_200 <= len(found) <= 2_000 and 6_000_000 <= corpus.num_bytes <= 9_000_000
    assert len({document.source for document in found}) == len(found)
    assert {document.source.partition(".")[0] for document in found} >= {
        "json",
        "numpy",
        "scipy",
        "sklearn",
        "matplotlib",
    }
    text = "\n".join(document.text for document in found)
    assert abs(len(text) - corpus.num_bytes) < 1_000_000
    assert ">>>" not in text and "-----" not in text and text.count(" the ") > 50_000
    paragraphs = text.split("\n")
    assert len(set(paragraphs)) == len(paragraphs)  # one that stands in several places is taken once
    assert corpus.fingerprint == open_corpus(get_config().data).fingerprint


@pytest.mark.parametrize(
    "expected",
    [
        ["Mr. Smith met Dr. J. R. Jones on Jan. 5.", "He paid $3.50, e.g. in the U.S. Senate."],
        ["He lives in the U.S.", "The end of No. 5 is near."],
        ["“Why?” she asked.", "“No!”", "He left…", "(It rained.)", "So am I.", "You too?!", "Yes."],
        ["Wait... what?", "1. First point.", "Oh no."],
        ["他说：“你好！”", "然后走了。", "真的吗？！", "是的……", "我们走。"],
        ["「行く！」と言った。", "次へ。", "（終わり。）", "はい。"],
    ],
)
def test_where_sentences_end(expected):
    asian = "。" in "".join(expected)
    assert sentences(("" if asian else " ").join(expected)) == expected


def test_lines_always_end_a_sentence():
    assert sentences("History\nIt began\n\n  in 1900 with Mr.\nSmith") == [
        "History",
        "It began",
        "in 1900 with Mr.",
        "Smith",
    ]


@given(st.text(st.sampled_from("ab A.!?…。！？」”\"' \n\t\u3000")))
def test_splitting_loses_only_white_space(text):
    found = sentences(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(sentence and sentence == sentence.strip() and "\n" not in sentence for sentence in found)


class TinyText(tfds.core.GeneratorBasedBuilder):
    """Three documents."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"body": tfds.features.Text()}))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for key in range(3):
            yield key, {"body": f"Document {key}. Ünïcode."}


@pytest.fixture
def tfds_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path


def test_tfds_by_name(tfds_folder):
    corpus = open_corpus(data_config("tfds:tiny_text:1.0.0", text_field="body"))
    found = sorted(document.text for document in corpus.documents())
    assert found == [f"Document {key}. Ünïcode." for key in range(3)]
    assert corpus.name == "tfds_tiny_text_1.0.0" and corpus.num_bytes > 0
    assert (tfds_folder / "tiny_text" / "1.0.0").is_dir()


def test_tfds_mistakes(tfds_folder, monkeypatch):
    with pytest.raises(UserError, match="TFDS has no such data set"):
        open_corpus(data_config("tfds:no_such_data_set"))
    with pytest.raises(UserError, match="TFDS has no such data set"):
        open_corpus(data_config("tfds:tiny_text:9.9.9"))
    for name in ("huggingface:squad", "../x", "a b", ""):
        with pytest.raises(UserError, match=r"not a name of a TFDS data set: write NAME"):
            open_corpus(data_config(f"tfds:{name}"))
    with pytest.raises(UserError, match=r"no text feature 'text': set data.text_field to one of: body"):
        open_corpus(data_config("tfds:tiny_text"))

    def offline(self, dl_manager):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(TinyText, "_split_generators", offline)
    with pytest.raises(UserError, match=r"cannot be downloaded or prepared .*not known.*check the network"):
        open_corpus(data_config("tfds:tiny_text", text_field="body"))


@pytest.mark.parametrize(
    ("corpus", "name", "content", "message"),
    [
        ("text", "empty.txt", b"", r"empty.txt is empty \(0 bytes\)"),
        ("text", "latin.txt", b"good\ncaf\xe9 au lait\n", "latin.txt:2: not UTF-8 at byte 8"),
        ("text", "late.txt", b"good line\n" * 300_000 + b"\xff\n", "late.txt:300001: not UTF-8 at byte 3000000"),
        ("text", "binary.txt", b"abcd\0\0", "binary.txt: binary data .* at byte 4"),
        ("text", "zeros.txt", b"a\n" + bytes(1 << 22), "zeros.txt: binary data .* at byte 2"),
        ("text", "archive.txt", gzip.compress(b"text", mtime=0), r"archive.txt: is a gzip archive, .* name it \*.gz"),
        ("jsonl", "office.jsonl", b"PK\x03\x04\0\0", "office.jsonl: is a ZIP archive or an office document"),
        ("text", "wide.txt", "text".encode("utf-16"), "wide.txt: is UTF-16 text, .* iconv -f UTF-16"),
        ("text", "rows.txt", b'{"text": "a"}\n\n{"text": "b"}\n', "rows.txt: is JSONL, .*data.corpus=jsonl"),
        (
            "text",
            "rows.txt.gz",
            gzip.compress(b'{"text": "a"}\n', mtime=0),
            "rows.txt.gz: is JSONL, .*data.corpus=jsonl",
        ),
        ("text", "array.txt", b'[\n {"text": "a"}]', "array.txt: is JSON, .* one object per line"),
        ("text", "object.txt", b'{\n "text": "a"}', "object.txt: is JSON, .* one object per line"),
        ("text", "page.txt", b"\n<!DOCTYPE html><html>", "page.txt: is HTML or XML, .* extract its text"),
        ("text", "dump.xml", b"<mediawiki xmlns=''>", "dump.xml: is a MediaWiki dump, .* WikiExtractor"),
        ("text", "table.tsv.gz", gzip.compress(b"a\tb\n", mtime=0), "table.tsv.gz: is a table, .* JSONL"),
        ("jsonl", "half.jsonl", b'{"text": "a"}\n{"text": "b', "half.jsonl:2: not a whole JSON object"),
        (
            "jsonl",
            "field.jsonl",
            b'{"body": "a", "id": 1}\n',
            r"field.jsonl:1: no text in field 'text' \(found: body, id\)",
        ),
        ("jsonl", "list.jsonl", b"[1]\n", r"list.jsonl:1: no text in field 'text' \(found: list\)"),
        ("wikiextractor", "cut", WIKI[:90].encode(), "cut:1: <doc> is never closed"),
        ("wikiextractor", "two", WIKI.replace("</doc>\n", "", 1).encode(), "two:6: <doc> before the one of line 1"),
        ("wikiextractor", "plain", b"no tags\n", "plain:1: text outside of <doc>"),
        ("text", "a.gz", gzip.compress(os.urandom(5000), mtime=0)[:4000], "a.gz: corrupt or cut .gz file"),
        ("text", "b.gz", b"not compressed", "b.gz: corrupt or cut .gz file"),
        ("text", "a.xz", lzma.compress(os.urandom(5000))[:4000], "a.xz: corrupt or cut .xz file"),
        ("text", "a.zst", zstandard.compress(b"abc" * 9000)[:-3], "a.zst: corrupt or cut .zst file"),
        ("text", "b.zst", b"not compressed", "b.zst: corrupt or cut .zst file"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path, corpus, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        documents(corpus, written(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_the_files_option(tmp_path):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere")
    for files, message in [
        ("", "data.files is empty"),
        (tmp_path / "none.txt", "none.txt does not exist"),
        (f"{tmp_path}/*.md", r"no file matches .*\*.md"),
        (tmp_path, "is a folder: name its files"),
        (tmp_path / "broken.txt", r"broken.txt: cannot be read \(No such file"),
        ("/dev/zero", "/dev/zero: is a device, not a regular file: correct the path"),
        (fifo, "pipe: is a FIFO, not a regular file"),
    ]:
        with pytest.raises(UserError, match=message):
            open_corpus(data_config("text", files))
    with pytest.raises(UserError, match="choose sample, text, jsonl"):
        open_corpus(data_config("csv", "x"))


@pytest.mark.slow  # unpacking it takes longer than reading
def test_shared_corpus_mixes_dumps_and_books(shared_data):
    folder = shared_data("pretrain_en")
    corpus = open_corpus(data_config("text", f"{folder}/enwiki2015/AB/*,{folder}/gutenberg/*.txt"))
    books = articles = 0
    for document in corpus.documents():
        articles += "enwiki2015" in document.source
        books += "gutenberg" in document.source and "SOURCE" not in document.source
        assert not document.one_sentence_per_line
    assert (articles, books) == (3040, 112)
