"""By how much a program differs from the model that it was made of, on the texts of a file: outputs, metrics."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config import Json, UserError
from bert_jax.convert.programs import Arrays, Program
from bert_jax.data.batching.items import Item
from bert_jax.data.labelled.columns import has_header, text_in
from bert_jax.data.labelled.inputs import read_input
from bert_jax.data.labelled.tables import Row
from bert_jax.inference.batching import Batching
from bert_jax.inference.encode import encoded_texts
from bert_jax.inference.open import Opened
from bert_jax.tasks.finetuning import FineTuning

_ROWS = 32  # of a batch
_TOGETHER = 256  # items whose outputs of all tokens are in memory at a time


@dataclass(frozen=True)
class Examples:
    """What a file has: rows of tokens, and of a task with predictions its examples, labelled or not."""

    name: str
    items: Sequence[Item]
    examples: Sequence[Any]
    unlabelled: str  # why there are no metrics; "" if there are


def read(opened: Opened, spec: str) -> Examples:
    """Reads a file with the columns that the model was trained on. Raises UserError for a file without rows, and for
    one whose rows are not what the task reads."""
    task, name = opened.task, Path(spec).name
    if not isinstance(task, FineTuning):
        column = opened.config.data.text
        texts = [text_in(row, column) for row in _good(spec, column)]
        encoded = encoded_texts(opened.tokenizer, texts, None, opened.bert_config.max_position_embeddings)
        return Examples(name, [Item((row.part,)) for row in encoded], texts, "the model has no labels")
    examples, unlabelled = [], ""
    try:
        examples = list(task.read(spec))
        unlabelled = next((f"{one.origin}: {lack}" for one in examples if (lack := task.unlabelled(one))), "")
    except UserError as problem:  # may be that there is no column with labels
        unlabelled = str(problem)
    if not examples:
        try:
            rows = _good(spec, opened.config.data.text)
        except UserError:
            raise UserError(f"--check: {unlabelled}") from None
        examples = list(task.prediction_examples(rows))
        if wrong := next((one for one in examples if isinstance(one, UserError)), None):
            raise UserError(f"--check: {wrong}")
    try:
        return Examples(name, task.encode(examples), examples, unlabelled)
    except KeyError as label:
        raise UserError(f"--check={spec}: the label {label} is not one of the model's; use a file with these") from None


def compare(opened: Opened, exact: Program, program: Program, found: Examples) -> Json:
    """Returns `difference`, the largest between two numbers of the outputs; `labels_equal`, the share of examples with
    the same answer (None where answers are numbers); and `metrics` of the model and of the program (None without
    labels)."""
    task, items = opened.task, found.items
    batching = Batching(max(item.length for item in items), _ROWS)
    outputs: list[dict[str, list[np.ndarray]]] = [{}, {}]
    difference = 0.0
    for start in range(0, len(items), _TOGETHER):
        some = items[start : start + _TOGETHER]
        both = [batching.run(of_batch(one), some) for one in (exact, program)]
        for name, expected in both[0].items():
            for item, x, y in zip(some, expected, both[1][name], strict=True):
                kept = slice(item.length if name in _of_tokens(task) else None)
                difference = largest([difference, x[kept] - y[kept]])
        if isinstance(task, FineTuning):  # the others' are large, and nothing else is made of them
            for known, new in zip(outputs, both, strict=True):
                for name, rows in new.items():
                    known.setdefault(name, []).extend(rows)
    facts: Json = {"difference": difference, "labels_equal": None, "metrics": None}
    if not isinstance(task, FineTuning):
        return facts
    predictions = [task.predict(found.examples, items, _completed(task, one)) for one in outputs]
    answers = [[_answer(one) for one in some] for some in predictions]
    if all(answers[0]):
        facts["labels_equal"] = float(np.mean([one == other for one, other in zip(*answers, strict=True)]))
    if not found.unlabelled:
        scores = [task.score(found.examples, some, task.description()) for some in predictions]
        facts["metrics"] = dict(zip(("model", "program"), scores, strict=True))
    return facts


def largest(differences: Iterable[Any]) -> float:
    """Returns the largest absolute value in arrays of differences; NaN if one is NaN."""
    return float(np.max([np.max(np.abs(x)) for x in differences]))


def lines(facts: Mapping[str, Any]) -> list[str]:
    """Returns what `program.json` says about the check, as sentences."""
    check = facts["check"]
    if "difference" not in check:
        return [f"the program was not run: {check['not_run']}"]
    said = [
        f"the program, read again, differs from the model by at most {check['difference']:.2g} on {check['rows']} rows"
    ]
    if not (own := check.get("file")):
        return said
    line = f"{own['name']}, {own['examples']} examples: by at most {own['difference']:.2g}"
    said.append(line + ("" if own["labels_equal"] is None else f", {own['labels_equal']:.2%} of the answers are equal"))
    if own["metrics"] is None:
        return [*said, f"no metrics: {own['unlabelled']}"]
    model, program = own["metrics"]["model"], own["metrics"]["program"]
    return [*said, *(f"{name}: model {model[name]:.4f}, program {program[name]:.4f}" for name in model)]


def of_batch(program: Program) -> Program:
    """Returns the program as a function of a batch (`data/batching/batches.py`) with one part per item."""

    def run(batch: Arrays) -> dict[str, np.ndarray]:
        real = (batch["sequence_ids"] > 0).astype(np.int32)
        names = ("input_ids", "token_type_ids")
        return program({name: batch[name] for name in names} | {"attention_mask": real})

    return run


def _of_tokens(task: object) -> Sequence[str]:
    return task.token_outputs if isinstance(task, FineTuning) else ("last_hidden_state",)


def _completed(task: FineTuning, outputs: dict[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """Returns what `task.predict` reads, item by item."""
    rows = [task.completed(dict(zip(outputs, row, strict=True))) for row in zip(*outputs.values(), strict=True)]
    return {name: [np.asarray(row[name]) for row in rows] for name in rows[0]}


def _answer(prediction: Mapping[str, object]) -> Json:
    """Returns the words of a prediction without its numbers, which differ in their last digits."""

    def is_answer(x: object) -> bool:
        return isinstance(x, str) or (isinstance(x, list | tuple) and all(isinstance(one, str) for one in x))

    return {name: x for name, x in prediction.items() if is_answer(x)}


def _good(spec: str, column: str) -> list[Row]:
    named = has_header([column]) is not False
    rows = [found.row for found in read_input(spec, text=column, has_header=named)]
    if not rows:
        raise UserError(f"--check={spec} has no rows; give a file with some")
    for row in rows:
        if isinstance(row, UserError):
            raise row
    return [row for row in rows if isinstance(row, Row)]
