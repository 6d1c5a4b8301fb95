"""What a family adds to the report of an evaluation: tables and figures as data, which `lab/report.py` draws."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bert_jax.data.labelled.examples import ChoiceExample, QuestionExample, TaggedExample, TextExample
from bert_jax.tasks import scores
from bert_jax.tasks.squad_scores import squad_scores

WORST = 20  # errors that are shown
_CONFUSIONS = 10
_LONG = 1_000  # characters of a text that are shown
_COLUMNS = ("precision", "recall", "F1", "examples")

Prediction = dict[str, Any]


class Marked(NamedTuple):
    """A cell with the words of a sentence; those whose predicted tag is wrong are marked with both tags."""

    words: Sequence[str]
    gold: Sequence[str]
    predicted: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of cells; `numbers` are the columns that are aligned as numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Marked]]
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
    sections: Sequence[Section] = field(default_factory=list)


def classes(labels: Sequence[str], examples: Sequence[TextExample], predictions: Sequence[Prediction]) -> list[Section]:
    """Returns the sections of a choice among labels."""
    gold = [str(example.label) for example in examples]
    given = [prediction["label"] for prediction in predictions]
    wrong = [i for i in range(len(gold)) if gold[i] != given[i]]
    wrong.sort(key=lambda i: predictions[i]["probabilities"][gold[i]])
    rows = [
        [
            *(examples[i].origin, _text(examples[i]), gold[i], f"{predictions[i]['probabilities'][gold[i]]:.3f}"),
            *(given[i], f"{predictions[i]['probability']:.3f}"),
        ]
        for i in wrong[:WORST]
    ]
    table = Table(["where", "text", "label", "p", "predicted", "p"], rows, {3, 5})
    return [*_confusions(labels, gold, given), _errors(len(wrong), len(gold), table, "least likely label first")]


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
    rows = [[label, *_scores_of(table[label]), f"{t:.3f}"] for label, t in zip(labels, thresholds, strict=True)]
    by_label = Table(["label", *_COLUMNS, "threshold"], rows, range(1, 6))
    loss = -np.log(np.clip(np.where(gold, probabilities, 1 - probabilities), 1e-12, None)).mean(axis=1)
    wrong = [int(i) for i in np.argsort(-loss, kind="stable") if (gold[i] != given[i]).any()]
    names = np.asarray(labels, object)
    rows = [
        [
            *(examples[i].origin, _text(examples[i])),
            *(", ".join(names[gold[i]]), ", ".join(names[given[i]]), f"{loss[i]:.3f}"),
        ]
        for i in wrong[:WORST]
    ]
    errors = Table(["where", "text", "labels", "predicted", "loss"], rows, {4})
    return [
        Section("Labels, each given from its own threshold on", by_label),
        _errors(len(wrong), len(examples), errors, "highest loss first"),
    ]


def numbers(examples: Sequence[TextExample], predictions: Sequence[Prediction]) -> list[Section]:
    """Returns the sections of a regression."""
    gold = np.asarray([example.label for example in examples], np.float64)
    given = np.asarray([prediction["value"] for prediction in predictions])
    order = np.argsort(-np.abs(gold - given), kind="stable")[:WORST]
    rows = [[examples[i].origin, _text(examples[i]), f"{gold[i]:.3f}", f"{given[i]:.3f}"] for i in order]
    errors = Table(["where", "text", "given", "predicted"], rows, {2, 3})
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
        parts = [Section("Entities", Table(["type", *_COLUMNS], rows, range(1, 5)))]
        parts += _confusions(names, *kinds, with_scores=False, title="Words by type of their entity")
    else:
        parts = _confusions(labels, *flat)
    wrong = [i for i in range(len(gold)) if gold[i] != given[i]]
    wrong.sort(key=lambda i: -_confidence_in_errors(gold[i], predictions[i]))
    cells = [[examples[i].origin, Marked(examples[i].words, gold[i], given[i])] for i in wrong[:WORST]]
    table = Table(["where", "words, the wrong ones as word/given tag/predicted tag"], cells)
    return [*parts, _errors(len(wrong), len(gold), table, "most confident errors first")]


def questions(examples: Sequence[QuestionExample], predictions: Sequence[Prediction]) -> list[Section]:
    """Returns the sections of answers by the rules of SQuAD 2.0, in per cent."""
    parts = []
    if "null_odds" in predictions[0]:
        best = [prediction["n_best"][0]["text"] if prediction["n_best"] else "" for prediction in predictions]
        curve = ThresholdCurve(
            np.asarray([prediction["null_odds"] for prediction in predictions]),
            np.asarray([_exact_and_f1(example, text) for example, text in zip(examples, best, strict=True)]),
            np.asarray([_exact_and_f1(example, "") for example in examples]),
        )
        note = "A question is answered where the score of no answer is at most this far above that of the best answer."
        parts = [Section("Threshold of no answer", curve, note)]
    found = [_exact_and_f1(example, p["answer"]) for example, p in zip(examples, predictions, strict=True)]
    wrong = [i for i, (exact, _) in enumerate(found) if not exact]
    wrong.sort(key=lambda i: (found[i][1], -predictions[i]["probability"]))
    rows = [
        [
            *(examples[i].id, examples[i].question),
            " | ".join(dict.fromkeys(answer.text for answer in examples[i].answers)) or "(no answer)",
            *(predictions[i]["answer"] or "(no answer)", f"{predictions[i]['probability']:.3f}"),
            *(f"{found[i][1]:.0f}", _cut(examples[i].context)),
        ]
        for i in wrong[:WORST]
    ]
    errors = Table(["id", "question", "answers", "predicted", "p", "F1", "context"], rows, {4, 5})
    return [*parts, _errors(len(wrong), len(examples), errors, "lowest F1, then most confident first")]


def choices(examples: Sequence[ChoiceExample], predictions: Sequence[Prediction]) -> list[Section]:
    """Returns the section of a choice among endings."""
    wrong = [i for i, example in enumerate(examples) if example.label != predictions[i]["choice"]]
    wrong.sort(key=lambda i: -predictions[i]["probability"])
    rows = [
        [
            *(examples[i].origin, _cut(f"{examples[i].context} {examples[i].ending_start}")),
            *(examples[i].choices[examples[i].label or 0], predictions[i]["text"]),
            f"{predictions[i]['probability']:.3f}",
        ]
        for i in wrong[:WORST]
    ]
    errors = Table(["where", "context", "right", "predicted", "p"], rows, {4})
    return [_errors(len(wrong), len(examples), errors, "most confident first")]


def _confusions(
    labels: Sequence[str],
    gold: Sequence[str],
    given: Sequence[str],
    *,
    with_scores: bool = True,
    title: str = "Confusions",
) -> list[Section]:
    if len(labels) < 2:
        return []
    number = {label: i for i, label in enumerate(labels)}
    gold_ids, given_ids = (np.asarray([number[name] for name in names]) for names in (gold, given))
    parts = [Section(title, Confusions(scores.confusion(gold_ids, given_ids, labels), labels))]
    pairs = Counter((one, other) for one, other in zip(gold, given, strict=True) if one != other)
    rows = [[one, other, str(count)] for (one, other), count in pairs.most_common(_CONFUSIONS)]
    if len(labels) > 2 and rows:
        parts.append(Section("Most frequent confusions", Table(["label", "predicted", "times"], rows, {2})))
    if with_scores:
        by_label = scores.per_label_table(gold_ids, given_ids, labels)
        rows = [[label, *_scores_of(by_label[label])] for label in labels]
        parts.append(Section("Labels", Table(["label", *_COLUMNS], rows, range(1, 5))))
    return parts


def _errors(wrong: int, count: int, table: Table, order: str) -> Section:
    note = f"{wrong} of {count} are wrong ({100 * wrong / count:.1f} %); up to {WORST} of them here, {order}."
    return Section("Errors", table if wrong else None, note)


def _exact_and_f1(example: QuestionExample, answer: str) -> tuple[float, float]:
    found = squad_scores([example], {example.id: answer}, {example.id: 0.0})
    return found["exact_match"], found["f1"]


def _confidence_in_errors(gold: Sequence[str], prediction: Prediction) -> float:
    pairs = zip(gold, prediction["tags"], prediction["probabilities"], strict=True)
    return max(probability for tag, given, probability in pairs if tag != given)


def _scores_of(line: Mapping[str, float]) -> list[str]:
    return [*(f"{line[name]:.3f}" for name in ("precision", "recall", "f1")), f"{line['support']:.0f}"]


def _text(example: TextExample) -> str:
    return _cut(example.text) if example.text_pair is None else f"{_cut(example.text)} ‖ {_cut(example.text_pair)}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[:_LONG]} …"
