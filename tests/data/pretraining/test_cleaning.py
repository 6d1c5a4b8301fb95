"""What is left out of a corpus: each rule on lines that a reader can judge, and the same split as without it."""

import json
from collections import Counter
from pathlib import Path

import pytest

from bert_jax.config import UserError
from bert_jax.data.pretraining.cleaning import Cleaning, Duplicates, line_hashes, marked, shares
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.data.text.corpus import Document
from experiments.base import get_config

PROSE = "The river rises in the hills above the town and reaches the sea after ninety miles of slow bends. " * 3
LINES = {
    "History.": "few words",
    "The Middle Years": "no end of a sentence",
    "it is also the name of:": "no end of a sentence",
    "* * * * *": "no end of a sentence",
    '"Yes, sir."': "few words",
    "He nodded and left.": "",
    "“Where to?” she asked. “Home.”": "",
    "他是北京人。": "",
    "这是什么": "no end of a sentence",
    "हम घर जा रहे हैं।": "",
    "[10] Sigon. 796. 12. 14.": "few letters",
    "In 1865 the war was over; 620,000 men were dead.": "",
    '|style="padding-left:0;text-align:left;"| 1990 est.': "few letters",
    "{{#ifeq:|.|A|a}}rchived from the original.": "markup",
    "4. Frank Thomas (121)<BR>.": "markup",
    "| Fore. | Middle. | Hind. |": "markup",
    "Where x < y and y > z, the order of the three is not known.": "",
    "In Mainz Gutenberg printed the Bible.": "",
    "This eBook is for the use of anyone under the Project Gutenberg License.": "licence",
    "Produced by Anna Smith and the Online Distributed Proofreading Team.": "licence",
}


def cleaned(text: str, cleaning: Cleaning = Cleaning(True), **marks) -> tuple[str, dict]:  # noqa: B008
    document, counts = cleaning(Document("test", text, False, **marks))
    return document.text, shares(counts)


@pytest.mark.parametrize(("line", "rule"), LINES.items())
def test_a_line_falls_under_the_rule_that_names_it(line: str, rule: str):
    text, taken = cleaned(f"{PROSE}\n{line}")
    assert text == PROSE.strip() + ("" if rule else f"\n{line}")
    assert list(taken) == ([rule] if rule else [])


def test_shares_count_lines_and_characters():
    _, taken = cleaned(f"{PROSE}\n\n  History.  \nThe Middle Years\nThe End")
    characters = len(PROSE.strip()) + 8 + 16 + 7
    assert taken["few words"] == {"lines": 1, "line_share": 0.25, "character_share": round(8 / characters, 6)}
    assert taken["no end of a sentence"]["lines"] == 2


def test_what_surrounds_a_book_is_left_out():
    begin, end = (f"*** {word} OF THE PROJECT GUTENBERG EBOOK EMMA ***" for word in ("START", "END"))
    licence = "You may copy it, give it away or re-use it."
    text, taken = cleaned(f"{licence}\n{begin}\n{PROSE}\n{end}\n{licence}\n{begin}\n{PROSE}\n{end}\n{licence}")
    assert text == f"{PROSE.strip()}\n{PROSE.strip()}"
    assert taken["licence"]["lines"] == 7
    assert cleaned(f"{PROSE}\n{licence}")[0].endswith(licence)  # without marks, nothing tells it from prose


def test_a_document_of_few_words_is_left_out():
    sentence = "One two three four five six seven eight nine ten."
    assert cleaned("\n".join([sentence] * 5))[0].count("\n") == 4
    text, taken = cleaned("\n".join([sentence] * 4 + ["A heading"]))
    assert text == ""
    assert {rule: found["lines"] for rule, found in taken.items()} == {"no end of a sentence": 1, "short documents": 4}


def test_documents_and_long_lines_are_kept_once():
    long, other = PROSE, PROSE.replace("river", "road")
    texts = [
        f"{long}\nHe nodded.",
        f"He nodded.\n{other}\n{long}",
        f"{long}\nHe nodded.",
        f"{other}\n  {other}",
        "He nodded.",
    ]
    counts = Counter[str]()
    found = list(marked((Document(str(number), text, False) for number, text in enumerate(texts)), 0, counts))
    assert [(document.source, document.duplicates) for document in found] == [
        ("0", ()), ("1", (2,)), ("3", (0, 1)), ("4", ()),
    ]  # fmt: skip
    assert shares(counts)["duplicate documents"]["lines"] == 2
    kept = [Cleaning(False, True)(document)[0].text for document in found]
    assert kept == [f"{long.strip()}\nHe nodded.", f"He nodded.\n{other.strip()}", "", "He nodded."]


def test_hashes_are_all_that_finding_duplicates_needs():
    document = Document("test", f"short\n{PROSE}", False)
    first, second = Duplicates(), line_hashes(document)
    assert second[0] == 0 < second[1] < 1 << 64
    assert (first.add(1, second), first.add(2, second), first.add(1, [])) == ((), (1,), None)


@pytest.fixture
def data(tmp_path: Path):
    data = get_config().data
    texts = [f"History.\n{PROSE}\n{PROSE.replace('river', f'stream {number}')}" for number in range(40)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in [*texts, texts[0]]))
    data.update(corpus="jsonl", files=str(tmp_path / "corpus.jsonl"), prepared=str(tmp_path / "prepared"))
    data.update(vocab_size=200, workers=1, sequence_length=32, validation_share=0.2, test_share=0.0)
    return data


def documents(prepared) -> dict[str, int]:
    return {split: counts["documents"] for split, counts in prepared.manifest["splits"].items()}


@pytest.mark.parametrize("masking", ["dynamic", "static"])
def test_the_report_counts_what_a_dataset_lacks(data, masking):
    data.masking = masking
    plain = prepare(data, 0, progress=False)
    data.update(clean="prose", deduplicate=True)
    prepared = prepare(data, 0, progress=False)
    assert prepared.directory != plain.directory
    assert prepared.tokenizer.content_hash == plain.tokenizer.content_hash  # learned from the text as it is
    removed = json.loads((prepared.directory / "report.json").read_text())["removed"]
    assert {rule: taken["lines"] for rule, taken in removed.items()} == {
        "duplicate documents": 3, "duplicate lines": 39, "few words": 40,
    }  # fmt: skip
    assert sum(documents(prepared).values()) == 40 == sum(documents(plain).values()) - 1
    text = (prepared.directory / "report.txt").read_text()
    assert "  duplicate lines                 39      31.71%" in text  # of 3 × 41
    assert "removed" not in json.loads((plain.directory / "report.json").read_text())


def test_held_out_documents_stay_held_out_and_too_clean_a_corpus_is_one_line(data):
    plain = documents(prepare(data, 0, progress=False))
    data.update(clean="prose")
    assert documents(prepare(data, 0, progress=False)) == plain
    Path(data.files).write_text('{"text": "A heading"}\n' * 5)
    with pytest.raises(UserError, match=r"no text to train on: check data.files, or data.clean=prose"):
        prepare(data, 0, progress=False)
