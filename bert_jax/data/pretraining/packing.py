"""Several pairs in one row, so that hardly a position is padding (data.packing).

The endless sequence of pairs is cut into stretches, and each stretch fills ROWS_TOGETHER rows: first fit, the longest
pair first. How many pairs a stretch has is decided once, by packing a sample, so that row r stays a pure function of
(seed, r). (Grain's own first fit is an iterator whose position is known only by running it, and ten times as slow.)
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from bert_jax.config import Json
from bert_jax.data.batching.reader import Batch
from bert_jax.data.pretraining.pairs import ChunkSource, Pair, PairRows, PairSettings, shuffled

ROWS_TOGETHER = 1024
# Share of the positions that pairs fill. A stretch varies: with less spare room, some pairs fit nowhere and wait for
# another epoch (English Wikipedia, 512 tokens: none at 0.98, at 0.99 one in a thousand, at worst one in three hundred).
_FILLED = 0.98
_SAMPLE = 4096  # pairs
_TRIALS = 3  # stretches
_MEAN_SHORTEST = 16  # tokens; a row can hold so many pairs of this length
_KEPT = 4  # stretches


@dataclass(frozen=True)
class Packing:
    """The capacity of a row: `length` tokens, of `sequences` pairs, with `predictions` masked tokens in all.

    `budgets[n]` is the number of predictions of a pair of n tokens, the same as in a row of its own.
    """

    length: int
    sequences: int
    predictions: int
    budgets: Int[np.ndarray, " _"]

    @classmethod
    def from_config(cls, data: ConfigDict) -> "Packing":
        length, most = data.sequence_length, data.max_predictions_per_sequence
        budgets = prediction_budgets(data.mask_rate, most, length)
        # Short pairs are rounded up: sixteen of eight tokens want more than one of 128. They wait for another row.
        predictions = max(int(budgets[-1]), min(most, length), round(data.mask_rate * length))
        return cls(length, max(2, length // _MEAN_SHORTEST), predictions, budgets)


def prediction_budgets(rate: float, most: int, length: int) -> Int[np.ndarray, " {length}+1"]:
    """Returns how many tokens of a sequence of n are predicted, n = 0 … length: round(rate × n), from 1 to `most`.

    Made on the host: 0.15 × 190 rounds to another number in float32 than in the original's float64.
    """
    return np.clip(np.asarray([round(rate * n) for n in range(length + 1)], np.int32), 1, min(most, length))


class PackedRows(PairRows):
    """The endless sequence of rows that pairs share. Every process makes all pairs of the stretches that its rows are
    from, and keeps the last few: more processes do not make pairs any faster. Can be pickled, and shared by threads."""

    def __init__(self, source: ChunkSource, settings: PairSettings, packing: Packing, seed: int):
        super().__init__(source, settings, seed)
        self._packing = packing
        self.pairs_together = self._pairs_together()
        self._stretches: dict[int, list[list[Pair]]] = {}
        self._lock = threading.Lock()

    def __call__(self, position: int) -> Batch:
        """Returns a row as `PairRows` does, with position_ids that start at 0 in each pair and are 0 in the padding."""
        stretch, place = divmod(position, ROWS_TOGETHER)
        # Rows were filled from the longest pair to the shortest; a batch must not be of one length.
        pairs = self._rows(stretch)[shuffled(place, ROWS_TOGETHER, self._seed, stretch)]
        return self.row(pairs, self._packing.sequences)

    def first_pair(self, position: int) -> int:
        return position // ROWS_TOGETHER * self.pairs_together

    def __getstate__(self) -> Json:
        return {name: value for name, value in vars(self).items() if name not in ("_stretches", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _stretches={}, _lock=threading.Lock())

    def _rows(self, stretch: int) -> list[list[Pair]]:
        with self._lock:
            if stretch not in self._stretches:
                first = stretch * self.pairs_together
                pairs = [self.pair(number) for number in range(first, first + self.pairs_together)]
                rows = first_fit([pair.tokens for pair in pairs], ROWS_TOGETHER, self._packing)
                self._stretches[stretch] = [[pairs[number] for number in row] for row in rows]
                if len(self._stretches) > _KEPT:
                    self._stretches.pop(next(iter(self._stretches)))
            return self._stretches[stretch]

    def _pairs_together(self) -> int:
        """Returns how many pairs fill ROWS_TOGETHER rows such that no pair of the sample is left out."""
        packing, sample = self._packing, [self.pair(position).tokens for position in range(_SAMPLE)]
        tokens, predictions = np.mean(sample), np.mean(packing.budgets[sample])
        a_row = min(packing.length / tokens, packing.predictions / predictions, packing.sequences)
        count = int(ROWS_TOGETHER * a_row * _FILLED)
        while count > ROWS_TOGETHER:  # which fit in any case
            trials = np.resize(sample, (_TRIALS, count)).tolist()
            if all(sum(map(len, first_fit(lengths, ROWS_TOGETHER, packing))) == count for lengths in trials):
                break
            count -= max(count // 100, 1)
        return max(count, ROWS_TOGETHER)


def first_fit(lengths: Sequence[int], rows: int, packing: Packing) -> list[list[int]]:
    """Returns the numbers of the pairs in each of `rows` rows: each pair, the longest first, goes into the first row
    with room for its tokens, for its predictions and for one more pair. What fits nowhere is left out."""
    members: list[list[int]] = [[] for _ in range(rows)]
    tokens, predictions = np.full(rows, packing.length), np.full(rows, packing.predictions)
    sequences = np.full(rows, packing.sequences)
    for number in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length, budget = lengths[number], packing.budgets[lengths[number]]
        fits = (tokens >= length) & (predictions >= budget) & (sequences > 0)
        row = int(fits.argmax())
        if fits[row]:
            tokens[row] -= length
            predictions[row] -= budget
            sequences[row] -= 1
            members[row].append(number)
    return members
