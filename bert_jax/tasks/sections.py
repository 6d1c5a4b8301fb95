"""What a family adds to the report of an evaluation: tables and figures as data, which `lab/run_page.py` draws."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bert_jax.config import Json
from bert_jax.data.labelled.examples import (
    ChoiceExample,
    DocumentExample,
    QuestionExample,
    TaggedExample,
    TextExample,
    WritingExample,
)
from bert_jax.tasks import scores
from bert_jax.tasks.squad_scores import question_scores
from bert_jax.tasks.text_scores import Scorer

WORST = 20  # errors that are shown
_CONFUSIONS = 10
_LENGTHS = 5  # groups of examples by length
_LONG = 1_000  # characters of a text that are shown
_NO_ANSWER = "(no answer)"
BY_LANGUAGE = "Scores by language"  # a title
_COLUMNS = ("precision", "recall", "F1", "examples")

Prediction = Json

# Kinds of cells: the best of its column; a verdict; something that needs your attention.
KINDS = (BEST, BETTER, WORSE, UNCLEAR, PROBLEM) = ("best", "better", "worse", "unclear", "problem")


class Marked(NamedTuple):
    """A cell with the words of a sentence; those whose predicted tag is wrong are marked with both tags."""

    words: Sequence[str]
    gold: Sequence[str]
    predicted: Sequence[str]


class Cell(NamedTuple):
    """A cell that stands out: its kind, one of KINDS, and a small second line."""

    text: str
    kind: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells; `numbers` are the columns that are aligned as numbers."""

    header: Sequence[str | Cell]
    rows: Sequence[Sequence[str | Cell | Marked]]
    numbers: Collection[int] = ()


class Confusions(NamedTuple):
    """Counts of predictions per label: a row is the right label, a column the predicted one."""

    counts: Int[np.ndarray, "C C"]
    labels: Sequence[str]


class Scatter(NamedTuple):
    """Predicted numbers against the given ones."""

    gold: Float[np.ndarray, " N"]
    predicted: Float[np.ndarray, " N"]


class ThresholdCurve(NamedTuple):
    """Exact match and F1 (columns) of each question if it is answered and if it is declined."""

    null_odds: Float[np.ndarray, " N"]
    answered: Float[np.ndarray, "N 2"]
    declined: Float[np.ndarray, "N 2"]


@dataclass(frozen=True)
class Section:
    """A heading with one table or figure below it."""

    title: str
    body: Table | Confusions | Scatter | ThresholdCurve | None = None
    note: str = ""


@dataclass(frozen=True)
class Report:
    """A task's part of the report: one JSON-able record per example, and the sections of the page."""

    records: Sequence[Mapping[str, Any]]
    sections: Sequence[Section] = ()


def by_language(metrics: Mapping[str, float], counts: Mapping[str, int]) -> list[Section]:
    """Returns the section of the metrics <language>/<name>: a row for each of `counts`, the examples of a language; no
    section without languages."""
    found = {one: {n.partition("/")[2]: x for n, x in metrics.items() if n.startswith(f"{one}/")} for one in counts}
    names = list(dict.fromkeys(name for scores in found.values() for name in scores))
    rows = [[one, counts[one], *(scores.get(name, "") for name in names)] for one, scores in found.items()]
    return [Section(BY_LANGUAGE, _table(["language", "examples", *names], rows))] if rows else []


def classes(labels: Sequence[str], examples: Sequence[TextExample], predictions: Sequence[Prediction]) -> list[Section]:
    """Returns the sections of a choice among labels."""
    rows = [
        (e.origin, _text(e), str(e.label), p["probabilities"][str(e.label)], p["label"], p["probability"])
        for e, p in zip(examples, predictions, strict=True)
    ]
    wrong = sorted((row for row in rows if row[2] != row[4]), key=itemgetter(3))
    errors = _errors(["where", "text", "label", "p", "predicted", "p"], wrong, len(rows), "least likely label first")
    return [*_confusions(labels, [row[2] for row in rows], [row[4] for row in rows]), errors]


def label_sets(
    labels: Sequence[str],
    thresholds: Sequence[float],
    examples: Sequence[TextExample],
    gold: np.ndarray,
    probabilities: np.ndarray,
) -> list[Section]:
    """Returns the sections of labels that are each given from a threshold on; `gold` is bool[N, C]."""
    given = probabilities >= np.asarray(thresholds)
    table = scores.per_label_table(gold, given, labels)
    by_label = [[label, *_scores_of(table[label]), t] for label, t in zip(labels, thresholds, strict=True)]
    losses = -np.log(np.clip(np.where(gold, probabilities, 1 - probabilities), 1e-12, None)).mean(axis=1)
    names = np.asarray(labels, object)
    wrong = [
        (e.origin, _text(e), ", ".join(names[right]), ", ".join(names[found]), loss)
        for e, right, found, loss in zip(examples, gold, given, losses.tolist(), strict=True)
        if (right != found).any()
    ]
    wrong.sort(key=lambda row: -row[4])
    return [
        Section("Labels, each given from its own threshold on", _table(["label", *_COLUMNS, "threshold"], by_label)),
        _errors(["where", "text", "labels", "predicted", "loss"], wrong, len(examples), "highest loss first"),
    ]


