"""Labelled examples as they are read, before any tokenizer has seen them, and a summary of them.

Every example says in `origin` where it comes from ("train.csv:17", "dev.json:data[3].paragraphs[0].qas[1]"), for
messages.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32
from ml_collections import ConfigDict

from bert_jax.config import Json, UserError

_QUANTILES = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
_ODD = {  # what may be a mistake in an example, as warnings say it
    "unlabelled": "examples have no label",
    "empty_texts": "examples with an empty text",
    "duplicates": "examples repeat an earlier one",
    "conflicts": "texts have several labels",
}
_FEW = 5  # examples of a label
_SHOWN = 30  # labels of a split in the report


class Vectors(NamedTuple):
    """What a row has beside its text (`data/media`): K vectors of F values in a grid."""

    values: Float32[np.ndarray, "K F"]
    grid: Int32[np.ndarray, "K 2"]  # row and column of each vector, from 1
    name: str  # of the file, as messages and reports show it


@dataclass(frozen=True, slots=True)
class TextExample:
    """`label` is a class name, a number (regression) or class names (several per text); None if there is none.
    `vectors` are what the row has beside its text."""

    origin: str
    text: str
    text_pair: str | None = None
    label: str | float | tuple[str, ...] | None = None
    vectors: Vectors | None = None


@dataclass(frozen=True, slots=True)
class TaggedExample:
    """`spaces_between` is False where words are characters of one text, as in Chinese."""

    origin: str
    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None
    spaces_between: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    start: int  # characters from the start of the context


@dataclass(frozen=True, slots=True)
class QuestionExample:
    origin: str
    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] = ()
    is_impossible: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class ChoiceExample:
    """Each choice ends what `context` and `ending_start` begin; `label` counts from 0."""

    origin: str
    context: str
    ending_start: str  # what all choices begin with; may be empty
    choices: tuple[str, ...]
    label: int | None = None


@dataclass(frozen=True, slots=True)
class WritingExample:
    """A text and what is to be written for it; the text may have several turns, as a dialogue has."""

    origin: str
    source: tuple[str, ...]
    target: str | None = None


@dataclass(frozen=True, slots=True)
class DocumentExample:
    """A document whose summary consists of some of its sentences. `summary` are the sentences of the given summary,
    which may be other ones; `chosen` the numbers, from 0, of the document's sentences that are in it."""

    origin: str
    sentences: tuple[str, ...]
    summary: tuple[str, ...] | None = None
    chosen: tuple[int, ...] = ()


def as_record(example: object) -> Json:
    """Returns an example as JSON takes it; {} of one that is no dataclass, as those of a user's own task may be."""
    found = asdict(example) if is_dataclass(example) else {}  # type: ignore[arg-type]
    vectors = found.pop("vectors", None)
    return found if vectors is None else found | {"vectors": vectors.name}


def summarise(splits: Mapping[str, Sequence[TextExample]]) -> Json:
    """Returns what is in each split and what splits share, as JSON takes it:

    {"splits": {name: {"examples", "unlabelled", "empty_texts", "duplicates", "conflicts" (see `_ODD`), "labels":
    {label: count}, "label_values": quantiles of numbers, "characters": quantiles of text + pair, and "first":
    {"unlabelled" | "empty_texts" | …: origin}}}, "shared": [{"of", "in", "examples": examples of the one split whose
    text is in the other, "other_label": those of them with another label there, "first": origin}]}

    Texts (with their pair) are the same if they differ in white space only. A quantile is the value of an example.
    """
    labels_by_text = {name: _labels_by_text(examples) for name, examples in splits.items()}
    shared = [
        {"of": later, "in": earlier} | _shared(splits[later], labels_by_text[earlier])
        for earlier, later in itertools.combinations(splits, 2)
    ]
    found = {name: _summarise_split(examples, labels_by_text[name]) for name, examples in splits.items()}
    return {"splits": found, "shared": shared}


def format_summary(report: Mapping[str, Any]) -> str:
    """Returns the summary as text for a log: a paragraph per split, a line for two splits that share texts."""
    lines = []
    for name, split in report["splits"].items():
        counts = ", ".join(f"{split[key]} {key.replace('_', ' ')}" for key in _ODD if split[key])
        lines.append(f"{name}: {split['examples']} examples" + (f" ({counts})" if counts else ""))
        labels = sorted(split["labels"].items(), key=lambda item: (-item[1], item[0]))
        if labels:
            shares = [f"{label} {count} ({count / split['examples']:.1%})" for label, count in labels[:_SHOWN]]
            more = [f"and {len(labels) - _SHOWN} more"] if len(labels) > _SHOWN else []
            lines.append("  labels: " + ", ".join(shares + more))
        for key, title in (("label_values", "label values"), ("characters", "characters")):
            if split[key]:
                lines.append(f"  {title}: " + ", ".join(f"{place} {value:g}" for place, value in split[key].items()))
    for pair in report["shared"]:
        if pair["examples"]:
            place = f"{pair['examples']} texts of {pair['of']} are in {pair['in']}"
            lines.append(f"{place}, {pair['other_label']} with another label")
    return "\n".join(lines)


