"""What a fine-tuned model gets right and wrong on validation: predictions/validation.jsonl and report.html.

The page is one file that needs no other and no network: style and pictures are inside.
"""

import base64
import html
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.data.labelled.examples import ChoiceExample, QuestionExample, TaggedExample, TextExample
from bert_jax.lab import report_plots
from bert_jax.lab.plots import read_metrics
from bert_jax.tasks import scores
from bert_jax.tasks.squad_scores import squad_scores
from bert_jax.tasks.task import Evaluation

_WORST = 20
_CONFUSIONS = 10
_LONG = 1_000  # characters of a text that are shown
_KEYS = (
    *("task", "init_from", "seed", "data.train", "data.validation", "data.sequence_length", "data.long_texts"),
    *("train.epochs", "train.batch_size", "optimizer.learning_rate", "checkpoint.best_metric"),
    *("model.num_hidden_layers", "model.hidden_size"),
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse } td, th { padding: .25rem .7rem; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #bbb } td { border-bottom: 1px solid #e4e4e4; overflow-wrap: anywhere }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
img { max-width: 100% } pre { background: #f6f6f6; padding: .8rem; overflow-x: auto } .note { color: #666 }
mark { background: #fde2dd } b { color: #1c6b3c }
"""


def write_report(
    task: Any, evaluation: Evaluation, config: Any, workdir: Path, overrides: Mapping[str, Any] | None = None
) -> Path:
    """Writes the page of an evaluation of validation and returns its path.

    `overrides` are the keys set on the command line.
    """
    examples, predictions = task.examples[evaluation.split], evaluation.predictions
    folder = workdir / "predictions"
    folder.mkdir(exist_ok=True)
    with (folder / "validation.jsonl").open("w", encoding="utf-8") as file:
        for example, prediction in zip(examples, predictions, strict=True):
            has_fields = is_dataclass(example)  # a task of one's own may have other examples
            fields: dict[str, Any] = asdict(example) if has_fields else {}  # type: ignore[arg-type]
            file.write(json.dumps(fields | {"prediction": prediction}, ensure_ascii=False) + "\n")
    records = read_metrics(workdir / "metrics.jsonl")
    parts = [_summary(config, evaluation.metrics, overrides or {})]
    curve = report_plots.learning_curve(records, config.checkpoint.best_metric)
    parts += [_section("Learning curve", _picture(curve, "learning curve"))] if curve else []
    parts += _family(task, examples, predictions, evaluation.learned)
    settings = html.escape(json.dumps(config.to_dict(), indent=2))
    parts.append(f"<h2>Config</h2><details><summary>all keys</summary><pre>{settings}</pre></details>")
    title = html.escape(f"{config.task}: {workdir.name}")
    page = workdir / "report.html"
    page.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n" + "\n".join(parts) + "\n</body></html>\n",
        encoding="utf-8",
    )
    logging.info("report: %s", page)
    return page


def _summary(config: Any, metrics: Mapping[str, float], overrides: Mapping[str, Any]) -> str:
    figures = [[name, _figure(value)] for name, value in metrics.items()]
    settings = []
    for key in _KEYS:
        value = config
        for name in key.split("."):
            value = value[name]
        settings.append([key, str(value)])
    command = " ".join(f"--config.{key}={value}" for key, value in overrides.items())
    text = f"<pre>{html.escape(command)}</pre>" if command else ""
    return (
        _section("Best checkpoint on validation", _table(["metric", "value"], figures, numbers={1}))
        + _section("Run", _table(["key", "value"], settings))
        + (_section("Set on the command line", text) if text else "")
    )


def _family(task: Any, examples: Sequence[Any], predictions: Sequence[Any], learned: dict[str, Any]) -> list[str]:
    if isinstance(examples[0], TaggedExample):
        return _tags(task, examples, predictions)
    if isinstance(examples[0], QuestionExample):
        return _questions(examples, predictions)
    if isinstance(examples[0], ChoiceExample):
        return _choices(examples, predictions)
    if not isinstance(examples[0], TextExample):
        note = f"bert_jax/lab/report.py knows no page for examples of {type(examples[0]).__name__}."
        return [_section("Predictions", "", note)]
    if task.config.data.label_kind == "multi":
        return _label_sets(task, examples, predictions, learned["thresholds"])
    kinds = {"single": _classes, "regression": _numbers}
    return kinds[task.config.data.label_kind](task, examples, predictions)


def _classes(task: Any, examples: Sequence[TextExample], predictions: Sequence[dict[str, Any]]) -> list[str]:
    gold = [str(example.label) for example in examples]
    given = [prediction["label"] for prediction in predictions]
    parts = _confusion_sections(task.labels, gold, given)
    wrong = [i for i in range(len(gold)) if gold[i] != given[i]]
    wrong.sort(key=lambda i: predictions[i]["probabilities"][gold[i]])
    rows = [
        [
            examples[i].origin,
            _text(examples[i]),
            gold[i],
            f"{predictions[i]['probabilities'][gold[i]]:.3f}",
            *(given[i], f"{predictions[i]['probability']:.3f}"),
        ]
        for i in wrong[:_WORST]
    ]
    header = ["where", "text", "label", "p", "predicted", "p"]
    return [*parts, _worst(len(wrong), len(gold), _table(header, rows, numbers={3, 5}), "least likely label first")]


def _label_sets(
    task: Any, examples: Sequence[TextExample], predictions: Sequence[dict[str, Any]], tuned: Sequence[float]
) -> list[str]:
    sets = [set(_label_names(example)) for example in examples]
    gold = np.asarray([[label in names for label in task.labels] for names in sets])
    probabilities = np.asarray([list(prediction["probabilities"].values()) for prediction in predictions])
    thresholds = np.asarray(tuned)
    given = probabilities >= thresholds
    table = scores.per_label_table(gold, given, task.labels)
    rows = [
        [label, *_scores_of(table[label]), f"{threshold:.3f}"]
        for label, threshold in zip(task.labels, thresholds, strict=True)
    ]
    header = ["label", "precision", "recall", "F1", "examples", "threshold"]
    parts = [_section("Labels, each given from its own threshold on", _table(header, rows, numbers={1, 2, 3, 4, 5}))]
    loss = -np.log(np.clip(np.where(gold, probabilities, 1 - probabilities), 1e-12, None)).mean(axis=1)
    wrong = [int(i) for i in np.argsort(-loss, kind="stable") if (gold[i] != given[i]).any()]
    names = np.asarray(task.labels, object)
    rows = [
        [
            examples[i].origin,
            _text(examples[i]),
            ", ".join(names[gold[i]]),
            ", ".join(names[given[i]]),
            f"{loss[i]:.3f}",
        ]
        for i in wrong[:_WORST]
    ]
    errors = _table(["where", "text", "labels", "predicted", "loss"], rows, numbers={4})
    return [*parts, _worst(len(wrong), len(examples), errors, "highest loss first")]


def _numbers(_: Any, examples: Sequence[TextExample], predictions: Sequence[dict[str, Any]]) -> list[str]:
    gold = np.asarray([example.label for example in examples], np.float64)
    given = np.asarray([prediction["value"] for prediction in predictions])
    picture = _picture(report_plots.scatter(gold, given), "predicted against given numbers")
    order = np.argsort(-np.abs(gold - given), kind="stable")[:_WORST]
    rows = [[examples[i].origin, _text(examples[i]), f"{gold[i]:.3f}", f"{given[i]:.3f}"] for i in order]
    errors = _table(["where", "text", "given", "predicted"], rows, numbers={2, 3})
    return [_section("Predicted numbers", picture), _section("Furthest from the given number", errors)]


def _tags(task: Any, examples: Sequence[TaggedExample], predictions: Sequence[dict[str, Any]]) -> list[str]:
    gold = [list(example.tags or ()) for example in examples]
    given = [prediction["tags"] for prediction in predictions]
    if task.has_entities:
        table = scores.entity_table(gold, given)
        rows = [[name, *_scores_of(line)] for name, line in table.items()]
        parts = [_section("Entities", _table(["type", *_COLUMNS], rows, numbers={1, 2, 3, 4}))]
        flat = [
            [tag.removeprefix("B-").removeprefix("I-") for tags in lists for tag in tags] for lists in (gold, given)
        ]
        labels = sorted({*flat[0], *flat[1]} - {"O"})
        parts += _confusion_sections(["O", *labels], *flat, table=False, what="Words by type of their entity")
    else:
        flat = [[tag for tags in lists for tag in tags] for lists in (gold, given)]
        parts = _confusion_sections(task.labels, *flat)
    wrong = [i for i in range(len(gold)) if gold[i] != given[i]]
    wrong.sort(key=lambda i: -_confidence_in_errors(gold[i], predictions[i]))
    rows = [[examples[i].origin, _Markup(_marked(examples[i].words, gold[i], given[i]))] for i in wrong[:_WORST]]
    errors = _table(["where", "words, the wrong ones as word/given tag/predicted tag"], rows)
    return [*parts, _worst(len(wrong), len(gold), errors, "surest errors first")]


def _questions(examples: Sequence[QuestionExample], predictions: Sequence[dict[str, Any]]) -> list[str]:
    best = {p["id"]: p["n_best"][0]["text"] if p["n_best"] else "" for p in predictions}
    parts = []
    if "null_odds" in predictions[0]:
        odds = np.asarray([prediction["null_odds"] for prediction in predictions])
        answered = [_one_question(example, best[example.id]) for example in examples]
        declined = [_one_question(example, "") for example in examples]
        picture = report_plots.threshold_curve(odds, np.asarray(answered), np.asarray(declined))
        note = "A question is answered where the score of no answer is at most this far above that of the best answer."
        parts = [_section("Threshold of no answer", _picture(picture, "threshold curve"), note)]
    figures = [_one_question(example, p["answer"]) for example, p in zip(examples, predictions, strict=True)]
    wrong = [i for i, (exact, _) in enumerate(figures) if not exact]
    wrong.sort(key=lambda i: (figures[i][1], -predictions[i]["probability"]))
    rows = [
        [
            examples[i].id,
            examples[i].question,
            " | ".join(dict.fromkeys(answer.text for answer in examples[i].answers)) or "(no answer)",
            predictions[i]["answer"] or "(no answer)",
            f"{predictions[i]['probability']:.3f}",
            f"{figures[i][1]:.0f}",
            _cut(examples[i].context),
        ]
        for i in wrong[:_WORST]
    ]
    errors = _table(["id", "question", "answers", "predicted", "p", "F1", "context"], rows, numbers={4, 5})
    return [*parts, _worst(len(wrong), len(examples), errors, "lowest F1, then surest first")]


def _choices(examples: Sequence[ChoiceExample], predictions: Sequence[dict[str, Any]]) -> list[str]:
    wrong = [i for i, example in enumerate(examples) if example.label != predictions[i]["choice"]]
    wrong.sort(key=lambda i: -predictions[i]["probability"])
    rows = [
        [
            examples[i].origin,
            _cut(f"{examples[i].context} {examples[i].ending_start}"),
            examples[i].choices[examples[i].label or 0],
            *(predictions[i]["text"], f"{predictions[i]['probability']:.3f}"),
        ]
        for i in wrong[:_WORST]
    ]
    errors = _table(["where", "context", "right", "predicted", "p"], rows, numbers={4})
    return [_worst(len(wrong), len(examples), errors, "surest first")]


_COLUMNS = ["precision", "recall", "F1", "examples"]


def _confusion_sections(
    labels: Sequence[str], gold: Sequence[str], given: Sequence[str], *, table: bool = True, what: str = "Confusions"
) -> list[str]:
    if len(labels) < 2:
        return []
    number = {label: i for i, label in enumerate(labels)}
    gold_ids, given_ids = (np.asarray([number[name] for name in names]) for names in (gold, given))
    picture, note = report_plots.confusion_matrix(scores.confusion(gold_ids, given_ids, labels), labels)
    parts = [_section(what, _picture(picture, "confusion matrix"), note)]
    pairs = Counter((one, other) for one, other in zip(gold, given, strict=True) if one != other)
    rows = [[one, other, str(count)] for (one, other), count in pairs.most_common(_CONFUSIONS)]
    if len(labels) > 2 and rows:
        parts.append(_section("Commonest confusions", _table(["label", "predicted", "times"], rows, numbers={2})))
    if table:
        by_label = scores.per_label_table(gold_ids, given_ids, labels)
        rows = [[label, *_scores_of(by_label[label])] for label in labels]
        parts.append(_section("Labels", _table(["label", *_COLUMNS], rows, numbers={1, 2, 3, 4})))
    return parts


def _one_question(example: QuestionExample, answer: str) -> tuple[float, float]:
    """Exact match and F1 by the rules of SQuAD 2.0, in per cent."""
    found = squad_scores([example], {example.id: answer}, {example.id: 0.0})
    return found["exact_match"], found["f1"]


def _confidence_in_errors(gold: Sequence[str], prediction: dict[str, Any]) -> float:
    pairs = zip(gold, prediction["tags"], prediction["probabilities"], strict=True)
    return max(probability for tag, given, probability in pairs if tag != given)


class _Markup(str):
    """A cell that is HTML already."""


def _marked(words: Sequence[str], gold: Sequence[str], given: Sequence[str]) -> str:
    return " ".join(
        html.escape(word)
        if tag == other
        else f"<mark>{html.escape(word)}/<b>{html.escape(tag)}</b>/{html.escape(other)}</mark>"
        for word, tag, other in zip(words, gold, given, strict=True)
    )


def _worst(wrong: int, count: int, table: str, order: str) -> str:
    note = f"{wrong} of {count} are wrong ({100 * wrong / count:.1f} %); up to {_WORST} of them here, {order}."
    return _section("Errors", table if wrong else "", note)


def _scores_of(line: Mapping[str, float]) -> list[str]:
    return [*(f"{line[name]:.3f}" for name in ("precision", "recall", "f1")), f"{line['support']:.0f}"]


def _label_names(example: TextExample) -> tuple[str, ...]:
    return example.label if isinstance(example.label, tuple) else ()


def _text(example: TextExample) -> str:
    return _cut(example.text) if example.text_pair is None else f"{_cut(example.text)} ‖ {_cut(example.text_pair)}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[:_LONG]} …"


def _figure(value: float) -> str:
    return f"{value:.4f}"


def _section(title: str, body: str, note: str = "") -> str:
    return f"<h2>{html.escape(title)}</h2>" + (f'<p class="note">{html.escape(note)}</p>' if note else "") + body


def _picture(png: bytes, description: str) -> str:
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    numbers = set(numbers)

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = (' class="number"' if place in numbers else "" for place in range(len(cells)))
        texts = (cell if isinstance(cell, _Markup) else html.escape(cell) for cell in cells)
        inside = "".join(f"<{tag}{kind}>{text}</{tag}>" for kind, text in zip(kinds, texts, strict=True))
        return f"<tr>{inside}</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"
