"""Tagged words from columns and rows; tag schemes against encoders written from the definition of each."""

import gzip
import json
import logging
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.config import UserError
from bert_jax.data.labelled.conll import detect_scheme, repair, tagged_examples, to_bio
from bert_jax.data.labelled.examples import TaggedExample


def written(path: Path, content: str) -> Path:
    path.write_bytes(content.encode())
    return path


def tagged(path: Path, text: str = "0", label: str = "-1") -> list[TaggedExample]:
    return list(tagged_examples(str(path), text=text, label=label))


def test_columns_between_spaces(tmp_path):
    content = "-DOCSTART- -X- O\n\nEU NNP  B-ORG\nrejects VBZ O \n\n\n\nPeter NNP B-PER\n"
    path = written(tmp_path / "eng.train", content)
    assert tagged(path) == [
        TaggedExample(f"{path}:3", ("EU", "rejects"), ("B-ORG", "O")),
        TaggedExample(f"{path}:8", ("Peter",), ("B-PER",)),
    ]
    assert tagged(path, label="1")[0].tags == ("NNP", "VBZ")
    assert tagged(path, text="-3", label="2") == tagged(path)
    assert tagged(path, label="")[1] == TaggedExample(f"{path}:8", ("Peter",), None)
    packed = tmp_path / "eng.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    assert [example.words for example in tagged(packed)] == [("EU", "rejects"), ("Peter",)]


def test_columns_between_tabs_keep_every_word(tmp_path):
    """A word may be a space, a control character, nothing at all: it is there in the gold standard, so it counts."""
    path = written(tmp_path / "a.conll", "New York\tB-LOC\r\n\tO\n\u00a0\tO\n\x96\tO\n \t \n\t\n\x1c\tO\n\t\t\n")
    assert tagged(path) == [
        TaggedExample(f"{path}:1", ("New York", "", "\u00a0", "\x96"), ("B-LOC", "O", "O", "O")),
        TaggedExample(f"{path}:7", ("\x1c",), ("O",)),
    ]


def test_a_no_break_space_is_a_word_between_spaces_too(tmp_path):
    path = written(tmp_path / "a.conll", "a O\n\u00a0 O\n\u3000 B-X\n")
    assert tagged(path)[0].words == ("a", "\u00a0", "\u3000")


def test_stray_byte_order_mark(tmp_path):
    assert [e.words for e in tagged(written(tmp_path / "a", "\ufeffa\tO\n\ufeff\nb\tO\n\ufeff\n"))] == [("a",), ("b",)]
    assert tagged(written(tmp_path / "b", "a\n\ufeff\n"), label="")[0].words == ("a", "\ufeff")


