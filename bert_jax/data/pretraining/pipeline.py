"""Prepared shards → batches, by Grain: the same rows whatever the number of processes, threads or restarts.

Training reads an endless sequence of rows, epoch after epoch; step s takes rows [s·B, (s+1)·B) and process p
its contiguous share of them, so the state of the iterator is the number of the next step.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from jaxtyping import Int32, Integer
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data.batching.reader import Batch, Share, TrainBatches, each_once
from bert_jax.data.pretraining.packing import ROWS_TOGETHER, PackedRows, Packing
from bert_jax.data.pretraining.pairs import AGAIN, ChunkSource, PairRows, PairSettings, shuffled
from bert_jax.data.pretraining.prepared import PreparedCorpus
from bert_jax.data.tokenizers.encoding import Tokenizer


def train_batches(
    prepared: PreparedCorpus,
    config: ConfigDict,
    *,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    origin: int = 0,
) -> TrainBatches:
    """Returns an endless iterator over a process's share of the global batches, from `start_step` on, where batch 0
    would begin with row `origin`.

    A batch maps the keys of `PairRows` to arrays with a leading axis of batch_size / process_count; static masking adds
    masked_positions and masked_labels int32[B, P] and masked_weights float32[B, P]. Raises UserError.
    """
    rows = _packed_rows(prepared, config) if config.data.packing else _rows(prepared, config, "train", config.seed)
    share = Share(config.train.batch_size, process_index, process_count, "train.batch_size", origin)
    position = lambda step: divmod(rows.first_pair(share.first(step)), len(rows.source))  # noqa: E731
    dataset = prepared.directory.name
    return TrainBatches(
        partial(_batch, rows, share, None), config.data, position, dataset=dataset, start_step=start_step
    )


def eval_batches(
    prepared: PreparedCorpus,
    config: ConfigDict,
    *,
    split: str = "validation",
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Returns every example of a split once, or a random config.eval.max_examples of them, always the same rows.

    Each pair has a row of its own, whether training is packed or not, so that the metrics of both are comparable. The
    last batch is filled up with rows of zeros; every process yields the same number of batches.
    """
    rows = _rows(prepared, config, split, config.eval.seed)
    share = Share(config.eval.batch_size, process_index, process_count, "eval.batch_size")
    count = num_eval_examples(prepared, config, split=split)
    return each_once(partial(_batch, rows, share, count), config.data, -(-count // config.eval.batch_size))


def padding_batch(config: ConfigDict, tokenizer: Tokenizer, *, training: bool) -> Batch:
    """Returns a global batch of training or of an evaluation in which every row is padding: its arrays have the names,
    shapes and dtypes of those with data."""
    data, settings = config.data, PairSettings.from_config(config.data, tokenizer)
    if data.masking == "static":
        nothing = np.zeros(0, np.int32)
        names = ("input_ids", "segment_ids", "masked_lm_positions", "masked_lm_ids")
        record = dict.fromkeys(names, nothing) | {"next_sentence_labels": 0}
        row = _StaticRows([record], settings, data.max_predictions_per_sequence, 0)(0)
    else:
        is_shared = data.packing and training
        row = PairRows([], settings, 0).row([], Packing.from_config(data).sequences if is_shared else 1)
    key = "train.batch_size" if training else "eval.batch_size"
    share = Share((config.train if training else config.eval).batch_size, 0, 1, key)
    return _batch(lambda _: row, share, None if training else 0, 0)


def pairs_per_row(prepared: PreparedCorpus, config: ConfigDict) -> float:
    """Returns how many pairs share a row of training: 1, or with data.packing about the number that fit."""
    return _packed_rows(prepared, config).pairs_together / ROWS_TOGETHER if config.data.packing else 1.0


def following_row(prepared: PreparedCorpus, before: ConfigDict, rows: int, config: ConfigDict) -> int:
    """Returns the row with which training continues that has read so many rows of the same dataset with the config
    `before`. Rows that pairs share hold others at another mask rate; then it begins ROWS_TOGETHER rows with the first
    pair that may not have been read."""
    if not config.data.packing or config.data.mask_rate == before.data.mask_rate:
        return rows
    pairs = _packed_rows(prepared, before).first_pair(rows)
    return -(-pairs // _packed_rows(prepared, config).pairs_together) * ROWS_TOGETHER


def num_eval_examples(prepared: PreparedCorpus, config: ConfigDict, *, split: str = "validation") -> int:
    """Returns how many rows `eval_batches` yields, those of zeros not counted."""
    available = prepared.num_records(split)
    return min(config.eval.max_examples or available, available)


class _StaticRows(PairRows):
    """The endless sequence of finished instances: only their order changes from epoch to epoch."""

    def __init__(self, source: ChunkSource, settings: PairSettings, max_predictions: int, seed: int):
        super().__init__(source, settings, seed)
        self._max_predictions = max_predictions

    def __call__(self, position: int) -> Batch:
        epoch, index = divmod(position, len(self.source))
        number = shuffled(index, len(self.source), self._seed, epoch)
        record, length, most = self.source[number], self._settings.sequence_length, self._max_predictions
        tokens, predictions = len(record["input_ids"]), len(record["masked_lm_ids"])
        positions = record["masked_lm_positions"]
        others = len(record["segment_ids"]), len(positions)
        if tokens > length or predictions > most or others != (tokens, predictions) or np.any(positions >= tokens):
            raise UserError(f"record {number} of {self._name()} contradicts itself or the manifest: {AGAIN}")
        row = {
            "input_ids": _padded(record["input_ids"], length),
            "token_type_ids": _padded(record["segment_ids"], length),
            "position_ids": self._positions.copy(),
            "sequence_ids": (self._positions < tokens).astype(np.int32),
            "masked_positions": _padded(positions, most),
            "masked_labels": _padded(record["masked_lm_ids"], most),
            "masked_weights": (np.arange(most) < predictions).astype(np.float32),
            "first_tokens": np.zeros(1, np.int32),
            "next_sentence_labels": np.asarray([record["next_sentence_labels"]], np.int32),
            "next_sentence_weights": np.ones(1, np.float32),
        }
        for name in ("input_ids", "masked_labels"):
            self._check_ids(number, row[name])
        return row


def _batch(rows: Callable[[int], Batch], share: Share, stop: int | None, batch: int) -> Batch:
    """Returns this process's rows of a batch; those from `stop` on, which an evaluation has, are zeros."""
    positions = share.positions(batch)
    real = [position for position in positions if stop is None or position < stop]
    # A process whose share of the last batch is empty still needs the keys and shapes of a row.
    made = [rows(position) for position in real or [0]]
    stacked: Batch = {}
    for key, value in made[0].items():
        stacked[key] = np.zeros((share.size, *value.shape), value.dtype)
        if real:
            np.stack([row[key] for row in made], out=stacked[key][: len(made)])
    if stop is not None:  # the number of each record, which its masks depend on
        stacked["records"] = np.asarray(positions, np.int32)
    return stacked


def _packed_rows(prepared: PreparedCorpus, config: ConfigDict) -> PackedRows:
    settings = _settings(prepared, config, "train")
    return PackedRows(prepared.source("train"), settings, Packing.from_config(config.data), config.seed)


def _rows(prepared: PreparedCorpus, config: ConfigDict, split: str, seed: int) -> PairRows:
    settings, source = _settings(prepared, config, split), prepared.source(split)
    if config.data.masking == "static":
        return _StaticRows(source, settings, config.data.max_predictions_per_sequence, seed)
    return PairRows(source, settings, seed)


def _settings(prepared: PreparedCorpus, config: ConfigDict, split: str) -> PairSettings:
    """Raises UserError if the dataset was prepared for another config, or is too small for its pairing."""
    data, manifest = config.data, prepared.manifest
    static_keys = ["max_predictions_per_sequence"] if data.masking == "static" else []
    for key in ["masking", "sequence_length", *static_keys]:
        if data[key] != manifest["settings"][key]:
            wrong = f"data.{key}={manifest['settings'][key]}, the config says {data[key]}"
            raise UserError(f"{prepared.directory} was prepared with {wrong}: prepare again (--mode=prepare)")
    prepared.source(split)  # which raises for an empty one, before its documents are counted
    if data.masking == "dynamic" and data.pairing == "nsp" and manifest["splits"][split]["documents"] < 2:
        wrong = "has one document, nsp draws random sentences from another"
        remedy = f"raise data.{split}_share, add documents, or set --config.data.pairing=sop (or none)"
        raise UserError(f"the {split} split of {prepared.directory} {wrong}: {remedy}")
    return PairSettings.from_config(data, prepared.tokenizer)


def _padded(values: Integer[np.ndarray, " N"], length: int) -> Int32[np.ndarray, " L"]:
    row = np.zeros(length, np.int32)
    row[: len(values)] = values
    return row
