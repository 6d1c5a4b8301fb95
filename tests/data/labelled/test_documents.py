"""Documents with summaries: what a row can hold, which sentences a summary copies, what is refused."""

import json

import pytest

from bert_jax.config import UserError
from bert_jax.data.labelled.documents import document_examples

DOCUMENT = "Rates rose. The bank said so on Monday.\nShares fell. Rates rose again, by half."


def read(tmp_path, *rows):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(document_examples(str(path), text="document", summary="summary"))


def test_a_document_is_a_text_or_its_sentences(tmp_path):
    of_text, of_list = read(
        tmp_path, {"document": DOCUMENT, "summary": None}, {"document": ["One. Two", ""], "summary": ""}
    )
    assert of_text.sentences == (
        "Rates rose.",
        "The bank said so on Monday.",
        "Shares fell.",
        "Rates rose again, by half.",
    )
    assert of_list.sentences == ("One. Two", "") and of_list.origin.endswith("train.jsonl:2")
    assert (of_text.summary, of_text.chosen, of_list.summary) == (None, (), None)


def test_sentences_that_a_summary_copies_are_found(tmp_path):
    glued = "Rates rose again, by half.Shares  fell.The bank said so on Monday."
    copied, listed, numbered, partly, written = read(
        tmp_path,
        {"document": DOCUMENT, "summary": glued},
        {"document": DOCUMENT, "summary": ["Shares fell.", "Rates rose."]},
        {"document": DOCUMENT, "summary": [3, 0]},
        {"document": DOCUMENT, "summary": "The bank said so on Monday. Shares fell. And up."},
        {"document": DOCUMENT, "summary": "Shares fell. The bank has raised its rates by half a point."},
    )
    assert copied.chosen == (1, 2, 3), "in another order, without spaces; 'Rates rose.' is not in it"
    assert copied.summary == ("The bank said so on Monday.", "Shares fell.", "Rates rose again, by half.")
    assert listed.chosen == (0, 2) and numbered.chosen == (0, 3)
    assert numbered.summary == ("Rates rose.", "Rates rose again, by half.")
    assert partly.chosen == (1, 2) and partly.summary[2:] == ("And up.",), "the rest stays part of the reference"
    assert written.chosen == () and written.summary == (
        "Shares fell.",
        "The bank has raised its rates by half a point.",
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"document": " \n", "summary": "a"}, "column 'document' has no sentence: correct or leave out this row"),
        ({"document": [], "summary": "a"}, "column 'document' has no sentence"),
        ({"document": ["", "…"], "summary": "a"}, "column 'document' has no sentence"),
        ({"document": 3, "summary": "a"}, "column 'document' holds 3, no text"),
        ({"document": ["a", 1], "summary": "a"}, r"column 'document' holds \['a', 1\], no list of texts"),
        ({"document": "a", "summary": "..."}, r"column 'summary' holds '...', no words: correct this row"),
        ({"document": "a", "summary": [1]}, "column 'summary' holds '1'; it must be .* 0 to 0: correct this row"),
        ({"document": "a", "summary": [True]}, "column 'summary' holds 'True'"),
        ({"document": "a", "summary": 3}, "column 'summary' holds 3, no list of texts"),
        ({"text": "a", "summary": "a"}, "no column 'document'"),
    ],
)
def test_what_is_refused(tmp_path, row, message):
    with pytest.raises(UserError, match=f"train.jsonl:2: {message}"):
        read(tmp_path, {"document": "a", "summary": "a"}, row)