def test_rows_of_lists(tmp_path):
    lines = [{"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}, {"tokens": [], "tags": []}]
    path = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert tagged(path, "tokens", "tags") == [
        TaggedExample(f"{path}:1", ("EU", "rejects"), ("B-ORG", "O")),
        TaggedExample(f"{path}:2", (), ()),
    ]
    assert tagged(path, "tokens", "")[0].tags is None


def test_character_spans(tmp_path, caplog):
    spans = {"name": {"彭军": [[0, 1], [4, 5]]}, "place": {"京": [[7, 7]]}}
    path = written(tmp_path / "a.json", json.dumps({"text": "彭军 认彭军在京", "label": spans}))
    with caplog.at_level(logging.WARNING):
        (example,) = tagged(path, "text", "label")
    assert example == TaggedExample(
        f"{path}:1",
        ("彭", "军", " ", "认", "彭", "军", "在", "京"),
        ("B-name", "I-name", "O", "O", "B-name", "I-name", "O", "B-place"),
        spaces_between=False,
    )
    assert not caplog.records


def test_of_overlapping_spans_the_longer_stays_and_the_log_says_so(tmp_path, caplog):
    spans = {"company": {"bcd": [[1, 3]]}, "book": {"abcdef": [[0, 5]]}}
    path = written(tmp_path / "a.json", json.dumps({"text": "abcdefg", "label": spans}))
    with caplog.at_level(logging.WARNING):
        (example,) = tagged(path, "text", "label")
    assert example.tags == ("B-book", *["I-book"] * 5, "O")
    assert [record.message for record in caplog.records] == [f"{path}:1: company 'bcd' overlaps a longer span: dropped"]


@pytest.mark.parametrize(
    ("name", "content", "text", "label", "message"),
    [
        ("a", "a O\nb X O\n", "0", "-1", "a:2: 3 columns, where the lines before have 2"),
        ("a", "a\tO\nb\n", "0", "-1", "a:2: 1 columns, where the lines before have 2"),
        ("a", "a O\n", "0", "2", "a:1: no column 2: the line has 2"),
        ("a", "a O\n", "-3", "-1", "a:1: no column -3: the line has 2"),
        ("a", "a\tO\nb\t\n", "0", "1", "a:2: no tag in column 1"),
        ("a", "a O\n", "words", "1", "column 'words': CoNLL columns are numbered"),
        ("a", "-DOCSTART- O\n\n", "0", "1", "a has no words"),
        ("a", "", "0", "1", "a has no words"),
        ("a.jsonl", '{"w": ["a", "b"], "t": ["O"]}', "w", "t", "a.jsonl:1: 2 words and 1 tags"),
        ("a.jsonl", '{"w": ["a"], "t": [3.5]}', "w", "t", r"a.jsonl:1: column 't' holds \[3.5\], no list of texts"),
        ("a.jsonl", '{"w": ["a"], "t": [3]}', "w", "t", "a.jsonl:1: tags in column 't' are numbers from 3 to 3"),
        ("a.jsonl", '{"w": ["a"], "tags": ["O"]}', "w", "tag", "a.jsonl:1: no column 'tag' .did you mean 'tags'"),
        ("a.json", '{"text": "abc", "s": {"x": {"b": [[0, 0]]}}}', "text", "s", "'b' is not at characters 0 to 0"),
        ("a.json", '{"text": "abc", "s": {"x": {"c": [[2, 3]]}}}', "text", "s", "'c' is not at characters 2 to 3"),
        ("a.json", '{"text": "abc", "s": {"x": {"c": [[-1, -1]]}}}', "text", "s", "'c' is not at characters -1"),
        ("a.json", '{"text": "abc", "s": {"x": {"c": [[2]]}}}', "text", "s", "a.json:1: spans must be"),
        ("a.json", '{"text": "abc", "s": [[0, 1, "x"]]}', "text", "s", "a.json:1: spans must be"),
    ],
)
def test_mistakes(tmp_path, name, content, text, label, message):
    with pytest.raises(UserError, match=message) as caught:
        tagged(written(tmp_path / name, content), text, label)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_a_tag_without_a_type_is_no_part_of_speech():
    with pytest.raises(UserError, match="tag 'B-' names no type of entity"):
        detect_scheme([["B-", "O"]])


@st.composite
def entities(draw) -> tuple[int, list[tuple[str, int, int]]]:
    """The length of a sentence and its entities (type, first, last), in order, none overlapping."""
    spans, at = [], 0
    for _ in range(draw(st.integers(0, 5))):
        first = at + draw(st.integers(0, 2))
        last = first + draw(st.integers(0, 3))
        spans.append((draw(st.sampled_from(["PER", "LOC", "B-1", "a-b"])), first, last))
        at = last + 1
    return at + draw(st.integers(0, 2)), spans


def encode(length: int, spans: list[tuple[str, int, int]], scheme: str) -> list[str]:
    tags = ["O"] * length
    begin, inside, end, single = {
        "BIO": "BIIB",
        "IOB1": "IIII",
        "BIOES": "BIES",
        "BILOU": "BILU",
        "BMES": "BMES",
    }[scheme]
    for kind, first, last in spans:
        letters = single if first == last else begin + inside * (last - first - 1) + end
        touches = any(kind == other and end == first - 1 for other, _, end in spans)
        if scheme == "IOB1" and touches:
            letters = "B" + letters[1:]
        tags[first : last + 1] = [f"{letter}-{kind}" for letter in letters]
    return tags


@pytest.mark.parametrize("scheme", ["BIO", "IOB1", "BIOES", "BILOU", "BMES"])
@given(sentence=entities())
def test_every_scheme_becomes_the_bio_of_the_same_entities(scheme, sentence):
    tags = encode(*sentence, scheme)
    expected = encode(*sentence, "BIO")
    assert to_bio(tags, scheme) == expected
    assert repair(expected) == (expected, 0)


# One sentence that uses every letter, so that the scheme can be told.
TELLING = (9, [("PER", 0, 2), ("PER", 3, 3), ("LOC", 5, 6)])


@pytest.mark.parametrize("scheme", ["BIO", "IOB1", "BIOES", "BILOU", "BMES"])
@given(sentences=st.lists(entities()))
def test_the_scheme_is_found(scheme, sentences):
    assert detect_scheme(encode(*sentence, scheme) for sentence in [*sentences, TELLING]) == scheme


@pytest.mark.parametrize(
    ("sequences", "scheme"),
    [
        ([], "BIO"),
        ([["O", "O"]], "BIO"),
        ([["I-X", "I-X"], ["I-Y"]], "IOB1"),
        ([["I-X", "B-X"], ["B-Y"]], "BIO"),  # the second B would be an I in IOB1: the first tag is a mistake
        ([["I-X", "I-Y", "B-Y"]], "IOB1"),
        ([["NN", "VB", "O"]], "plain"),
        ([["NN", "S-BAR"]], "plain"),
        ([["S-X", "O"]], "BIOES"),
        ([["B-X", "M-X", "E-X"]], "BMES"),
    ],
)
def test_schemes_by_hand(sequences, scheme):
    assert detect_scheme(sequences) == scheme


@pytest.mark.parametrize(
    ("tags", "message"),
    [(["B-X", "PAD"], "'B-X' and 'PAD'"), (["E-X", "L-X"], "begin with E, L "), (["B-X", "M-X", "I-X"], "B, I, M")],
)
def test_mixed_schemes(tags, message):
    with pytest.raises(UserError, match=message):
        detect_scheme([tags])


def test_repair_by_hand():
    tags = ["I-X", "I-X", "O", "I-X", "I-Y", "B-Y", "I-Y", "I-X"]
    assert repair(tags) == (["B-X", "I-X", "O", "B-X", "B-Y", "B-Y", "I-Y", "B-X"], 4)
    assert repair([]) == ([], 0)


@given(st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"])))
def test_repair_makes_valid_bio_once_and_for_all(tags):
    repaired, number = repair(tags)
    assert all(
        not tag.startswith("I-") or before in (f"B-{tag[2:]}", tag)
        for before, tag in zip(["O", *repaired], repaired, strict=False)
    )
    assert repair(repaired) == (repaired, 0)
    assert number == sum(map(str.__ne__, tags, repaired))
    assert [tag[2:] for tag in repaired] == [tag[2:] for tag in tags]


def entity_counts(found: list[TaggedExample]) -> tuple[Counter, int]:
    scheme = detect_scheme(example.tags or () for example in found)
    assert scheme == "BIO"
    fixed = [repair(example.tags or ()) for example in found]
    return Counter(tag[2:] for tags, _ in fixed for tag in tags if tag[0] == "B"), sum(number for _, number in fixed)


def test_wnut17(shared_data):
    """Sentences, words and entities as the shared task counted them; the second file ends in a stray mark."""
    folder = shared_data("wnut17")
    for name, expected in {
        "wnut17train.conll": (3394, 62730, 1975),
        "emerging.dev.conll": (1009, 15733, 836),
        "emerging.test.annotated": (1287, 23394, 1079),
    }.items():
        found = tagged(next(folder.rglob(name)))
        entities, _ = entity_counts(found)
        assert (len(found), sum(len(e.words) for e in found), sum(entities.values())) == expected


def test_conll2002_spanish(shared_data):
    found = tagged(next(shared_data("conll2002_esp").rglob("esp.testb")))
    assert (len(found), sum(len(example.words) for example in found)) == (1517, 51533)
    assert entity_counts(found) == ({"LOC": 1084, "MISC": 340, "ORG": 1400, "PER": 735}, 1)


def test_cluener(shared_data):
    folder = shared_data("cluener")
    found = tagged(next(path for path in folder.rglob("dev.json") if path.parent.name != "as_found"), "text", "label")
    entities, repaired = entity_counts(found)
    assert (len(found), len(entities), sum(entities.values()), repaired) == (1343, 10, 3072, 0)
