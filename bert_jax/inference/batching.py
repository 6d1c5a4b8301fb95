"""Items of any length through programs of few shapes.

A program is compiled for one row and for a batch, each for at most 8 lengths. Those of one row are the same for all
texts; those of batches follow the texts: a new one is made where it saves enough padding. Declared lengths (`warm_up`)
take the place of both, each with programs for one row, for a batch and for a quarter of one; batches are cut where that
saves padding.

A program that takes any shape (`prepared.py`: OpenVINO's) gets batches that are as long as their longest item, cut in
the same way.
"""

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from bert_jax import backend
from bert_jax.config import UserError
from bert_jax.data.batching.batches import collate
from bert_jax.data.batching.items import Item, Part
from bert_jax.data.batching.shapes import Shape

_MOST_LENGTHS = 8
_SHORTEST = 16  # tokens
_FEW = 4  # items that are run one by one, since a batch of so few is mostly padding
_LAUNCH = 32  # tokens that one more batch costs: every batch reads all parameters once


_Program = Callable[[dict[str, np.ndarray]], Mapping[str, jax.Array | np.ndarray]]


class Batching:
    """The lengths that there are programs for, and the choice of batches. Threads may share it."""

    def __init__(self, max_length: int, batch_size: int, *, any_shape: bool = False):
        self._max_length, self._batch_size, self._any_shape = max_length, batch_size, any_shape
        self._alone = ladder(max_length)
        self._candidates = _candidates(max_length)
        self.lengths: list[int] = []  # of batches, in order
        self._is_fixed = False
        self._lock = threading.Lock()  # held while lengths are chosen, which takes no time beside running a program
        self._tokens, self._saved_share = backend.current().tokens_per_batch, backend.current().saved_share

    def run(self, program: _Program, items: Sequence[Item]) -> dict[str, list[np.ndarray]]:
        """Returns the program's outputs by name, one array per item, in the order of the items; items of like length
        are run together."""
        with self._lock:
            batches = list(self._batches(items))
        found: dict[int, dict[str, np.ndarray]] = {}
        launched = ((numbers, program(_arrays(items, numbers, shape))) for numbers, shape in batches)
        # pairwise: a batch is fetched when the next one is running
        for (numbers, running), _ in itertools.pairwise(itertools.chain(launched, [([], {})])):
            outputs = jax.device_get(running)
            found |= {number: {name: x[row] for name, x in outputs.items()} for row, number in enumerate(numbers)}
        if not found:  # an empty text may have no items
            return defaultdict(list)
        return {name: [found[i][name] for i in range(len(items))] for name in found[0]}

    def warm_up(self, program: _Program, lengths: Sequence[int], like: Item | None = None) -> None:
        """Declares `lengths` as the only ones from now on, besides the longest that is allowed, and compiles the
        program for them: for one item, for a batch and for a quarter of one. Results then depend on the texts alone,
        not on what was run before.

        `like` is an item with the values and the number of parts that items will have; by default one part.
        """
        for length in lengths:
            if not 1 <= length <= self._max_length:
                raise UserError(f"a length to warm up is {length}; it can be 1 to {self._max_length} tokens")
        with self._lock:
            self.lengths = sorted({*lengths, self._max_length})
            self._is_fixed = True
        count = 1 << (len(like.parts) - 1).bit_length() if like else 1
        for length in sorted({*lengths}):
            nothing = np.zeros(length, np.int32)
            parts = (Part(nothing, nothing),) * count
            item = Item(parts)
            if like:
                item = Item(parts, like.values, {name: x[:length] for name, x in like.token_values.items()})
            for rows in self._row_counts(count, length):
                jax.block_until_ready(program(_arrays([item], [0], Shape(rows, count, length))))

    def rows(self, parts: int, length: int) -> int:
        """Returns how many items of so many parts a batch of this length has."""
        fitting = max(2, self._tokens // (parts * length)) if self._tokens else self._batch_size
        return min(self._batch_size, fitting)

    def _batches(self, items: Sequence[Item]) -> Iterator[tuple[list[int], Shape]]:
        """Yields numbers of items with a shape, the largest batch first, so that a lack of memory shows at once."""
        by_parts: dict[int, list[int]] = defaultdict(list)
        for number, item in enumerate(items):
            by_parts[1 << (len(item.parts) - 1).bit_length()].append(number)
        for parts, numbers in sorted(by_parts.items(), reverse=True):
            numbers.sort(key=lambda i: -items[i].length)
            if self._any_shape or self._is_fixed:
                yield from self._cheapest(items, numbers, parts)
                continue
            few = _FEW if self._batch_size > 1 else len(numbers)
            if len(numbers) > few:
                self._choose([items[i].length for i in numbers], parts)
            while numbers:
                is_alone, longest = len(numbers) <= few, items[numbers[0]].length
                length = _fitting(self._alone if is_alone else self.lengths, longest)
                rows = 1 if is_alone else self.rows(parts, length)
                yield numbers[:rows], Shape(rows, parts, length)
                numbers = numbers[rows:]

    def _cheapest(self, items: Sequence[Item], numbers: Sequence[int], parts: int) -> Iterator[tuple[list[int], Shape]]:
        """Yields the batches of all `numbers`, in falling order of length, that cost least: tokens with padding, and
        `_LAUNCH` for each batch."""
        count, shapes = len(numbers), []  # of the batch that begins with each item, the last item first
        cost = np.zeros(count + 1)  # of the items from each one on
        for start in range(count - 1, -1, -1):
            length = items[numbers[start]].length
            if self._any_shape:
                rows = np.arange(1, min(self.rows(parts, length), count - start) + 1)
            else:
                length = _fitting(self.lengths, length)
                rows = np.asarray(self._row_counts(parts, length))
            total = rows * (parts * length) + _LAUNCH + cost[np.minimum(start + rows, count)]
            best = int(np.argmin(total))
            cost[start] = total[best]
            shapes.append(Shape(int(rows[best]), parts, length))
        start = 0
        while start < count:
            shape = shapes[count - 1 - start]
            yield list(numbers[start : start + shape.rows]), shape
            start += shape.rows

    def _row_counts(self, parts: int, length: int) -> list[int]:
        """Returns how many rows the declared programs of a length have."""
        rows = self.rows(parts, length)
        return sorted({1, max(1, rows // 4), rows})

    def _choose(self, lengths: Sequence[int], parts: int) -> None:
        """Adds the length that a batch of the longest needs, then those that save most padding for these `lengths`,
        which are in falling order. The last free one is kept for the longest texts that are allowed."""

        def cost(chosen: list[int]) -> int:
            start = positions = 0
            while start < len(lengths):
                length = _fitting(chosen, lengths[start])
                start += self.rows(parts, length)
                positions += self.rows(parts, length) * parts * length
            return positions

        def add(length: int) -> None:
            self.lengths = sorted([*self.lengths, length])

        if not self.lengths or self.lengths[-1] < lengths[0]:
            is_last = len(self.lengths) == _MOST_LENGTHS - 1
            add(self._max_length if is_last else _fitting(self._candidates, lengths[0]))
        before = cost(self.lengths)
        while len(self.lengths) < _MOST_LENGTHS - (self._max_length not in self.lengths):
            costs = [(cost(sorted([*self.lengths, x])), x) for x in self._candidates if x not in self.lengths]
            after, best = min(costs, default=(before, self._max_length))
            if before - after <= max(self._saved_share * before, self.rows(parts, best) * parts * best):
                break
            add(best)
            before = after


def ladder(max_length: int) -> list[int]:
    """Returns at most 8 lengths up to `max_length`, each longer than the one before by about the same factor."""
    steps = _MOST_LENGTHS - 1
    shortest = min(_SHORTEST, max_length)
    exact = (shortest * (max_length / shortest) ** (step / steps) for step in range(steps))
    return sorted({min(-(-round(length) // 8) * 8, max_length) for length in exact} | {max_length})


def _candidates(max_length: int) -> list[int]:
    """Returns 16, 24, … 64, 80, … 128, 160, …: few, so that programs that one process kept on disk serve
    the next one too, whatever its texts."""
    lengths, step = [_SHORTEST], 8
    while lengths[-1] < max_length:
        lengths.append(lengths[-1] + step)
        step = max(8, (1 << (lengths[-1].bit_length() - 1)) // 4)
    return [*(length for length in lengths if length < max_length), max_length]


def _fitting(lengths: Sequence[int], length: int) -> int:
    return next(one for one in lengths if one >= length)


def _arrays(items: Sequence[Item], numbers: Sequence[int], shape: Shape) -> dict[str, np.ndarray]:
    """Returns the batch of these items, each in rows of its own; the other rows are empty."""
    empty = shape.rows - len(numbers)
    return collate(items, [*([number] for number in numbers), *([] for _ in range(empty))], shape)