def numbers(examples: Sequence[TextExample], predictions: Sequence[Prediction]) -> list[Section]:
    """Returns the sections of a regression."""
    gold = np.asarray([example.label for example in examples], np.float64)
    given = np.asarray([prediction["value"] for prediction in predictions])
    order = np.argsort(-np.abs(gold - given), kind="stable")[:WORST]
    rows = [(examples[i].origin, _text(examples[i]), float(gold[i]), float(given[i])) for i in order]
    errors = _table(["where", "text", "given", "predicted"], rows)
    return [Section("Predicted numbers", Scatter(gold, given)), Section("Furthest from the given number", errors)]


def tags(
    labels: Sequence[str], examples: Sequence[TaggedExample], predictions: Sequence[Prediction], has_entities: bool
) -> list[Section]:
    """Returns the sections of a tagger: by type of entity, or by tag."""
    gold = [list(example.tags or ()) for example in examples]
    given = [prediction["tags"] for prediction in predictions]
    flat = [[tag for sentence in lists for tag in sentence] for lists in (gold, given)]
    if has_entities:
        rows = [[name, *_scores_of(line)] for name, line in scores.entity_table(gold, given).items()]
        kinds = [[tag.removeprefix("B-").removeprefix("I-") for tag in one] for one in flat]
        names = ["O", *sorted({*kinds[0], *kinds[1]} - {"O"})]
        parts = [Section("Entities", _table(["type", *_COLUMNS], rows))]
        parts += _confusions(names, kinds[0], kinds[1], "Words by type of their entity", with_scores=False)
    else:
        parts = _confusions(labels, flat[0], flat[1])

    def confidence(i: int) -> float:
        words = zip(gold[i], given[i], predictions[i]["probabilities"], strict=True)
        return max(probability for tag, other, probability in words if tag != other)

    wrong = sorted((i for i in range(len(gold)) if gold[i] != given[i]), key=confidence, reverse=True)
    cells = [(examples[i].origin, Marked(examples[i].words, gold[i], given[i])) for i in wrong]
    header = ["where", "words, the wrong ones as word/given tag/predicted tag"]
    return [*parts, _errors(header, cells, len(gold), "most confident errors first")]


def questions(examples: Sequence[QuestionExample], predictions: Sequence[Prediction]) -> list[Section]:
    """Returns the sections of answers by the rules of SQuAD 2.0, in per cent."""

    def exact_and_f1(answers: Sequence[str]) -> Float[np.ndarray, "N 2"]:
        by_id = {example.id: answer for example, answer in zip(examples, answers, strict=True)}
        _, exact, f1 = question_scores(examples, by_id, is_v2=True)
        return 100.0 * np.stack([exact, f1], axis=1)

    parts = []
    if "null_odds" in predictions[0]:
        odds = np.asarray([prediction["null_odds"] for prediction in predictions])
        best = [prediction["n_best"][0]["text"] if prediction["n_best"] else "" for prediction in predictions]
        curve = ThresholdCurve(odds, exact_and_f1(best), exact_and_f1([""] * len(examples)))
        note = "A question is answered where the score of no answer is at most this far above that of the best answer."
        parts = [Section("Threshold of no answer", curve, note)]
    found = exact_and_f1([prediction["answer"] for prediction in predictions]).tolist()
    wrong = [(f1, e, p) for (exact, f1), e, p in zip(found, examples, predictions, strict=True) if not exact]
    wrong.sort(key=lambda one: (one[0], -one[2]["probability"]))
    rows = []
    for f1, example, prediction in wrong:
        answers = " | ".join(dict.fromkeys(answer.text for answer in example.answers)) or _NO_ANSWER
        given = prediction["answer"] or _NO_ANSWER, prediction["probability"], round(f1)
        rows.append((example.id, example.question, answers, *given, _cut(example.context)))
    header = ["id", "question", "answers", "predicted", "p", "F1", "context"]
    return [*parts, _errors(header, rows, len(examples), "lowest F1, then most confident first")]


def choices(examples: Sequence[ChoiceExample], predictions: Sequence[Prediction]) -> list[Section]:
    """Returns the section of a choice among endings."""
    rows = [
        (e.origin, _cut(f"{e.context} {e.ending_start}"), e.choices[e.label or 0], p["text"], p["probability"])
        for e, p in zip(examples, predictions, strict=True)
        if e.label != p["choice"]
    ]
    rows.sort(key=lambda row: -row[4])
    return [_errors(["where", "context", "right", "predicted", "p"], rows, len(examples), "most confident first")]


