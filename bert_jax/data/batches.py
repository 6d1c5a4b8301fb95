"""Encoded examples of any length → batches of few shapes, in an order that is a function of (seed, epoch).

An `Item` is one example as the model sees it: one part (a text, a pair, a window with a question) or several (the
windows of a long text, the choices of a question). A batch has one of at most `data.buckets` shapes, known before the
first step:

    input_ids, token_type_ids, position_ids, sequence_ids   int32[B, S, L]   S parts of L tokens; 0 = padding
    part_weights                                            float32[B, S]    0 = no part
    item_ids                                                int32[B]         number of the item; -1 = a filling row
    item_weights                                            float32[B]       0 = a filling row
    what the task adds to its items: per item [B, …], per token [B, S, L]
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int, Int32
from ml_collections import ConfigDict

from bert_jax.data.encoding import Encoding
from bert_jax.data.pipeline import ENDLESS, Batch, Share, Steps, read_ahead

Shape = tuple[int, int]  # parts, tokens

_SORTED_TOGETHER = 50  # batches whose items are sorted by length before they are cut into batches
_ROUNDED_TO = 4  # tokens: lengths of buckets are multiples of it


@dataclass(frozen=True, slots=True)
class Part:
    """Token ids and types of one row, special tokens included."""

    ids: Int32[np.ndarray, " L"]
    type_ids: Int32[np.ndarray, " L"]

    @classmethod
    def of(cls, encoding: Encoding) -> "Part":
        return cls(np.asarray(encoding.ids, np.int32), np.asarray(encoding.type_ids, np.int32))


@dataclass(frozen=True, slots=True)
class Item:
    """`values` are arrays of one shape for all items; `token_values` have one entry a token of the only part."""

    parts: tuple[Part, ...]
    values: dict[str, np.ndarray] = field(default_factory=dict)
    token_values: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return max(len(part.ids) for part in self.parts)


class TrainBatches(Steps):
    """Endless: every epoch takes each item once, in an order of its own; the last batch of an epoch is filled up.

    Items of like length share a batch: an epoch is shuffled, sorted within stretches of 50 batches, cut into
    batches, and these are shuffled again.
    """

    def __init__(
        self,
        items: Sequence[Item],
        shapes: Sequence[Shape],
        config: ConfigDict,
        *,
        fingerprint: str,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ):
        size = config.train.batch_size
        share = Share(size, process_index, process_count, "train.batch_size")
        order = _ShuffledOrder(items, size, config.seed)
        self._steps_per_epoch, self._fingerprint = order.batches_per_epoch, fingerprint
        batches = read_ahead(_Collate(items, shapes, share, order), config.data, start_step, ENDLESS)
        super().__init__(batches, start_step)

    def state(self) -> dict[str, Any]:
        epoch, position = divmod(self._step, self._steps_per_epoch)
        return {"dataset": self._fingerprint, "step": self._step, "epoch": epoch, "position": position}


def ordered_batches(
    items: Sequence[Item],
    shapes: Sequence[Shape],
    batch_size: int,
    data: ConfigDict,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every item once, the longest first."""
    share = Share(batch_size, process_index, process_count, "eval.batch_size")
    order = _SortedOrder(items, batch_size)
    iterator = read_ahead(_Collate(items, shapes, share, order), data, 0, order.batches)
    try:
        yield from iterator
    finally:
        iterator.close()


