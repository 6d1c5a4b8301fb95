"""Prepared shards → batches, by Grain: the same rows whatever the number of processes, threads or restarts.

Training reads an endless sequence of rows, epoch after epoch; step s takes rows [s·B, (s+1)·B) and process p
its contiguous share of them, so the state of the iterator is the number of the next step.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from jaxtyping import Int32, Integer
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data.batching.reader import Batch, Share, TrainBatches, read_ahead
from bert_jax.data.pretraining.packing import ROWS_TOGETHER, PackedRows, Packing
from bert_jax.data.pretraining.pairs import ChunkSource, PairSettings, instance, shuffled
from bert_jax.data.pretraining.prepared import PreparedCorpus
from bert_jax.data.pretraining.records import Records


def train_batches(
    prepared: PreparedCorpus,
    config: ConfigDict,
    *,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainBatches:
    """Returns an endless iterator over a process's share of the global batches, from `start_step` on.

    A batch maps the keys of `pairs.instance`, or of `packing.PackedRows` with data.packing, to arrays with a leading
    axis of batch_size / process_count; static masking adds masked_positions and masked_labels int32[B, P] and
    masked_weights float32[B, P].
    Raises UserError for a batch that cannot be shared out and for data that does not fit the config.
    """
    batch_size = config.train.batch_size
    rows = _train_rows(prepared, config)
    share = Share(batch_size, process_index, process_count, "train.batch_size")
    return TrainBatches(
        _Batches(rows, share, stop=None),
        config.data,
        lambda step: divmod(rows.first_pair(step * batch_size), len(rows.source)),
        dataset=prepared.directory.name,
        start_step=start_step,
    )


def eval_batches(
    prepared: PreparedCorpus,
    config: ConfigDict,
    *,
    split: str = "validation",
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields every example of a split once (a random config.eval.max_examples of them, if fewer), always the same rows.

    Each pair has a row of its own, whether training is packed or not, so that the metrics of both are comparable. The
    last batch is filled up with rows of zeros; every process yields the same number of batches.
    """
    rows = _rows(prepared, config, split, config.eval.seed)
    share = Share(config.eval.batch_size, process_index, process_count, "eval.batch_size")
    count = num_eval_examples(prepared, config, split=split)
    batches = -(-count // config.eval.batch_size)
    iterator = read_ahead(_Batches(rows, share, stop=count), config.data, 0, batches)
    try:
        yield from iterator
    finally:
        iterator.close()


def num_train_examples(prepared: PreparedCorpus) -> int:
    """Returns the number of pairs of one epoch."""
    return prepared.num_records("train")


def pairs_per_row(prepared: PreparedCorpus, config: ConfigDict) -> float:
    """Returns how many pairs share a row of training: 1, or with data.packing about the number that fit."""
    return _packed_rows(prepared, config).pairs_together / ROWS_TOGETHER if config.data.packing else 1.0


def num_eval_examples(prepared: PreparedCorpus, config: ConfigDict, *, split: str = "validation") -> int:
    """Returns how many rows `eval_batches` yields, those of zeros not counted."""
    available = prepared.num_records(split)
    return min(config.eval.max_examples or available, available)


class _Rows(Protocol):
    @property
    def source(self) -> ChunkSource:
        """The records of a split."""
        ...

    def __call__(self, position: int) -> Batch: ...

    def first_pair(self, position: int) -> int:
        """Returns the number of the first pair that the row at `position` is made from."""
        ...


class _Pairs:
    """The endless sequence of rows that are made from chunks, one pair each."""

    def __init__(self, source: Records, settings: PairSettings, seed: int):
        self.source, self._settings, self._seed = source, settings, seed

    def __call__(self, position: int) -> Batch:
        return instance(self.source, self._settings, self._seed, position)

    def first_pair(self, position: int) -> int:
        return position


class _StaticInstances:
    """The endless sequence of finished instances: only their order changes from epoch to epoch."""

    def __init__(self, source: Records, sequence_length: int, max_predictions: int, vocab_size: int, seed: int):
        self.source, self._seed, self._vocab_size = source, seed, vocab_size
        self._length, self._max_predictions = sequence_length, max_predictions

    def __call__(self, position: int) -> Batch:
        epoch, index = divmod(position, len(self.source))
        number = shuffled(index, len(self.source), self._seed, epoch)
        record = self.source[number]
        largest = max(int(record["input_ids"].max(initial=0)), int(record["masked_lm_ids"].max(initial=0)))
        if largest >= self._vocab_size:
            raise UserError(
                f"token id {largest} in record {number} of {self.source.directory} is outside the vocabulary of "
                f"{self._vocab_size}: the dataset was prepared with another tokenizer; prepare it again"
            )
        tokens, predictions = len(record["input_ids"]), len(record["masked_lm_ids"])
        positions = record["masked_lm_positions"]
        fits = tokens <= self._length and predictions <= self._max_predictions
        if (
            not fits
            or (len(record["segment_ids"]), len(positions)) != (tokens, predictions)
            or any(positions >= tokens)
        ):
            raise UserError(
                f"record {number} of {self.source.directory} contradicts itself or the manifest: "
                "delete the dataset and prepare it again"
            )
        return {
            "input_ids": _padded(record["input_ids"], self._length),
            "token_type_ids": _padded(record["segment_ids"], self._length),
            "position_ids": np.arange(self._length, dtype=np.int32),
            "sequence_ids": (np.arange(self._length) < tokens).astype(np.int32),
            "masked_positions": _padded(record["masked_lm_positions"], self._max_predictions),
            "masked_labels": _padded(record["masked_lm_ids"], self._max_predictions),
            "masked_weights": (np.arange(self._max_predictions) < predictions).astype(np.float32),
            "first_tokens": np.zeros(1, np.int32),
            "next_sentence_labels": np.asarray([record["next_sentence_labels"]], np.int32),
            "next_sentence_weights": np.ones(1, np.float32),
        }

    def first_pair(self, position: int) -> int:
        return position


class _Batches:
    """A function from the number of a batch to its arrays; rows from `stop` on are zeros. Can be pickled for Grain's
    workers."""

    def __init__(self, rows: _Rows, share: Share, stop: int | None):
        self._rows, self._share, self._stop = rows, share, stop

    def __call__(self, batch: int) -> Batch:
        positions = self._share.positions(batch)
        real = [position for position in positions if self._stop is None or position < self._stop]
        # A process whose share of the last batch is empty still needs the keys and shapes of a row.
        rows = [self._rows(position) for position in real or [0]]
        stacked: Batch = {}
        for key, value in rows[0].items():
            stacked[key] = np.zeros((self._share.size, *value.shape), value.dtype)
            if real:
                np.stack([row[key] for row in rows], out=stacked[key][: len(rows)])
        if self._stop is not None:  # an evaluation: the number of each record, which its masks depend on
            stacked["records"] = np.asarray(positions, np.int32)
        return stacked


def _train_rows(prepared: PreparedCorpus, config: ConfigDict) -> _Rows:
    return _packed_rows(prepared, config) if config.data.packing else _rows(prepared, config, "train", config.seed)


def _packed_rows(prepared: PreparedCorpus, config: ConfigDict) -> PackedRows:
    _check(prepared, config, "train")
    settings = PairSettings.from_config(config.data, prepared.tokenizer)
    return PackedRows(prepared.source("train"), settings, Packing.from_config(config.data), config.seed)


def _rows(prepared: PreparedCorpus, config: ConfigDict, split: str, seed: int) -> _Rows:
    _check(prepared, config, split)
    data, source, tokenizer = config.data, prepared.source(split), prepared.tokenizer
    if data.masking == "static":
        predictions = data.max_predictions_per_sequence
        return _StaticInstances(source, data.sequence_length, predictions, tokenizer.vocab_size, seed)
    return _Pairs(source, PairSettings.from_config(data, tokenizer), seed)


def _check(prepared: PreparedCorpus, config: ConfigDict, split: str) -> None:
    """Raises UserError if the dataset was prepared for another config, or is too small for its pairing."""
    data, manifest = config.data, prepared.manifest
    static_keys = ["max_predictions_per_sequence"] if data.masking == "static" else []
    for key in ["masking", "sequence_length", *static_keys]:
        if data[key] != manifest["settings"][key]:
            raise UserError(
                f"{prepared.directory} was prepared with data.{key}={manifest['settings'][key]}, the config says "
                f"{data[key]}: prepare again (--mode=prepare)"
            )
    prepared.source(split)  # which raises for an empty one, before its documents are counted
    if data.masking == "dynamic" and data.pairing == "nsp" and manifest["splits"][split]["documents"] < 2:
        raise UserError(
            f"the {split} split of {prepared.directory} has one document, nsp draws random sentences from another: "
            f"raise data.{split}_share, add documents, or set --config.data.pairing=sop (or none)"
        )


def _padded(values: Integer[np.ndarray, " N"], length: int) -> Int32[np.ndarray, " L"]:
    row = np.zeros(length, np.int32)
    row[: len(values)] = values
    return row