def writing(examples: Sequence[WritingExample], texts: Sequence[str], scorer: Scorer) -> list[Section]:
    """Returns the sections of texts that were written: examples from the best to the worst, and scores by length."""
    references = [example.target or "" for example in examples]
    each = scorer.of_each(texts, references)
    order = np.argsort(-np.asarray(each), kind="stable")
    shown = order[np.unique(np.linspace(0, len(order) - 1, WORST).round().astype(int))]
    sources = [" ‖ ".join(example.source) for example in examples]
    rows = [
        (examples[i].origin, _cut(sources[i]), _cut(references[i]), _cut(texts[i]), each[i]) for i in map(int, shown)
    ]
    name = {"translation": "chrF", "summary": "ROUGE-L"}.get(scorer.kind, "equal")
    note = f"{len(shown)} of {len(texts)} written texts, evenly from the best to the worst by the last column."
    table = _table(["where", "source", "reference", "written", name], rows)
    parts = [Section("Source, reference and written text", table, note)]
    if not scorer.names:
        return parts
    by_length = []
    for group in np.array_split(np.argsort([len(source) for source in sources], kind="stable"), _LENGTHS):
        if len(group):
            own, wanted = [texts[int(i)] for i in group], [references[int(i)] for i in group]
            ratio = sum(map(len, own)) / max(sum(map(len, wanted)), 1)
            found = scorer(own, wanted).scores.values()
            span = f"{len(sources[group[0]])} to {len(sources[group[-1]])}"
            by_length.append((span, len(group), *found, ratio))
    header = ["characters of the source", "examples", *scorer.names, "written ÷ wanted characters"]
    return [*parts, Section("Scores by length of the source", _table(header, by_length), scorer(texts, references)[1])]


def extracts(
    examples: Sequence[DocumentExample],
    predictions: Sequence[Prediction],
    metrics: Mapping[str, float],
    names: Sequence[str],
) -> list[Section]:
    """Returns the sections of extractive summaries: the model beside the baselines, by the metrics that are called
    `names` and "lead_" + name, …; and summaries beside the given ones."""
    methods = {"the model": "", "first sentences": "lead_", "random sentences": "random_", "oracle": "oracle_"}
    rows = [[title, *(metrics[f"{prefix}{name}"] for name in names)] for title, prefix in methods.items()]
    note = "F-measures in per cent, at the same length. The oracle chooses sentences knowing the given summary."
    cells, right = [], []
    for example, prediction in zip(examples, predictions, strict=True):
        own = {sentence["number"] for sentence in prediction["sentences"]}
        right.append(len(own & set(example.chosen)) / max(1, len(own)))
        chosen = [sentence["text"] for sentence in prediction["sentences"]]
        cells.append((example.origin, _cut(" • ".join(chosen)), _cut(" • ".join(example.summary or ())), right[-1]))
    cells.sort(key=lambda row: row[-1])
    header = ["where", "chosen", "given", "labelled share"]
    share = f"On average {100 * float(np.mean(right)):.1f} % of the chosen sentences are labelled; "
    shown = Section("Summaries", _table(header, cells[:WORST]), f"{share}up to {WORST} documents, fewest first.")
    return [Section("ROUGE", _table(["", *names], rows), note), shown]


def _confusions(
    labels: Sequence[str], gold: list[str], given: list[str], title: str = "Confusions", *, with_scores: bool = True
) -> list[Section]:
    if len(labels) < 2:
        return []
    number = {label: i for i, label in enumerate(labels)}
    gold_ids, given_ids = (np.asarray([number[name] for name in names]) for names in (gold, given))
    parts = [Section(title, Confusions(scores.confusion(gold_ids, given_ids, labels), labels))]
    pairs = Counter((one, other) for one, other in zip(gold, given, strict=True) if one != other)
    rows = [(one, other, count) for (one, other), count in pairs.most_common(_CONFUSIONS)]
    if len(labels) > 2 and rows:
        parts.append(Section("Most frequent confusions", _table(["label", "predicted", "times"], rows)))
    if with_scores:
        by_label = scores.per_label_table(gold_ids, given_ids, labels)
        rows = [(label, *_scores_of(by_label[label])) for label in labels]
        parts.append(Section("Labels", _table(["label", *_COLUMNS], rows)))
    return parts


def _errors(header: Sequence[str], wrong: Sequence[Sequence[object]], count: int, order: str) -> Section:
    share = 100 * len(wrong) / count
    note = f"{len(wrong)} of {count} are wrong ({share:.1f} %); up to {WORST} of them here, {order}."
    return Section("Errors", _table(header, wrong[:WORST]) if wrong else None, note)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Returns the rows as a table, in which a float has three decimals and every number is aligned as one."""
    numbers = {column for row in rows[:1] for column, cell in enumerate(row) if isinstance(cell, int | float)}

    def text(cell: object) -> Any:
        if isinstance(cell, float):  # NumPy's float64 too, from a task of the user's
            return f"{cell:.3f}"
        return str(cell) if isinstance(cell, int) else cell

    return Table(header, [[text(cell) for cell in row] for row in rows], numbers)


def _scores_of(line: Mapping[str, float]) -> tuple[float, float, float, int]:
    return line["precision"], line["recall"], line["f1"], int(line["support"])


def _text(example: TextExample) -> str:
    parts = [example.text] if example.text_pair is None else [example.text, example.text_pair]
    shown = " ‖ ".join(map(_cut, parts))
    return shown if example.vectors is None else f"{shown} [{example.vectors.name}]".lstrip()


def _cut(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[:_LONG]} …"
