"""Which shapes the batches of a run have: few, since each is compiled, and with little padding.

Padded: every item has a row of its own, as long as the longest of its batch; a batch takes the smallest of several
lengths. Packed: items share rows, which may be longer than any of them; the longest item goes first, each into the row
that has least in it, and a batch takes the cheapest shape that holds it so. The last shape of all holds any batch.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from bert_jax.data.batching.batch_order import Numbers
from bert_jax.data.batching.items import Item

_ROUNDED_TO = 4  # tokens: lengths are multiples of it
_SAMPLE = 256  # batches that packing is tried on
_QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.98, 1.0)  # of the lengths that batches need, tried for rows that are shared
_LONGER = 1.5  # than the longest item, a row that is shared: where items fill more than half of it, two make a bad fit
_ROOM = 2  # a row has places for so many times its even share of the batch's items


class Shape(NamedTuple):
    """N rows, S parts, L tokens, and places for K items in a row, of which either S or K is 1."""

    rows: int
    parts: int
    tokens: int
    items: int = 1

    @property
    def area(self) -> int:
        """Places for tokens in one row."""
        return self.parts * self.tokens

    def cost(self, reach: float = np.inf) -> float:
        """Places for tokens in all rows, each dearer by a share of L / `reach` for attention."""
        return self.rows * self.area * (1 + self.tokens / reach)

    def __str__(self) -> str:
        return f"{self.rows}×{self.tokens}" if self.parts == 1 else f"{self.rows}×{self.parts}×{self.tokens}"


def padded_shapes(
    items: Sequence[Item],
    batches: Iterable[Numbers],
    batch_size: int,
    max_shapes: int,
    max_length: int,
    *,
    worth: float = 0.0,
) -> list[Shape]:
    """At most `max_shapes` shapes that waste least on these batches of an epoch.

    `worth`: the tokens of an epoch that one more shape has to save, since each has to be compiled. The fewest parts get
    all the lengths that are left over: texts of several windows are as long as the model anyway.
    """
    needs = [_need([items[i] for i in batch]) for batch in batches]
    largest = (max(len(item.parts) for item in items), max(item.length for item in items))
    found: dict[float, list[Shape]] = {}
    for number in range(max_shapes, 0, -1):
        shapes = [Shape(batch_size, *shape) for shape in _shapes([*needs, largest], number, max_length)]
        tokens = sum(_fitting(shapes, *need).cost() for need in needs)
        found[tokens + worth * len(shapes)] = shapes
    return found[min(found)]


def shapes_worth_their_programs(
    shapes: Sequence[Shape], items: Sequence[Item], batches: Iterable[Numbers], *, worth: float
) -> list[Shape]:
    """Those of padded `shapes` that these batches had best use, if each has to save `worth` tokens."""
    needs = [_need([items[i] for i in batch]) for batch in batches]

    def cost(chosen: Sequence[Shape]) -> float:
        return sum(_fitting(chosen, *need).cost() for need in needs) + worth * len(chosen)

    largest = _fitting(shapes, max(parts for parts, _ in needs), max(length for _, length in needs))
    smaller = [shape for shape in shapes if shape.area < largest.area]
    choices = ([*some, largest] for n in range(len(smaller) + 1) for some in itertools.combinations(smaller, n))
    return min(choices, key=cost)


def packed_shapes(
    items: Sequence[Item],
    batches: Sequence[Numbers],
    batch_size: int,
    max_shapes: int,
    max_length: int,
    *,
    epochs: int = 1,
    multiple: int = 1,
    reach: float = np.inf,
    worth: float = 0.0,
) -> list[Shape]:
    """At most `max_shapes` shapes that cost least on these batches of `epochs` epochs; the last is padded.

    `multiple`: of devices, that the rows are spread over. `reach`: as in `Shape.cost`. `worth`: as in `padded_shapes`.
    """
    longest = max(item.length for item in items)
    last = Shape(batch_size, 1, min(_rounded(longest), max_length))
    limit = _rounded(_LONGER * longest)
    sample = _sampled(batches)
    scale = len(batches) / len(sample) / epochs
    lengths = np.zeros((len(sample), batch_size), np.int64)
    for row, batch in zip(lengths, sample, strict=True):
        row[: len(batch)] = [items[i].length for i in batch]
    candidates: dict[Shape, np.ndarray] = {}  # → which batches it holds
    for rows in _row_counts(batch_size, multiple):
        places = _places(batch_size, rows)
        need = _deal(lengths, rows, places)[1].max(axis=1)
        for length in {min(_rounded(n), limit) for n in np.quantile(need, _QUANTILES, method="higher")}:
            candidates[Shape(rows, 1, length, places)] = need <= length
    chosen: list[Shape] = []

    def cost(shapes: Sequence[Shape]) -> float:
        """Of an epoch. Batches to come may differ: half a one in so many as were tried is taken to need the last shape,
        which is compiled only if one does."""
        least = np.full(len(sample), last.cost(reach))
        for shape in shapes:
            least = np.where(candidates[shape], np.minimum(least, shape.cost(reach)), least)
        needs_last = not np.all(np.any([candidates[shape] for shape in shapes] or [[False]], axis=0))
        return scale * (least.sum() + 0.5 * last.cost(reach)) + worth * (len(shapes) + needs_last)

    while len(chosen) < max_shapes - 1 and candidates:
        best = min(candidates, key=lambda shape: cost([*chosen, shape]))
        if cost([*chosen, best]) >= cost(chosen):
            break
        chosen.append(best)
    return [*sorted(chosen, key=lambda shape: shape.cost(reach)), last]


def fit(items: Sequence[Item], shapes: Sequence[Shape]) -> tuple[Shape, list[list[int]]]:
    """The first of the shapes that holds these items, and how (`arrange`)."""
    return next((shape, rows) for shape in shapes if (rows := arrange(items, shape)) is not None)


def arrange(items: Sequence[Item], shape: Shape) -> list[list[int]] | None:
    """Which of the items are in each row, by their place in the list; None if the shape does not hold them."""
    if shape.items == 1:
        parts, length = _need(items)
        if len(items) > shape.rows or parts > shape.parts or length > shape.tokens:
            return None
        return [[i] if i < len(items) else [] for i in range(shape.rows)]
    lengths = np.asarray([[item.length for item in items]])
    (row_of,), loads = _deal(lengths, shape.rows, shape.items)
    if loads.max() > shape.tokens or len(items) > shape.rows * shape.items:
        return None
    return [np.flatnonzero(row_of == row).tolist() for row in range(shape.rows)]


def epoch_cost(
    items: Sequence[Item], batches: Sequence[Numbers], shapes: Sequence[Shape], *, reach: float, worth: float
) -> float:
    """`Shape.cost` of all these batches, and `worth` for each shape that they use; by a sample."""
    found = [fit([items[i] for i in batch], shapes)[0] for batch in _sampled(batches)]
    return float(np.mean([shape.cost(reach) for shape in found])) * len(batches) + worth * len({*found})


def mean_shape(items: Sequence[Item], batches: Sequence[Numbers], shapes: Sequence[Shape]) -> tuple[float, float]:
    """Of these batches: sequences' rows (N × S) a batch, and tokens a row, padding included."""
    found = [fit([items[i] for i in batch], shapes)[0] for batch in _sampled(batches)]
    rows = float(np.mean([shape.rows * shape.parts for shape in found]))
    return rows, float(np.mean([shape.cost() for shape in found])) / rows


