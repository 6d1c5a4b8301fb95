"""A fine-tuned checkpoint in memory: texts in, predictions out, in the order of the texts."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from bert_jax.config import UserError
from bert_jax.data.labelled.tables import Row
from bert_jax.inference.batching import Batching
from bert_jax.inference.open import open_model
from bert_jax.inference.prepared import Prepared
from bert_jax.tasks.task import Task

WINDOW = 4096  # rows that are sorted by length together; the first windows are smaller, so that answers come early
_FIRST_WINDOW = 64


class Predictor:
    """`checkpoint` is a workdir or a checkpoint folder; `which` of a workdir's, as in `choose_checkpoint`.

    Model, task and names of columns are those of the run; of `overrides`, {"data.text": "review", …}, the keys in
    `options.INFERENCE` count. `batch_size` is the most rows of a batch; programs are compiled as batching.py says.
    `users_task` is as in `open_model`.
    """

    def __init__(
        self,
        checkpoint: str,
        batch_size: int = 32,
        overrides: Mapping[str, Any] | None = None,
        which: str = "best",
        users_task: str = "",
    ):
        opened = open_model(checkpoint, overrides=overrides, which=which, users_task=users_task)
        self.config = opened.config
        if not opened.task.makes_predictions:
            raise UserError(f"{opened.path} was not fine-tuned and predicts nothing; fine-tune it, or use --mode=embed")
        self.task: Task = opened.task
        self._rows = Prepared(opened.model()).program(self._kept_rows)
        self._batching = Batching(self.config.data.sequence_length, batch_size)

    def __call__(self, inputs: Sequence[str | Mapping[str, Any]]) -> list[Any]:
        """Texts, or objects with the columns of the task. Raises UserError for the first one that is wrong."""
        column = self.config.data.text
        values = [{column: x} if isinstance(x, str) else dict(x) for x in inputs]
        rows = (Row(f"input {number}", row) for number, row in enumerate(values, 1))
        predictions = [prediction for window in windows(rows, WINDOW) for prediction in self._predict(window)]
        for prediction in predictions:
            if isinstance(prediction, UserError):
                raise prediction
        return predictions

    def stream(self, rows: Iterable[Row | UserError]) -> Iterator[Any]:
        """For each row its prediction, or the UserError that says what is wrong with it, in order.

        Reads at most WINDOW rows ahead.
        """
        for window in windows(rows):
            yield from self._predict(window)

    def _predict(self, rows: Sequence[Row | UserError]) -> list[Any]:
        found = in_place_of_good(rows, self.task.prediction_examples)
        try:
            items = self.task.encode(_good(found))
        except UserError:  # says which of them is wrong, but there may be several
            found = in_place_of_good(found, lambda examples: map(self._checked, examples))
            items = self.task.encode(_good(found))
        if not _good(found):
            return found
        outputs = self._batching.run(self._rows, items)
        return in_place_of_good(found, lambda examples: self.task.predict(examples, items, outputs))

    def _kept_rows(self, model: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """What `task.predict` needs: of tags not the logits, which would be the largest thing to leave the device."""
        rows = self.task.evaluate(model, batch, {})[1]
        rows = {name: value for name, value in rows.items() if name not in ("item_ids", "first_tokens")}
        return {name: x if name in self.task.token_outputs else x[:, 0] for name, x in rows.items()}

    def _checked(self, example: Any) -> Any:
        try:
            self.task.encode([example])
        except UserError as error:
            return error
        return example


def windows(rows: Iterable[Any], first: int = _FIRST_WINDOW) -> Iterator[list[Any]]:
    """Lists of `first` rows, then four times as many each time, up to WINDOW."""
    iterator, size = iter(rows), first
    while window := list(itertools.islice(iterator, size)):
        yield window
        size = min(4 * size, WINDOW)


def in_place_of_good(rows: Sequence[Any], results: Callable[[list[Any]], Iterable[Any]]) -> list[Any]:
    """What `results` makes of the rows that are no errors, one for one; the errors stay where they are."""
    good = iter(results(_good(rows)))
    return [row if isinstance(row, UserError) else next(good) for row in rows]


def _good(rows: Sequence[Any]) -> list[Any]:
    return [row for row in rows if not isinstance(row, UserError)]
