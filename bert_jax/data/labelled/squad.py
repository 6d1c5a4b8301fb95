"""Questions with answers in a context: SQuAD v1.1 and v2.0 JSON, or one question per row."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_jax.config import Json, UserError
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
    examples = list(examples)
    answers = [(example, answer) for example in examples for answer in example.answers]
    misplaced = [(e, a, shown) for e, a in answers if (shown := e.context[a.start : a.start + len(a.text)]) != a.text]
    first = ""
    if misplaced:
        example, answer, shown = misplaced[0]
        first = f"{example.origin}: at character {answer.start} is {shown!r}, not {answer.text!r}"
    if len(misplaced) > _MAX_MISPLACED * len(answers):
        raise UserError(
            f"{len(misplaced)} of {len(answers)} answers are not in the context at their answer_start, e.g. {first}: "
            "offsets count characters, not bytes, from 0"
        )
    impossible = sum(example.is_impossible for example in examples)
    unanswered = sum(not example.answers and not example.is_impossible for example in examples)
    return AnswerReport(len(examples), impossible, unanswered, len(answers), len(misplaced), first)


def _read(spec: str) -> Iterator[QuestionExample]:
    for source in [spec] if spec.startswith("tfds:") else find_data_files(spec):
        if isinstance(source, Path) and suffix_of(source) == ".json":
            yield from squad_questions(str(source), "\n".join(read_lines(source)))
        else:
            rows = read_rows(str(source))
            yield from (_example(row.origin, row.values, text_in(row, "context"), "") for row in rows)


def squad_questions(name: str, content: str) -> Iterator[QuestionExample]:
    """Yields the questions of SQuAD's JSON; `name` is that of the file, for messages."""
    try:
        whole = json_value(content)
    except ValueError as error:
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
    if isinstance(name := fields.get("id", origin), bool) or not isinstance(name, str | int):
        raise UserError(f"{origin}.id: {name!r} is no text and no whole number: correct it")
    title = _field(fields, "title", str, origin) if "title" in fields else title
    return QuestionExample(origin, str(name), question, context, answers or (), impossible, title)


def _answers(origin: str, fields: Json) -> tuple[Answer, ...]:
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


def _field(record: object, name: str, kind: type, where: str) -> Any:
    if not isinstance(record, dict) or name not in record:
        has = f"keys: {', '.join(record)}" if isinstance(record, dict) else f"it is a {type(record).__name__}"
        raise UserError(f"{where}: no {name!r} ({has}): is this SQuAD's form?")
    value = record[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        wrong = f"a {type(value).__name__}, where SQuAD's form has a {kind.__name__}"
        raise UserError(f"{where}.{name}: {wrong}: correct it")
    return value
