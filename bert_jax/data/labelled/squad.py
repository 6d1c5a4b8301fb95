"""Questions with answers in a context: SQuAD v1.1 and v2.0 JSON, or one question per row."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bert_jax.config import UserError
from bert_jax.data.labelled.columns import text_in
from bert_jax.data.labelled.examples import Answer, QuestionExample
from bert_jax.data.labelled.tables import find_data_files, read_rows, suffix_of
from bert_jax.data.text.text_files import json_value, read_lines

_MAX_MISPLACED = 0.2  # share of answers; SQuAD has none, sets that were translated or rebuilt have some


@dataclass(frozen=True, slots=True)
class AnswerReport:
    num_questions: int
    num_impossible: int
    num_unanswered: int  # neither answers nor is_impossible
    num_answers: int
    num_misplaced: int  # answers that are not in the context at their offset
    first_misplaced: str  # says where and what; "" if there is none


def question_examples(spec: str) -> Iterator[QuestionExample]:
    """Yields the questions of `spec`, see `tables.read_rows`.

    A .json file is SQuAD's own: {"data": [{"title", "paragraphs": [{"context", "qas"}]}]}. Elsewhere a row has
    `question` and `context`, and may have `id` (else its origin), `title`, `is_impossible` and `answers` ([{"text",
    "answer_start"}], or {"text": [], "answer_start": []}).

    Answers may be missing, as in a test set. Without `is_impossible` a row whose answers are an empty list is
    impossible, as in Hugging Face's copy of SQuAD 2.0. Raises UserError, with the place in the JSON, for what has
    another shape, for contradictions and for an id that occurs twice.
    """
    seen: dict[str, str] = {}
    for example in _read(spec):
        if example.id in seen:
            raise UserError(f"{example.origin}: id {example.id!r} is also that of {seen[example.id]}: make ids unique")
        seen[example.id] = example.origin
        yield example


def check_answers(examples: Iterable[QuestionExample]) -> AnswerReport:
    """Returns counts of questions and answers. Raises UserError if more than a fifth of the answers are not in the
    context at their offset."""
    questions = impossible = unanswered = answers = misplaced = 0
    first = ""
    for example in examples:
        questions += 1
        impossible += example.is_impossible
        unanswered += not example.answers and not example.is_impossible
        for answer in example.answers:
            answers += 1
            found = example.context[answer.start : answer.start + len(answer.text)]
            if found != answer.text:
                misplaced += 1
                first = first or f"{example.origin}: at character {answer.start} is {found!r}, not {answer.text!r}"
    if misplaced > _MAX_MISPLACED * answers:
        raise UserError(
            f"{misplaced} of {answers} answers are not in the context at their answer_start, e.g. {first}: offsets "
            "count characters, not bytes, from 0"
        )
    return AnswerReport(questions, impossible, unanswered, answers, misplaced, first)


def _read(spec: str) -> Iterator[QuestionExample]:
    if spec.startswith("tfds:"):
        yield from _read_rows(spec)
        return
    for path in find_data_files(spec):
        yield from (
            squad_questions(str(path), "\n".join(read_lines(path)))
            if suffix_of(path) == ".json"
            else _read_rows(str(path))
        )


def _read_rows(spec: str) -> Iterator[QuestionExample]:
    for row in read_rows(spec):
        yield _example(row.origin, row.values, text_in(row, "context"), "")


def squad_questions(name: str, content: str) -> Iterator[QuestionExample]:
    """Yields the questions of SQuAD's JSON; `name` is that of the file, for messages."""
    try:
        whole = json_value(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not whole JSON ({error}): get it again, or call a file of lines .jsonl") from error
    where = f"{name}:data"
    number = 0
    for i, article in enumerate(_field(whole, "data", list, name)):
        paragraphs = _field(article, "paragraphs", list, f"{where}[{i}]")
        title = _field(article, "title", str, f"{where}[{i}]") if "title" in article else ""
        for j, paragraph in enumerate(paragraphs):
            origin = f"{where}[{i}].paragraphs[{j}]"
            context = _field(paragraph, "context", str, origin)
            for k, question in enumerate(_field(paragraph, "qas", list, origin)):
                number += 1
                yield _example(f"{origin}.qas[{k}]", question, context, title)
    if not number:
        raise UserError(f"{name} has no questions: correct or leave out this file")


def _example(origin: str, fields: Any, context: str, title: str) -> QuestionExample:
    question = _field(fields, "question", str, origin)
    answers = _answers(origin, fields) if fields.get("answers") is not None else None
    impossible = _field(fields, "is_impossible", bool, origin) if "is_impossible" in fields else answers == ()
    if impossible and answers:
        raise UserError(f"{origin}: is_impossible, and has answers: correct this question")
    return QuestionExample(
        origin,
        _id(origin, fields["id"]) if "id" in fields else origin,
        question,
        context,
        answers or (),
        impossible,
        _field(fields, "title", str, origin) if "title" in fields else title,
    )


def _id(origin: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{origin}.id: {value!r} is no text and no whole number: correct it")
    return str(value)


def _answers(origin: str, fields: dict[str, Any]) -> tuple[Answer, ...]:
    found = fields["answers"]
    if isinstance(found, dict):  # a list of each, as TFDS and Hugging Face store it
        texts = _field(found, "text", list, f"{origin}.answers")
        starts = _field(found, "answer_start", list, f"{origin}.answers")
        if len(texts) != len(starts):
            raise UserError(f"{origin}.answers: {len(texts)} texts and {len(starts)} answer_start: correct them")
        found = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    answers = []
    for number, answer in enumerate(_field({"answers": found}, "answers", list, origin)):
        place = f"{origin}.answers[{number}]"
        text, start = _field(answer, "text", str, place), _field(answer, "answer_start", int, place)
        if not text or start < 0:
            raise UserError(f"{place}: an answer has a text and an answer_start from 0; it has {text!r} and {start}")
        answers.append(Answer(text, start))
    return tuple(answers)


def _field(record: Any, name: str, kind: type, where: str) -> Any:
    if not isinstance(record, dict) or name not in record:
        has = f"keys: {', '.join(record)}" if isinstance(record, dict) else f"it is a {type(record).__name__}"
        raise UserError(f"{where}: no {name!r} ({has}): is this SQuAD's form?")
    value = record[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(
            f"{where}.{name}: a {type(value).__name__}, where SQuAD's form has a {kind.__name__}: correct it"
        )
    return value
