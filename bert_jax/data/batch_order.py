"""Which items a batch has: of like length, to be padded little, or of all lengths, to share rows.

Batches of all lengths are dealt: the items are sorted by length, cut into as many strata as a batch has items, and
every batch gets one of each stratum. So any two batches have about as many tokens, which one shape then holds.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from jaxtyping import Int

from bert_jax.data.items import Item

Numbers = Int[np.ndarray, " n"]  # of the items of a batch

_SORTED_TOGETHER = 50  # batches whose items are sorted by length before they are cut into batches


class Order(Protocol):
    batches: int

    def __call__(self, batch: int) -> Numbers: ...


class EpochOrder:
    """Number of a training batch, counted through all epochs → numbers of its items.

    `dealt`: batches of all lengths. Otherwise an epoch is shuffled, sorted within stretches of 50 batches, cut into
    batches, and these are shuffled again.
    """

    def __init__(self, items: Sequence[Item], batch_size: int, seed: int, *, dealt: bool):
        self._keys = _keys(items)
        self._batch_size, self._seed, self._dealt = batch_size, seed, dealt
        self.batches_per_epoch = steps_per_epoch(len(items), batch_size)
        self._cached = lru_cache(maxsize=2)(self.epoch)  # reading ahead may stand on two epochs

    def __call__(self, batch: int) -> Numbers:
        epoch, position = divmod(batch, self.batches_per_epoch)
        return self._cached(epoch)[position]

    def epoch(self, epoch: int) -> list[Numbers]:
        random = np.random.default_rng((self._seed, epoch))
        order = random.permutation(len(self._keys))
        if self._dealt:
            order = order[np.argsort(-self._keys[order], kind="stable")]
            count = self.batches_per_epoch
            strata = [random.permutation(order[start : start + count]) for start in range(0, len(order), count)]
            return [np.asarray([stratum[i] for stratum in strata if i < len(stratum)]) for i in range(count)]
        stretch = _SORTED_TOGETHER * self._batch_size
        batches = []
        for start in range(0, len(order), stretch):
            part = order[start : start + stretch]
            part = part[np.argsort(-self._keys[part], kind="stable")]
            batches += [part[i : i + self._batch_size] for i in range(0, len(part), self._batch_size)]
        return [batches[i] for i in random.permutation(len(batches))]


class SortedOrder:
    """The longest items first: the largest shape, and any lack of memory, comes with the first batch. `dealt`: every
    batch has the longest of those left, and each so-many-th after it."""

    def __init__(self, items: Sequence[Item], batch_size: int, *, dealt: bool):
        self._order, self._batch_size, self._dealt = np.argsort(-_keys(items), kind="stable"), batch_size, dealt
        self.batches = steps_per_epoch(len(items), batch_size)

    def __call__(self, batch: int) -> Numbers:
        if self._dealt:
            return self._order[batch :: self.batches]
        return self._order[batch * self._batch_size : (batch + 1) * self._batch_size]


def steps_per_epoch(num_items: int, batch_size: int) -> int:
    return -(-num_items // batch_size)


def _keys(items: Sequence[Item]) -> Int[np.ndarray, " N"]:
    """Items of several parts are longer than any of one."""
    return np.asarray([len(item.parts) * 1_000_000 + item.length for item in items], np.int64)