def warnings(report: Mapping[str, Any]) -> list[str]:
    """Returns what is likely a mistake in the data, one line each, with its first occurrence. The first split is that
    of training."""
    found = []
    for name, split in report["splits"].items():
        for key in ("empty_texts", "duplicates", "conflicts", "unlabelled"):
            if split[key] and (key, split[key]) != ("unlabelled", split["examples"]):  # a test set has no labels at all
                found.append(f"{name}: {split[key]} {_ODD[key]} (first: {split['first'][key]})")
    for pair in report["shared"]:
        if pair["examples"]:
            shared = f"{pair['examples']} texts are in {pair['in']} too (first: {pair['first']})"
            other = f"{pair['other_label']} with another label: scores on them say little"
            found.append(f"{pair['of']}: {shared}, {other}")
    return found + _label_warnings(report["splits"])


def _label_warnings(splits: Mapping[str, Any]) -> list[str]:
    found = []
    learned, learned_labels = next(((name, split["labels"]) for name, split in splits.items()), ("", {}))
    few = [f"{label!r} {count}" for label, count in sorted(learned_labels.items()) if 0 < count < _FEW]
    if few:
        found.append(f"{learned}: hardly any examples of {', '.join(few[:_SHOWN])}")
    if len(learned_labels) == 1:
        found.append(f"{learned}: every label is {next(iter(learned_labels))!r}: there is nothing to learn")
    for name, split in splits.items():
        new = sorted(map(repr, split["labels"].keys() - learned_labels.keys()))
        if learned_labels and new:
            found.append(f"{name}: labels that {learned} does not have: {', '.join(new[:_SHOWN])}")
    spellings = defaultdict(set)
    for label in itertools.chain.from_iterable(split["labels"] for split in splits.values()):
        spellings[" ".join(label.split()).casefold()].add(label)
    for group in spellings.values():
        if len(group) > 1:
            found.append(f"labels {', '.join(map(repr, sorted(group)))} differ in case or white space only")
    return found


def _summarise_split(examples: Sequence[TextExample], labels_by_text: Mapping[Any, set]) -> Json:
    first: dict[str, str] = {}
    counts: dict[str, int] = dict.fromkeys(_ODD, 0)
    seen = set()
    for example in examples:
        key = _key(example)
        is_new = key not in seen
        is_odd = example.label is None, "" in key, not is_new, is_new and len(labels_by_text[key]) > 1
        for kind in itertools.compress(_ODD, is_odd):
            counts[kind] += 1
            first.setdefault(kind, example.origin)
        seen.add(key)
    named = ((e.label,) if isinstance(e.label, str) else e.label for e in examples)
    labels = Counter(itertools.chain.from_iterable(names for names in named if isinstance(names, tuple)))
    return {
        "examples": len(examples),
        **counts,
        "labels": dict(labels),
        "label_values": _quantiles([e.label for e in examples if isinstance(e.label, float)]),
        "characters": _quantiles([len(e.text) + len(e.text_pair or "") for e in examples]),
        "first": first,
    }


def _shared(examples: Sequence[TextExample], labels_by_text: Mapping[Any, set]) -> Json:
    shared = [(e, labels_by_text[key]) for e in examples if (key := _key(e)) in labels_by_text]
    other = sum(e.label is not None and bool(labels) and _comparable(e.label) not in labels for e, labels in shared)
    return {"examples": len(shared), "other_label": other, "first": shared[0][0].origin if shared else ""}


def _labels_by_text(examples: Iterable[TextExample]) -> dict[Any, set]:
    found: dict[Any, set] = {}
    for example in examples:
        labels = found.setdefault(_key(example), set())
        if example.label is not None:
            labels.add(_comparable(example.label))
    return found


def _key(example: TextExample) -> tuple[str | None, ...]:
    pair, vectors = example.text_pair, example.vectors
    texts = " ".join(example.text.split()), None if pair is None else " ".join(pair.split())
    # Beside vectors a text may be empty.
    return texts if vectors is None else (texts[0] or None, texts[1] or None, vectors.name)


def _comparable(label: str | float | tuple[str, ...]) -> str | float | frozenset[str]:
    return frozenset(label) if isinstance(label, tuple) else label


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {name: ordered[int(place * (len(ordered) - 1))] for name, place in _QUANTILES.items()} if ordered else {}


def check_labelled(examples: Mapping[str, Sequence[Any]], data: ConfigDict, unlabelled: Callable[[Any], str]) -> None:
    """Raises UserError for a split without examples, and for the first example that lacks what `unlabelled` says."""
    for split, found in examples.items():
        if not found:
            raise UserError(f"data.{split}={data[split]} has no examples")
        for example in found:
            if problem := unlabelled(example):
                raise UserError(f"{example.origin}: {problem} (data.{split})")
