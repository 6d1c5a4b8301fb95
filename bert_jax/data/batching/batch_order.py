"""Which items a batch has: items of like length, so that little is padded, or of mixed lengths, to share rows.

For batches of mixed lengths the items are sorted by length and cut into length groups of as many items as there are
batches. Every batch gets one item of each group; the batch that has most tokens so far gets the shortest of the next
group. So all batches have about as many tokens, and one shape, which is one compiled program, holds them all.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int

from bert_jax.data.batching.items import Item

Numbers = Int[np.ndarray, " _"]  # of the items of a batch

# Items are sorted by length within so many batches. Over the whole epoch the same items would always meet.
_SORTED_TOGETHER = 50


class EpochOrder:
    """A function from the number of a training batch, counted through all epochs, to the numbers of its items.

    With `mixed`, batches have items of mixed lengths. Otherwise an epoch is shuffled, sorted by length within stretches
    of 50 batches, cut into batches, and these are shuffled again.
    """

    def __init__(self, items: Sequence[Item], batch_size: int, seed: int, *, mixed: bool):
        self._lengths = _sort_lengths(items)
        self._batch_size, self._seed, self._mixed = batch_size, seed, mixed
        self.batches_per_epoch = steps_per_epoch(len(items), batch_size)
        self._cached = lru_cache(maxsize=2)(self.epoch)  # what is read ahead may be of the next epoch

    def __call__(self, batch: int) -> Numbers:
        epoch, position = divmod(batch, self.batches_per_epoch)
        return self._cached(epoch)[position]

    def epoch(self, epoch: int) -> list[Numbers]:
        """Returns the batches of an epoch; they are a function of (seed, epoch) alone, so resuming is arithmetic."""
        random = np.random.default_rng((self._seed, epoch))
        order = random.permutation(len(self._lengths))
        if self._mixed:
            batches = assign(order, self._lengths, self.batches_per_epoch, random)
        else:
            stretch = _SORTED_TOGETHER * self._batch_size
            parts = (order[start : start + stretch] for start in range(0, len(order), stretch))
            batches = [batch for part in parts for batch in _cut_sorted(part, self._lengths, self._batch_size)]
        return [batches[i] for i in random.permutation(len(batches))]


def sorted_batches(items: Sequence[Item], batch_size: int, *, mixed: bool) -> list[Numbers]:
    """Returns the batches of an evaluation: the longest items first, or with `mixed` batches of mixed lengths.

    The largest shape comes with the first batch, so that a lack of memory shows at once.
    """
    lengths, order = _sort_lengths(items), np.arange(len(items))
    if mixed:
        return assign(order, lengths, steps_per_epoch(len(items), batch_size), None)
    return _cut_sorted(order, lengths, batch_size)


def assign(
    order: Numbers, lengths: Int[np.ndarray, " N"], count: int, random: np.random.Generator | None
) -> list[Numbers]:
    """Assigns the items in `order` to `count` batches with about as many tokens each.

    Chance decides between batches that differ by less than the items of a length group do: without it the few items of
    a rare length would meet the same others in every epoch. `random=None`: no chance.
    """
    order = order[np.argsort(-lengths[order], kind="stable")]
    batches: list[list[int]] = [[] for _ in range(count)]
    tokens = np.zeros(count, np.int64)
    for start in range(0, len(order), count):
        group = order[start : start + count]
        spread = lengths[group[0]] - lengths[group[-1]]
        chance = np.zeros(count) if random is None else random.uniform(0, spread + 1, count)
        fewest = np.argsort(tokens + chance, kind="stable")[: len(group)]
        for batch, item in zip(fewest.tolist(), group.tolist(), strict=True):
            batches[batch].append(item)
        tokens[fewest] += lengths[group]
    return [np.asarray(batch) for batch in batches]


def steps_per_epoch(num_items: int, batch_size: int) -> int:
    return -(-num_items // batch_size)


def _cut_sorted(order: Numbers, lengths: Int[np.ndarray, " N"], size: int) -> list[Numbers]:
    order = order[np.argsort(-lengths[order], kind="stable")]
    return [order[i : i + size] for i in range(0, len(order), size)]


def _sort_lengths(items: Sequence[Item]) -> Int[np.ndarray, " N"]:
    """Returns the lengths, of an item with a target those of both together, but items of more parts always count as
    longer, since parts decide about the shape first."""
    return np.asarray([len(item.parts) * 1_000_000 + item.length + item.target_length for item in items], np.int64)
