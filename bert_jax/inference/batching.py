"""Items of any length through programs of few shapes.

A program is compiled for one row and for a batch, each for at most 8 lengths. Those of one row are the same for all
texts, those of batches follow what comes: a new one is made where it saves enough padding.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from bert_jax.data.batching.batches import collate
from bert_jax.data.batching.items import Item
from bert_jax.data.batching.shapes import Shape

_MOST_LENGTHS = 8
_SHORTEST = 16  # tokens
_FEW = 4  # items that are run one by one, since a batch of so few is mostly padding
_SAVED_SHARE = 0.005  # of the tokens of a call, padding included, that one more program has to save
# On a CPU a batch has so many tokens: what its layers pass on to each other then stays in the caches. For MiniLM,
# 64 rows of 128 tokens take an eighth more time a token than 16 do, and 16 rows of 512 a fifth more than 4.
_TOKENS_ON_CPU = 2048


class _Batch(NamedTuple):
    items: list[int]  # their numbers
    shape: Shape


class Batching:
    """Remembers the lengths that there are programs for."""

    def __init__(self, max_length: int, batch_size: int):
        self._max_length, self._batch_size = max_length, batch_size
        self._alone = ladder(max_length)
        self._candidates = _candidates(max_length)
        self.lengths: list[int] = []  # of batches, in order
        self._is_cpu = jax.default_backend() == "cpu"

    def run(
        self, program: Callable[[dict[str, np.ndarray]], dict[str, jax.Array]], items: Sequence[Item]
    ) -> dict[str, list[np.ndarray]]:
        """The program's outputs by name, one array an item, in the order of the items; items of like length are run
        together."""
        found: dict[int, dict[str, np.ndarray]] = {}
        running: tuple[list[int], dict[str, jax.Array]] | None = None
        for batch in [*self._batches(items), None]:
            started = None
            if batch is not None:
                empty = batch.shape.rows - len(batch.items)
                arrays = collate(
                    items, [*([number] for number in batch.items), *([] for _ in range(empty))], batch.shape
                )
                started = batch.items, program(arrays)
            if running is not None:  # fetched while the next batch runs
                outputs = jax.device_get(running[1])
                found |= {number: {k: v[row] for k, v in outputs.items()} for row, number in enumerate(running[0])}
            running = started
        if not found:  # an empty text may have no items
            return defaultdict(list)
        return {name: [found[i][name] for i in range(len(items))] for name in found[0]}

    def rows(self, parts: int, length: int) -> int:
        """Of a batch of this shape."""
        fitting = max(2, _TOKENS_ON_CPU // (parts * length)) if self._is_cpu else self._batch_size
        return min(self._batch_size, fitting)

    def _batches(self, items: Sequence[Item]) -> Iterator[_Batch]:
        """The largest first, so that a lack of memory shows at once."""
        by_parts: dict[int, list[int]] = defaultdict(list)
        for number, item in enumerate(items):
            by_parts[1 << (len(item.parts) - 1).bit_length()].append(number)
        for parts, numbers in sorted(by_parts.items(), reverse=True):
            numbers.sort(key=lambda i: -items[i].length)
            few = _FEW if self._batch_size > 1 else len(numbers)
            if len(numbers) > few:
                self._choose([items[i].length for i in numbers], parts)
            start = 0
            while start < len(numbers):
                longest = items[numbers[start]].length
                if len(numbers) - start <= few:
                    yield _Batch(numbers[start : start + 1], Shape(1, parts, _fitting(self._alone, longest)))
                    start += 1
                    continue
                length = _fitting(self.lengths, longest)
                rows = self.rows(parts, length)
                yield _Batch(numbers[start : start + rows], Shape(rows, parts, length))
                start += rows

    def _choose(self, lengths: Sequence[int], parts: int) -> None:
        """Adds what a batch of the longest needs, then whatever saves most for these `lengths`, which fall; the last
        free place is kept for texts as long as can be."""

        def cost(chosen: list[int]) -> int:
            start = places = 0
            while start < len(lengths):
                length = _fitting(chosen, lengths[start])
                start += self.rows(parts, length)
                places += self.rows(parts, length) * parts * length
            return places

        if not self.lengths or self.lengths[-1] < lengths[0]:
            is_last = len(self.lengths) == _MOST_LENGTHS - 1
            self._add(self._max_length if is_last else _fitting(self._candidates, lengths[0]))
        before = cost(self.lengths)
        while len(self.lengths) < _MOST_LENGTHS - (self._max_length not in self.lengths):
            costs = [(cost(sorted([*self.lengths, x])), x) for x in self._candidates if x not in self.lengths]
            after, best = min(costs, default=(before, self._max_length))
            if before - after <= max(_SAVED_SHARE * before, self.rows(parts, best) * parts * best):
                break
            self._add(best)
            before = after

    def _add(self, length: int) -> None:
        self.lengths = sorted([*self.lengths, length])


def ladder(max_length: int) -> list[int]:
    """At most 8 lengths up to `max_length`, each about the same factor longer than the one before."""
    steps = _MOST_LENGTHS - 1
    shortest = min(_SHORTEST, max_length)
    exact = (shortest * (max_length / shortest) ** (step / steps) for step in range(steps))
    return sorted({min(-(-round(length) // 8) * 8, max_length) for length in exact} | {max_length})


def _candidates(max_length: int) -> list[int]:
    """16, 24, … 64, 80, … 128, 160, …: the programs of one run then serve the next, whatever its texts."""
    lengths, step = [_SHORTEST], 8
    while lengths[-1] < max_length:
        lengths.append(lengths[-1] + step)
        step = max(8, (1 << (lengths[-1].bit_length() - 1)) // 4)
    return [*(length for length in lengths if length < max_length), max_length]


def _fitting(lengths: Sequence[int], length: int) -> int:
    return next(one for one in lengths if one >= length)
