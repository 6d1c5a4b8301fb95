"""Prepared shards → batches, by Grain: the same rows whatever the number of processes, threads or restarts.

Training reads an endless sequence of rows, epoch after epoch; step s takes rows [s·B, (s+1)·B) and process p
its contiguous share of them, so the state of the iterator is the number of the next step.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain

import numpy as np
from jaxtyping import Int32, Integer
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data.batching.reader import Batch, BatchReader, Share, TrainBatches, each_once
from bert_jax.data.pretraining.corpora import Mixture, languages_of
from bert_jax.data.pretraining.mixture import MixedRows, with_corpus
from bert_jax.data.pretraining.packing import ROWS_TOGETHER, PackedRows, Packing
from bert_jax.data.pretraining.pairs import AGAIN, ChunkSource, PairRows, PairSettings, shuffled
from bert_jax.data.pretraining.prepared import PreparedCorpus
from bert_jax.data.tokenizers.encoding import Tokenizer

Prepared = PreparedCorpus | Mixture


def train_batches(
    prepared: Prepared,
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
    share = Share(config.train.batch_size, process_index, process_count, "train.batch_size", origin)
    if isinstance(prepared, Mixture):
        of_each = [
            partial(_row_of_corpus, _train_rows(one.prepared, config, one.is_parallel), numbers)
            for one, numbers in zip(prepared.members, _numbers(prepared, config), strict=True)
        ]
        rows = MixedRows(of_each, [member.share for member in prepared.members], config.seed)
        position = lambda step: divmod(share.first(step), prepared.num_records("train"))  # noqa: E731
    else:
        rows = lone = _train_rows(prepared, config)
        position = lambda step: divmod(lone.first_pair(share.first(step)), len(lone.source))  # noqa: E731
    batches = partial(_batch, rows, share, None)
    return BatchReader(batches, config.data, position, dataset=prepared.name, start_step=start_step)


def eval_batches(
    prepared: Prepared,
    config: ConfigDict,
    *,
    split: str = "validation",
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Returns every example of a split once, or a random config.eval.max_examples of them, always the same rows.

    Each pair has a row of its own, whether training is packed or not, so that the metrics of both are comparable. The
    last batch is filled up with rows of zeros; every process yields the same number of batches. The corpora of a
    mixture come one after the other, each with as many examples and with rows as if it were alone.
    """
    share = Share(config.eval.batch_size, process_index, process_count, "eval.batch_size")
    if not isinstance(prepared, Mixture):
        return _each_once(_rows(prepared, config, split, config.eval.seed), prepared, config, split, share)
    numbers = _numbers(prepared, config)
    return chain.from_iterable(
        _each_once(
            partial(_row_of_corpus, _rows(one.prepared, config, split, config.eval.seed, one.is_parallel), numbers[i]),
            *(one.prepared, config, split, share),
        )
        for i, one in enumerate(prepared.members)
        if one.prepared.num_records(split)
    )


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
    if config.corpora:
        row = with_corpus(row, 0, (0, 0))
    key = "train.batch_size" if training else "eval.batch_size"
    share = Share((config.train if training else config.eval).batch_size, 0, 1, key)
    return _batch(lambda _: row, share, None if training else 0, 0)


def pairs_per_row(prepared: Prepared, config: ConfigDict) -> float:
    """Returns how many pairs share a row of training: 1, or with data.packing about the number that fit."""
    if not config.data.packing:
        return 1.0
    if isinstance(prepared, Mixture):
        return sum(
            one.share * _packed_rows(one.prepared, config, one.is_parallel).pairs_together / ROWS_TOGETHER
            for one in prepared.members
            if one.share
        )
    return _packed_rows(prepared, config).pairs_together / ROWS_TOGETHER


