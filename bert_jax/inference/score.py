"""Log-likelihoods of texts, ranking by them, and minimal pairs (BLiMP), of any checkpoint with an MLM head."""

import csv
import io
import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float64, Int32

from bert_jax import backend
from bert_jax.config import Json, UserError
from bert_jax.data.labelled.columns import text_in, texts_in, value_in
from bert_jax.data.labelled.minimal_pairs import Accuracies, MinimalPair
from bert_jax.data.labelled.tables import Row
from bert_jax.data.tokenizers.encoding import Encoding
from bert_jax.inference.open import Opened, opened_of
from bert_jax.inference.output import whole_file
from bert_jax.inference.predictor import each_good, in_place_of_good, windows
from bert_jax.models.bert import Model
from bert_jax.tasks.likelihood import (
    METHODS,
    EncodedPairs,
    hidden_token_batches,
    row_lengths,
    text_log_likelihoods,
    token_log_likelihoods,
    token_log_probabilities,
)


class _Texts(NamedTuple):
    """The texts of a row: one to score, or several to rank."""

    encodings: list[Encoding]
    are_ranked: bool


class Scorer:
    """Log-likelihoods of texts, in nats: pseudo-log-likelihoods, or those of a left-to-right model
    (`tasks/likelihood.py`). `checkpoint` is one that is opened, or what `open_model` takes with its `options`.

    A batch has as many tokens as `batch_size` rows of the longest text, or what the device is best at. `method` is one
    of `METHODS`, by which tokens are hidden.
    """

    def __init__(
        self, checkpoint: str | Path | Opened, batch_size: int = 32, method: str = METHODS[0], **options: object
    ):
        if method not in METHODS:
            raise UserError(f"method '{method}' of scoring is unknown; it can be {' or '.join(METHODS)}")
        opened = opened_of(checkpoint, **options)
        opened.check_mlm_head("scores texts")
        self.path, self.step, self.tokenizer, self.method = opened.path, opened.step, opened.tokenizer, method
        self.max_length = opened.bert_config.max_position_embeddings
        self._program = opened.at_work.program(_log_probabilities)
        self._tokens = backend.current().tokens_per_batch or batch_size * self.max_length
        self._lengths = row_lengths(self.max_length)

    def stream(
        self, rows: Iterable[Row | UserError], column: str = "text", *, by_token: bool = False
    ) -> Iterator[Json | UserError]:
        """Yields for each row, in order, a record or the UserError that says what is wrong with it.

        The record of a text has its `score`, the number of its `tokens` and its `perplexity`, exp(−score / tokens);
        with `by_token` a `table` of them: token, start and end in characters, log_probability. A list of texts is
        ranked: its record has those of the `candidates`, and their `ranking` and `ranking_per_token`, numbers from 0,
        the most probable one first.
        """
        for window in windows(rows):
            found = each_good(window, lambda row: self._encoded(row, column))
            yield from in_place_of_good(found, lambda encoded: self._records(encoded, by_token))

    def score(self, texts: Sequence[Int32[np.ndarray, " _"]]) -> Float64[np.ndarray, " N"]:
        """Returns the scores of texts that are token ids with [CLS] and [SEP]."""
        return text_log_likelihoods(self._found(self._batches(texts)), len(texts))

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

    def _encoded(self, row: Row, column: str) -> _Texts:
        value = value_in(row, column)
        texts = texts_in(row, column) if isinstance(value, list) else [text_in(row, column)]
        if not texts:
            raise UserError(f"{row.origin}: column '{column}' has no candidates; add texts to rank")
        encodings = self.tokenizer.encode(texts)
        for text, encoding in zip(texts, encodings, strict=True):
            size = len(encoding.ids)
            if size > self.max_length:
                count = f"{size} tokens, over {self.max_length}, the model's positions"
                raise UserError(f"{row.origin}: {count}; shorten it")
            if size == 2:  # [CLS] and [SEP]
                raise UserError(f"{row.origin}: no tokens in '{text[:60]}'; there is nothing to score")
        return _Texts(encodings, isinstance(value, list))

    def _records(self, rows: Sequence[_Texts], by_token: bool) -> list[Json]:
        texts = [np.asarray(encoding.ids, np.int32) for row in rows for encoding in row.encodings]
        found, records = iter(token_log_likelihoods(self._found(self._batches(texts)), len(texts))), []
        for row in rows:
            own = [self._record(encoding, next(found), by_token) for encoding in row.encodings]
            records.append(ranked(own) if row.are_ranked else own[0])
        return records

    def _record(self, encoding: Encoding, log_probabilities: Float64[np.ndarray, " _"], by_token: bool) -> Json:
        score, count = float(log_probabilities.sum()), len(log_probabilities)
        record: Json = {"score": score, "tokens": count, "perplexity": math.exp(min(-score / count, 700))}
        if by_token:
            tokens = zip(encoding.ids[1:-1], encoding.offsets[1:-1], log_probabilities.tolist(), strict=True)
            record["table"] = [
                {"token": self.tokenizer.token(i), "start": start, "end": end, "log_probability": log_p}
                for i, (start, end), log_p in tokens
            ]
        return record

    def _batches(self, texts: Sequence[Int32[np.ndarray, " _"]]) -> Iterator[dict[str, np.ndarray]]:
        return hidden_token_batches(texts, self.tokenizer, self._lengths, self._rows, self.method)

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


def ranked(candidates: Sequence[Json]) -> Json:
    """Returns the record of candidates with their records; of equal ones the first goes first."""
    scores = [record["score"] for record in candidates]
    means = [record["score"] / record["tokens"] for record in candidates]
    by_score, by_mean = (sorted(range(len(own)), key=lambda i, own=own: -own[i]) for own in (scores, means))
    return {"candidates": list(candidates), "ranking": by_score, "ranking_per_token": by_mean}


def table(found: Accuracies, pairs: Sequence[MinimalPair]) -> list[Json]:
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


def write_table(rows: Sequence[Json], scorer: Scorer, output: Path) -> None:
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