def steps_per_epoch(num_items: int, batch_size: int) -> int:
    return -(-num_items // batch_size)


def choose_shapes(
    items: Sequence[Item], batch_size: int, max_shapes: int, max_length: int, *, worth: float = 0.0
) -> list[Shape]:
    """At most `max_shapes` shapes (parts, tokens) that waste least on batches of these items; the last fits any.

    `worth`: the tokens of an epoch that one more shape has to save, since each has to be compiled. The fewest parts get
    all the lengths that are left over: texts of several windows are as long as the model anyway.
    """
    order = _ShuffledOrder(items, batch_size, seed=0).epoch(0)
    most = [_need(items, batch) for batch in order]
    largest = (max(len(item.parts) for item in items), max(item.length for item in items))
    found: dict[float, list[Shape]] = {}
    for number in range(max_shapes, 0, -1):
        shapes = _shapes([*most, largest], number, max_length)
        tokens = batch_size * sum(_area(_fitting(shapes, *need)) for need in most)
        found[tokens + worth * len(shapes)] = shapes
    return found[min(found)]


def shapes_worth_their_programs(
    shapes: Sequence[Shape], items: Sequence[Item], batch_size: int, *, worth: float
) -> list[Shape]:
    """Those of `shapes` that `ordered_batches` of these items had best use, if each has to save `worth` tokens."""
    order = _SortedOrder(items, batch_size)
    needs = [_need(items, order(number)) for number in range(order.batches)]

    def cost(chosen: Sequence[Shape]) -> float:
        return batch_size * sum(_area(_fitting(chosen, *need)) for need in needs) + worth * len(chosen)

    largest = _fitting(shapes, max(parts for parts, _ in needs), max(length for _, length in needs))
    smaller = [shape for shape in shapes if _area(shape) < _area(largest)]
    choices = ([*some, largest] for n in range(len(smaller) + 1) for some in itertools.combinations(smaller, n))
    return min(choices, key=cost)


def mean_shape(items: Sequence[Item], shapes: Sequence[Shape], batch_size: int) -> tuple[float, float]:
    """Over the batches of a first epoch: rows (parts) a batch, and tokens a row, padding included."""
    batches = [_shape_of(shapes, items, batch) for batch in _ShuffledOrder(items, batch_size, seed=0).epoch(0)]
    rows = batch_size * float(np.mean([parts for parts, _ in batches]))
    places = batch_size * float(np.mean([parts * length for parts, length in batches]))
    return rows, places / rows


class _ShuffledOrder:
    """Number of a training batch, counted through all epochs → numbers of its items."""

    def __init__(self, items: Sequence[Item], batch_size: int, seed: int):
        self._lengths = np.asarray([len(item.parts) * 1_000_000 + item.length for item in items])
        self._batch_size, self._seed = batch_size, seed
        self.batches_per_epoch = steps_per_epoch(len(items), batch_size)
        self._cached = lru_cache(maxsize=2)(self.epoch)  # reading ahead may stand on two epochs

    def __call__(self, batch: int) -> Int[np.ndarray, " n"]:
        epoch, position = divmod(batch, self.batches_per_epoch)
        return self._cached(epoch)[position]

    def epoch(self, epoch: int) -> list[Int[np.ndarray, " n"]]:
        random = np.random.default_rng((self._seed, epoch))
        order = random.permutation(len(self._lengths))
        stretch = _SORTED_TOGETHER * self._batch_size
        batches = []
        for start in range(0, len(order), stretch):
            part = order[start : start + stretch]
            part = part[np.argsort(-self._lengths[part], kind="stable")]
            batches += [part[i : i + self._batch_size] for i in range(0, len(part), self._batch_size)]
        return [batches[i] for i in random.permutation(len(batches))]


class _SortedOrder:
    """The longest items first: the largest shape, and any lack of memory, comes with the first batch."""

    def __init__(self, items: Sequence[Item], batch_size: int):
        keys = [len(item.parts) * 1_000_000 + item.length for item in items]
        self._order, self._batch_size = np.argsort(-np.asarray(keys, np.int64), kind="stable"), batch_size
        self.batches = steps_per_epoch(len(items), batch_size)

    def __call__(self, batch: int) -> Int[np.ndarray, " n"]:
        return self._order[batch * self._batch_size : (batch + 1) * self._batch_size]


class _Collate:
    """Number of a batch → this process's rows of it."""

    def __init__(self, items: Sequence[Item], shapes: Sequence[Shape], share: Share, order: Any):
        self._items, self._shapes, self._share, self._order = items, shapes, share, order

    def __call__(self, batch: int) -> Batch:
        numbers = self._order(batch)
        shape = _shape_of(self._shapes, self._items, numbers)
        mine = self._share.positions(0)
        return collate(self._items, numbers[mine.start : mine.stop], shape, self._share.size)


def collate(items: Sequence[Item], numbers: Int[np.ndarray, " n"], shape: Shape, batch_size: int) -> Batch:
    """The items of these numbers, filled up to `batch_size` rows; keys as at the top of this file."""
    parts, length = shape
    batch: Batch = {
        name: np.zeros((batch_size, parts, length), np.int32)
        for name in ("input_ids", "token_type_ids", "position_ids", "sequence_ids")
    }
    batch["position_ids"][:] = np.arange(length, dtype=np.int32)
    batch["part_weights"] = np.zeros((batch_size, parts), np.float32)
    batch["item_ids"] = np.full(batch_size, -1, np.int32)
    batch["item_weights"] = (np.arange(batch_size) < len(numbers)).astype(np.float32)
    batch["item_ids"][: len(numbers)] = numbers
    first = items[0]
    batch |= {name: np.zeros((batch_size, *x.shape), x.dtype) for name, x in first.values.items()}
    batch |= {name: np.zeros((batch_size, parts, length), x.dtype) for name, x in first.token_values.items()}
    for row, number in enumerate(numbers):
        item = items[number]
        for place, part in enumerate(item.parts):
            size = len(part.ids)
            batch["input_ids"][row, place, :size] = part.ids
            batch["token_type_ids"][row, place, :size] = part.type_ids
            batch["sequence_ids"][row, place, :size] = 1
            batch["part_weights"][row, place] = 1
        for name, value in item.values.items():
            batch[name][row] = value
        for name, value in item.token_values.items():
            batch[name][row, 0, : len(value)] = value
    return batch


def _shape_of(shapes: Sequence[Shape], items: Sequence[Item], numbers: Int[np.ndarray, " n"]) -> Shape:
    return _fitting(shapes, *_need(items, numbers))


def _need(items: Sequence[Item], numbers: Int[np.ndarray, " n"]) -> Shape:
    return max(len(items[i].parts) for i in numbers), max(items[i].length for i in numbers)


def _fitting(shapes: Sequence[Shape], parts: int, length: int) -> Shape:
    return next(shape for shape in shapes if shape[0] >= parts and shape[1] >= length)


def _area(shape: Shape) -> int:
    return shape[0] * shape[1]


def _shapes(needs: Sequence[Shape], number: int, max_length: int) -> list[Shape]:
    """At most `number` shapes for batches that need these, the smallest first."""
    counts = sorted({parts for parts, _ in needs})
    if len(counts) > max(1, number // 2):
        counts = sorted({min(_power_of_two(count), counts[-1]) for count in counts})
    counts = counts[-number:]
    lengths: dict[int, list[int]] = {count: [] for count in counts}
    for parts, length in needs:
        lengths[min(count for count in counts if count >= parts)].append(length)
    lengths[counts[-1]].append(max(length for _, length in needs))
    shapes = []
    for count in counts:
        share = 1 + number - len(counts) if count == counts[0] else 1
        shapes += [(count, length) for length in _best_lengths(lengths[count], share, max_length)]
    return sorted(shapes, key=lambda shape: (_area(shape), shape))


def _best_lengths(lengths: Sequence[int], number: int, limit: int) -> list[int]:
    """At most `number` lengths for batches with these maxima, so that the sum of what they are padded to is least."""
    if not lengths:
        return []
    rounded = np.minimum(-(-np.asarray(lengths) // _ROUNDED_TO) * _ROUNDED_TO, limit)
    candidates, counts = np.unique(rounded, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    n = len(candidates)
    # cost[j]: least padded length of all batches up to candidate j − 1, cut into k lengths; from[k][j]: the last cut
    cost = candidates * before[1:]
    cuts = [np.zeros(n, np.int64)]
    for _ in range(min(number, n) - 1):
        previous = np.concatenate([[0], cost])
        table = previous[:-1, None] + candidates[None, :] * (before[None, 1:] - before[:-1, None])
        table = np.where(np.tri(n, dtype=bool).T, table, np.iinfo(np.int64).max)  # a cut lies at or before its end
        cuts.append(np.argmin(table, axis=0))
        cost = np.min(table, axis=0)
    chosen, end = [], n - 1
    for cut in reversed(cuts):
        chosen.append(int(candidates[end]))
        end = int(cut[end]) - 1
        if end < 0:
            break
    return sorted(chosen)


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