def following_row(prepared: Prepared, before: ConfigDict, rows: int, config: ConfigDict) -> int:
    """Returns the row with which training continues that has read so many rows of the same dataset with the config
    `before`. Rows that pairs share hold others at another mask rate; then it begins ROWS_TOGETHER rows with the first
    pair that may not have been read. Raises UserError for a mixture, whose corpora would begin with different rows."""
    if not config.data.packing or config.data.mask_rate == before.data.mask_rate:
        return rows
    if isinstance(prepared, Mixture):
        raise UserError("train.phases: with corpora and data.packing all phases have one mask_rate; leave it out there")
    pairs = _packed_rows(prepared, before).first_pair(rows)
    return -(-pairs // _packed_rows(prepared, config).pairs_together) * ROWS_TOGETHER


def num_eval_examples(prepared: PreparedCorpus, config: ConfigDict, *, split: str = "validation") -> int:
    """Returns how many rows of a corpus `eval_batches` yields, those of zeros not counted."""
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


def _each_once(
    rows: Callable[[int], Batch], prepared: PreparedCorpus, config: ConfigDict, split: str, share: Share
) -> Iterator[Batch]:
    count = num_eval_examples(prepared, config, split=split)
    return each_once(partial(_batch, rows, share, count), config.data, -(-count // config.eval.batch_size))


def _numbers(prepared: Mixture, config: ConfigDict) -> list[tuple[int, tuple[int, int]]]:
    """Returns for each corpus its number and those of its languages, as rows have them."""
    known = languages_of(config)
    return [(i, (known.index(a), known.index(b))) for i, (a, b) in enumerate(one.languages for one in prepared.members)]


def _row_of_corpus(rows: Callable[[int], Batch], numbers: tuple[int, tuple[int, int]], position: int) -> Batch:
    return with_corpus(rows(position), *numbers)


def _train_rows(prepared: PreparedCorpus, config: ConfigDict, is_parallel: bool = False) -> PairRows:
    if config.data.packing:
        return _packed_rows(prepared, config, is_parallel)
    return _rows(prepared, config, "train", config.seed, is_parallel)


def _packed_rows(prepared: PreparedCorpus, config: ConfigDict, is_parallel: bool = False) -> PackedRows:
    settings = _settings(prepared, config, "train", is_parallel)
    return PackedRows(prepared.source("train"), settings, Packing.from_config(config.data), config.seed)


def _rows(prepared: PreparedCorpus, config: ConfigDict, split: str, seed: int, is_parallel: bool = False) -> PairRows:
    settings, source = _settings(prepared, config, split, is_parallel), prepared.source(split)
    if config.data.masking == "static":
        return _StaticRows(source, settings, config.data.max_predictions_per_sequence, seed)
    return PairRows(source, settings, seed)


def _settings(prepared: PreparedCorpus, config: ConfigDict, split: str, is_parallel: bool) -> PairSettings:
    """Raises UserError if the dataset was prepared for another config, or is too small for its pairing."""
    data, manifest = config.data, prepared.manifest
    static_keys = ["max_predictions_per_sequence"] if data.masking == "static" else []
    for key in ["masking", "sequence_length", *static_keys]:
        if data[key] != manifest["settings"][key]:
            wrong = f"data.{key}={manifest['settings'][key]}, the config says {data[key]}"
            raise UserError(f"{prepared.directory} was prepared with {wrong}: prepare again (--mode=prepare)")
    prepared.source(split)  # which raises for an empty one, before its documents are counted
    settings = PairSettings.from_config(data, prepared.tokenizer)
    if is_parallel:
        return replace(settings, pairing="translation", restart_positions=data.restart_positions)
    if data.masking == "dynamic" and data.pairing == "nsp" and manifest["splits"][split]["documents"] < 2:
        wrong = "has one document, nsp draws random sentences from another"
        remedy = f"raise data.{split}_share, add documents, or set --config.data.pairing=sop (or none)"
        raise UserError(f"the {split} split of {prepared.directory} {wrong}: {remedy}")
    return settings


def _padded(values: Integer[np.ndarray, " N"], length: int) -> Int32[np.ndarray, " L"]:
    row = np.zeros(length, np.int32)
    row[: len(values)] = values
    return row
