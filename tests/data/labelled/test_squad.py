"""SQuAD's JSON and rows of questions: what is read, what is refused and where, whether answers are in place."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from bert_jax.config import UserError
from bert_jax.data.labelled.examples import Answer, QuestionExample
from bert_jax.data.labelled.squad import AnswerReport, check_answers, question_examples

CONTEXT = "Zoë was born in Köln."
ANSWERS = [{"text": "Köln", "answer_start": 16}, {"text": "in Köln", "answer_start": 13}]


def squad(*qas: Any) -> dict:
    paragraph = {"context": CONTEXT, "qas": list(qas)}
    return {
        "version": "v2.0",
        "data": [{"title": "Empty", "paragraphs": []}, {"title": "Zoë", "paragraphs": [paragraph]}],
    }


def written(path: Path, *values: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, values)))
    return path


def questions(spec: object) -> list[QuestionExample]:
    return list(question_examples(str(spec)))


def test_squad_json(tmp_path):
    content = squad(
        {"id": "a", "question": "Where?", "answers": ANSWERS},
        {"id": "b", "question": "When?", "answers": [], "is_impossible": True, "plausible_answers": ANSWERS},
        {"id": "c", "question": "Who?"},
    )
    path = written(tmp_path / "dev.json", content)
    where = f"{path}:data[1].paragraphs[0]"
    found = (Answer("Köln", 16), Answer("in Köln", 13))
    assert questions(path) == [
        QuestionExample(f"{where}.qas[0]", "a", "Where?", CONTEXT, found, False, "Zoë"),
        QuestionExample(f"{where}.qas[1]", "b", "When?", CONTEXT, (), True, "Zoë"),
        QuestionExample(f"{where}.qas[2]", "c", "Who?", CONTEXT, (), False, "Zoë"),
    ]
    packed = tmp_path / "dev.json.gz"
    packed.write_bytes(gzip.compress(json.dumps(content, indent=2).encode()))
    assert [example.id for example in questions(packed)] == ["a", "b", "c"]
    assert check_answers(questions(path)) == AnswerReport(3, 1, 1, 2, 0, "")


def test_half_a_surrogate_pair_is_replaced_and_offsets_stay(tmp_path):
    answer = {"text": "born", "answer_start": 5}
    content = squad({"id": "a", "question": "\ud83d?", "answers": [answer]})
    content["data"][1]["paragraphs"][0]["context"] = "\U0001f600 \ude00, born"
    (example,) = questions(written(tmp_path / "a.json", content))
    assert (example.question, example.context) == ("\ufffd?", "\U0001f600 \ufffd, born")
    assert check_answers([example]).num_misplaced == 0


def test_rows(tmp_path):
    rows = [
        {"question": "Where?", "context": CONTEXT},
        {"id": 7, "question": "Where?", "context": CONTEXT, "title": "Zoë", "answers": ANSWERS[:1]},
        {"id": "n", "question": "When?", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
        {"id": "u", "question": "When?", "context": CONTEXT, "answers": None},
    ]
    path = written(tmp_path / "a.jsonl", *rows)
    assert questions(path) == [
        QuestionExample(f"{path}:1", f"{path}:1", "Where?", CONTEXT),
        QuestionExample(f"{path}:2", "7", "Where?", CONTEXT, (Answer("Köln", 16),), False, "Zoë"),
        QuestionExample(f"{path}:3", "n", "When?", CONTEXT, (), True),
        QuestionExample(f"{path}:4", "u", "When?", CONTEXT),
    ]


def test_parquet_as_hugging_face_stores_it(tmp_path):
    answers = {"text": ["Köln"], "answer_start": [16]}
    row = {"id": "a", "title": "Zoë", "context": CONTEXT, "question": "Where?", "answers": answers}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert questions(tmp_path / "a.parquet")[0].answers == (Answer("Köln", 16),)


QUESTION = {"id": "a", "question": "Where?", "answers": ANSWERS}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"dev.json: no 'data' \(it is a list\)"),
        ({"questions": []}, r"dev.json: no 'data' \(keys: questions\)"),
        ({"data": {}}, "dev.json.data: a dict, where SQuAD's form has a list"),
        ({"data": []}, "dev.json has no questions"),
        ({"data": [{"title": "x"}]}, r"dev.json:data\[0\]: no 'paragraphs' \(keys: title\)"),
        ({"data": ["x"]}, r"dev.json:data\[0\]: no 'paragraphs' \(it is a str\)"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, r"data\[0\].paragraphs\[0\]: no 'context'"),
        (squad({"id": "a"}), r"data\[1\].paragraphs\[0\].qas\[0\]: no 'question'"),
        (squad(QUESTION | {"question": 3}), r"qas\[0\].question: a int, where SQuAD's form has a str"),
        (squad(QUESTION | {"id": None}), r"qas\[0\].id: None is no text"),
        (squad(QUESTION | {"answers": "Köln"}), r"qas\[0\].answers: a str, where SQuAD's form has a list"),
        (squad(QUESTION | {"answers": [{"text": "Köln"}]}), r"qas\[0\].answers\[0\]: no 'answer_start'"),
        (squad(QUESTION | {"answers": [{"text": "a", "answer_start": "3"}]}), r"answer_start: a str, where .* a int"),
        (squad(QUESTION | {"answers": [{"text": "a", "answer_start": True}]}), "answer_start: a bool, where"),
        (squad(QUESTION | {"answers": [{"text": "", "answer_start": 3}]}), r"answers\[0\]: an answer has a text"),
        (squad(QUESTION | {"answers": [{"text": "a", "answer_start": -1}]}), r"answers\[0\]: an answer has .* -1"),
        (squad(QUESTION | {"answers": {"text": ["a"], "answer_start": []}}), "answers: 1 texts and 0 answer_start"),
        (squad(QUESTION | {"is_impossible": True}), r"qas\[0\]: is_impossible, and has answers"),
        (squad(QUESTION | {"is_impossible": "no"}), "is_impossible: a str, where SQuAD's form has a bool"),
        (squad(QUESTION, QUESTION), r"qas\[1\]: id 'a' is also that of .*qas\[0\]"),
    ],
)
def test_mistakes_name_their_place(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as caught:
        questions(written(tmp_path / "dev.json", content))
    assert str(tmp_path / "dev.json") in str(caught.value) and "\n" not in str(caught.value)


def test_mistakes_in_files(tmp_path):
    cut = tmp_path / "cut.json"
    cut.write_text('{"data": [\n{"title": "x", ')
    with pytest.raises(UserError, match=r"cut.json: not whole JSON \(.*line 2 "):
        questions(cut)
    lines = written(tmp_path / "lines.json", {"question": "q", "context": "c"}, {"question": "q", "context": "c"})
    with pytest.raises(UserError, match=r"lines.json: not whole JSON .*call a file of lines .jsonl"):
        questions(lines)
    rows = written(tmp_path / "a.jsonl", {"question": "q", "context": "c"}, {"question": "q", "contxt": "c"})
    with pytest.raises(UserError, match=r"a.jsonl:2: no column 'context' \(did you mean 'contxt'"):
        questions(rows)
    for name in ("one", "two"):
        written(tmp_path / f"{name}.json", squad(QUESTION))
    with pytest.raises(UserError, match=r"two.json:data.*id 'a' is also that of .*one.json:data"):
        questions(f"{tmp_path}/one.json,{tmp_path}/two.json")


def answered(*answers: Answer) -> QuestionExample:
    return QuestionExample("dev.json:data[0]", "a", "Where?", CONTEXT, answers)


def test_misplaced_answers():
    right, wrong = Answer("Köln", 16), Answer("Köln", 18)  # 18: as bytes are counted
    report = check_answers([answered(right), answered(right, right, wrong, right)])
    assert report == AnswerReport(2, 0, 0, 5, 1, "dev.json:data[0]: at character 18 is 'ln.', not 'Köln'")
    with pytest.raises(UserError, match=r"2 of 5 answers are not .* e.g. dev.json:data.0.: at character 18 is 'ln.'"):
        check_answers([answered(right, right, right, wrong, wrong)])
    assert check_answers([]) == AnswerReport(0, 0, 0, 0, 0, "")


@given(st.text("aé漢\u2028\U0001f600 ", min_size=1), st.data())
def test_every_slice_of_a_context_is_found_at_its_place(context, data):
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, len(context)))
    example = QuestionExample("x", "a", "?", context, (Answer(context[start:end], start),))
    assert check_answers([example]).num_misplaced == 0


def test_the_development_sets(shared_data):
    folder = shared_data("squad_dev")
    found = {
        version: questions(next(folder.rglob(f"dev-{version}.reconstructed.json"))) for version in ("v1.1", "v2.0")
    }
    assert check_answers(found["v1.1"]) == AnswerReport(10_570, 0, 0, 34_726, 0, "")
    assert check_answers(found["v2.0"]) == AnswerReport(11_873, 5_945, 0, 20_302, 0, "")
    assert len({example.title for example in found["v1.1"]}) == 48