def _sampled(batches: Sequence[Numbers]) -> Sequence[Numbers]:
    return batches[:: -(-len(batches) // _SAMPLE)]


def _deal(
    lengths: Int[np.ndarray, "J B"], rows: int, places: int
) -> tuple[Int[np.ndarray, "J B"], Int[np.ndarray, "J N"]]:
    """For each of J batches the row of every item, and the tokens in every row; a length of 0 is no item."""
    every = np.arange(len(lengths))
    row_of = np.zeros_like(lengths)
    loads, counts = np.zeros((2, len(lengths), rows), np.int64)
    for item in np.argsort(-lengths, axis=1, kind="stable").T:
        size = lengths[every, item]
        row = np.argmin(np.where(counts < places, loads, np.iinfo(np.int64).max), axis=1)
        row_of[every, item] = np.where(size > 0, row, -1)
        loads[every, row] += size
        counts[every, row] += size > 0
    return row_of, loads


def _row_counts(batch_size: int, multiple: int) -> list[int]:
    """1, 2, … 8, then each about an eighth more, fewer than the batch's items."""
    counts, count = [], 1
    while count * multiple < batch_size:
        counts.append(count * multiple)
        count += max(1, count // 8)
    return counts


def _places(batch_size: int, rows: int) -> int:
    return min(batch_size, _ROOM * -(-batch_size // rows))


def _need(items: Sequence[Item]) -> tuple[int, int]:
    return max(len(item.parts) for item in items), max(item.length for item in items)


def _fitting(shapes: Sequence[Shape], parts: int, length: int) -> Shape:
    return next(shape for shape in shapes if shape.parts >= parts and shape.tokens >= length)


def _shapes(needs: Sequence[tuple[int, int]], number: int, max_length: int) -> list[tuple[int, int]]:
    """At most `number` (parts, tokens) for batches that need these, the smallest first."""
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
    return sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape))


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


def _rounded(length: float) -> int:
    return math.ceil(length / _ROUNDED_TO) * _ROUNDED_TO
