"""Log-likelihoods of texts, and accuracy on minimal pairs (BLiMP), of any checkpoint with an MLM head."""

import csv
import io
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float64, Int32

from bert_jax import backend
from bert_jax.config import UserError, result_or_error
from bert_jax.data.labelled.columns import text_in
from bert_jax.data.labelled.minimal_pairs import Accuracies, MinimalPair
from bert_jax.data.labelled.tables import Row
from bert_jax.inference.open import Opened, opened_of
from bert_jax.inference.output import whole_file
from bert_jax.inference.predictor import in_place_of_good, windows
from bert_jax.models.bert import Model
from bert_jax.tasks.likelihood import (
    EncodedPairs,
    hidden_token_batches,
    row_lengths,
    text_log_likelihoods,
    token_log_probabilities,
)


class Scorer:
    """Log-likelihoods of texts, in nats: pseudo-log-likelihoods, or those of a left-to-right model
    (`tasks/likelihood.py`). `checkpoint` is one that is opened, or what `open_model` takes with its `options`.

    A batch has as many tokens as `batch_size` rows of the longest text, or what the device is best at.
    """

    def __init__(self, checkpoint: str | Path | Opened, batch_size: int = 32, **options: Any):
        opened = opened_of(checkpoint, **options)
        if not opened.has("heads/mlm/"):
            raise UserError(f"{opened.path} has no MLM head, which scores texts; it was made without one")
        self.path, self.step, self.tokenizer = opened.path, opened.step, opened.tokenizer
        self.max_length = opened.bert_config.max_position_embeddings
        self._program = opened.at_work.program(_log_probabilities)
        self._tokens = backend.current().tokens_per_batch or batch_size * self.max_length
        self._lengths = row_lengths(self.max_length)

    def stream(self, rows: Iterable[Row | UserError], column: str = "text") -> Iterator[Any]:
        """Yields for each row, in order, the score of its text as a float, or the UserError that says what is wrong
        with it."""
        for window in windows(rows):
            found = in_place_of_good(window, partial(result_or_error, lambda row: self._encoded(row, column)))
            yield from in_place_of_good(found, lambda texts: self.score(texts).tolist())

    def score(self, texts: Sequence[Int32[np.ndarray, " _"]]) -> Float64[np.ndarray, " N"]:
        """Returns the scores of texts that are token ids with [CLS] and [SEP]."""
        batches = hidden_token_batches(texts, self.tokenizer, self._lengths, self._rows)
        return text_log_likelihoods(self._found(batches), len(texts))

    def accuracies(self, pairs: Sequence[MinimalPair]) -> Accuracies:
        """Returns the shares of pairs whose good sentence scores higher; equal scores are wrong. Raises UserError for a
        sentence that is longer than the model."""
        encoded, start = EncodedPairs(pairs, self.tokenizer, self.max_length), time.perf_counter()
        found = encoded.accuracies(self.score(encoded.texts))
        seconds, count = time.perf_counter() - start, len(encoded.texts)
        logging.info("%d sentences in %.1f s (%.0f per second)", count, seconds, count / seconds)
        return found

    def warm_up(self, lengths: Sequence[int]) -> None:
        """Compiles for texts of up to these numbers of tokens, which are declared as the only ones besides the longest
        that is allowed."""
        if wrong := [length for length in lengths if not 1 <= length <= self.max_length]:
            raise UserError(f"a length to warm up is {wrong[0]}; it can be 1 to {self.max_length} tokens")
        declared = {max(3, length) for length in lengths}  # the shortest text that is scored has one token
        self._lengths = sorted({*declared, self.max_length})
        for length in declared:
            self.score([self.tokenizer.row([self.tokenizer.unk_id] * (length - 2)).ids])

    def _encoded(self, row: Row, column: str) -> Int32[np.ndarray, " L"]:
        ids = self.tokenizer.row(self.tokenizer.encode_words([text_in(row, column)])[0]).ids
        if len(ids) > self.max_length:
            raise UserError(
                f"{row.origin}: {len(ids)} tokens, over {self.max_length}, the model's positions; shorten it"
            )
        return ids

    def _rows(self, length: int) -> int:
        return max(1, self._tokens // length)

    def _found(self, batches: Iterable[dict[str, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields what `text_log_likelihoods` needs of each batch, on the host, while the device works on the next."""
        running = None
        for batch in batches:
            text_ids = batch.pop("text_ids")
            launched = text_ids, self._program(batch)
            if running is not None:
                yield running[0], jax.device_get(running[1])["log_probabilities"]
            running = launched
        if running is not None:
            yield running[0], jax.device_get(running[1])["log_probabilities"]


def _log_probabilities(model: Model, batch: dict[str, Array]) -> dict[str, Float[Array, "B P"]]:
    return {"log_probabilities": token_log_probabilities(model, batch)}


def table(found: Accuracies, pairs: Sequence[MinimalPair]) -> list[dict[str, Any]]:
    """Returns rows of `level` (overall, field, phenomenon or paradigm), `name`, `accuracy` and `pairs`."""
    levels = {"field": found.fields, "phenomenon": found.phenomena, "paradigm": found.paradigms}
    rows = [{"level": "overall", "name": "overall", "accuracy": found.overall, "pairs": len(pairs)}]
    for level, shares in levels.items():
        names = [getattr(pair, level) for pair in pairs]
        rows += [
            {"level": level, "name": name, "accuracy": share, "pairs": names.count(name)}
            for name, share in shares.items()
        ]
    return rows


def write_table(rows: Sequence[dict[str, Any]], scorer: Scorer, output: Path) -> None:
    """Writes the rows as .csv, or as .json with the checkpoint's path and step beside them."""
    text = io.StringIO(newline="")
    if output.suffix == ".csv":
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    else:
        json.dump({"checkpoint": str(scorer.path), "step": scorer.step, "accuracies": list(rows)}, text, indent=1)
        text.write("\n")
    with whole_file(output) as file:
        file.write(text.getvalue().encode())
