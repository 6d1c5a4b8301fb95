"""Which items a batch has: of like length, to be padded little, or of all lengths, to share rows.

Batches of all lengths are dealt: the items are sorted by length, cut into as many strata as a batch has items, and
every batch gets one of each stratum; the batch that has most so far gets the shortest of the next. So all batches have
about as many tokens, which one shape then holds.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from jaxtyping import Int

from bert_jax.data.batching.items import Item

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
            batches = deal(order, self._keys, self.batches_per_epoch, random)
            return [batches[i] for i in random.permutation(len(batches))]
        stretch = _SORTED_TOGETHER * self._batch_size
        batches = []
        for start in range(0, len(order), stretch):
            part = order[start : start + stretch]
            part = part[np.argsort(-self._keys[part], kind="stable")]
            batches += [part[i : i + self._batch_size] for i in range(0, len(part), self._batch_size)]
        return [batches[i] for i in random.permutation(len(batches))]


class SortedOrder:
    """The longest items first: the largest shape, and any lack of memory, comes with the first batch. Or `dealt`."""

    def __init__(self, items: Sequence[Item], batch_size: int, *, dealt: bool):
        keys = _keys(items)
        self.batches = steps_per_epoch(len(items), batch_size)
        order = np.argsort(-keys, kind="stable")
        cuts = range(0, len(order), batch_size)
        self._of_batch = deal(order, keys, self.batches, None) if dealt else [order[i : i + batch_size] for i in cuts]

    def __call__(self, batch: int) -> Numbers:
        return self._of_batch[batch]


def deal(
    order: Numbers, lengths: Int[np.ndarray, " N"], count: int, random: np.random.Generator | None
) -> list[Numbers]:
    """`count` batches of the items in `order`, with about as many tokens each. Chance decides between batches that
    differ by less than the items of a stratum do, so that items of rare lengths, too, meet others in every epoch."""
    order = order[np.argsort(-lengths[order], kind="stable")]
    batches: list[list[int]] = [[] for _ in range(count)]
    tokens = np.zeros(count, np.int64)
    for start in range(0, len(order), count):
        stratum = order[start : start + count]
        spread = lengths[stratum[0]] - lengths[stratum[-1]]
        chance = np.zeros(count) if random is None else random.uniform(0, spread + 1, count)
        fewest = np.argsort(tokens + chance, kind="stable")[: len(stratum)]
        for batch, item in zip(fewest.tolist(), stratum.tolist(), strict=True):
            batches[batch].append(item)
        tokens[fewest] += lengths[stratum]
    return [np.asarray(batch) for batch in batches]


def steps_per_epoch(num_items: int, batch_size: int) -> int:
    return -(-num_items // batch_size)


def _keys(items: Sequence[Item]) -> Int[np.ndarray, " N"]:
    """Items of several parts are longer than any of one."""
    return np.asarray([len(item.parts) * 1_000_000 + item.length for item in items], np.int64)
