"""A fine-tuned checkpoint in memory: texts in, predictions out, in the order of the texts."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from bert_jax.config import Input, Result, UserError, result_or_error
from bert_jax.data.batching.items import Item
from bert_jax.data.labelled.tables import Row
from bert_jax.inference.batching import Batching
from bert_jax.inference.open import Opened, opened_of
from bert_jax.tasks.task import Example, Task

WINDOW = 4096  # rows that are sorted by length together; the first windows are smaller, so that answers come early
_FIRST_WINDOW = 64


class Predictor:
    """Predictions of a fine-tuned model. `checkpoint` is one that is opened, or what `open_model` takes with the
    `options` overrides, which, users_task and task_name.

    Model, task and names of columns are those of the run, but for `overrides`. `batch_size` is the most rows of a
    batch; programs are compiled as batching.py says. Threads may share a Predictor.
    """

    def __init__(self, checkpoint: str | Path | Opened, batch_size: int = 32, **options: object):
        opened = opened_of(checkpoint, **options)
        opened.check_single()
        self.config, self.task = opened.config, opened.task
        if not self.task.makes_predictions:
            raise UserError(f"{opened.path} was not fine-tuned and predicts nothing; fine-tune it, or use --mode=embed")
        opened.fit(self.task.init)  # raises if a parameter of the task is missing
        at_work, longest = opened.at_work, self.config.data.sequence_length
        self._rows = at_work.program(self._kept_rows)
        self._batching = Batching(longest, batch_size, any_shape=at_work.takes_any_shape)

    def __call__(self, inputs: Sequence[str | Mapping[str, object]]) -> list[Any]:
        """Texts, or objects with the columns of the task. Raises UserError for the first one that is wrong."""
        column = self.config.data.text
        values = ({column: x} if isinstance(x, str) else dict(x) for x in inputs)
        rows = (Row(f"input {number}", row) for number, row in enumerate(values, 1))
        return all_good(found for window in windows(rows, WINDOW) for found in self._predict(window))

    def stream(self, rows: Iterable[Row | UserError]) -> Iterator[Any]:
        """Yields for each row, in order, its prediction or the UserError that says what is wrong with it.

        Reads at most WINDOW rows ahead.
        """
        for window in windows(rows):
            yield from self._predict(window)

    def warm_up(self, lengths: Sequence[int]) -> None:
        """Compiles for texts of up to these numbers of tokens, which are declared as in `Batching.warm_up`."""
        values = self.task.input_example | dict(self.task.blank_columns)
        [example] = self.task.prediction_examples([Row("warm-up", values)])
        self._batching.warm_up(self._rows, lengths, self.task.encode([example])[0])

    def _predict(self, rows: Sequence[Row | UserError]) -> list[Any]:
        found, items = encoded(self.task, rows)
        if not _good(found):
            return found
        outputs = self._batching.run(self._rows, items)
        return in_place_of_good(found, lambda examples: self.task.predict(examples, items, outputs))

    def _kept_rows(self, model: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns what `task.predict` needs. The numbers of the items are not of use: rows are in their order."""
        rows = self.task.evaluate(model, batch, {})[1]
        rows = {name: value for name, value in rows.items() if name not in ("item_ids", "first_tokens")}
        return {name: x if name in self.task.token_outputs else x[:, 0] for name, x in rows.items()}


def encoded(task: Task, rows: Sequence[Row | UserError]) -> tuple[list[Example | UserError], list[Item]]:
    """Returns the task's examples, with the errors of bad rows in their places, and the items of the examples."""
    found = in_place_of_good(rows, task.prediction_examples)
    try:
        return found, task.encode(_good(found))
    except UserError:  # says which of them is wrong, but there may be several
        found = each_good(found, partial(_checked, task))
        return found, task.encode(_good(found))


def _checked(task: Task, example: Example) -> Example:
    task.encode([example])
    return example


def windows(rows: Iterable[Input], first: int = _FIRST_WINDOW) -> Iterator[list[Input]]:
    """Yields lists of `first` rows, then of four times as many each time, up to WINDOW."""
    iterator, size = iter(rows), first
    while window := list(itertools.islice(iterator, size)):
        yield window
        size = min(4 * size, WINDOW)


def in_place_of_good(
    rows: Sequence[Input | UserError], results: Callable[[list[Input]], Iterable[Result]]
) -> list[Result | UserError]:
    """Replaces the rows that are not errors by `results` of them, one for one; the errors stay where they are."""
    good = iter(results(_good(rows)))
    return [row if isinstance(row, UserError) else next(good) for row in rows]


def each_good(rows: Sequence[Input | UserError], function: Callable[[Input], Result]) -> list[Result | UserError]:
    """Replaces each row that is no error by what `function` returns for it, or by the UserError that it raises."""
    return in_place_of_good(rows, lambda good: result_or_error(function, good))


def all_good(results: Iterable[Result | UserError]) -> list[Result]:
    """Returns the results as a list. Raises the first of them that is a UserError, once all are there."""
    found = list(results)
    if wrong := [result for result in found if isinstance(result, UserError)]:
        raise wrong[0]
    return _good(found)


def _good(rows: Sequence[Input | UserError]) -> list[Input]:
    return [row for row in rows if not isinstance(row, UserError)]
