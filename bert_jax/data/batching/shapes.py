"""Which shapes the batches of a run have: few, since each is compiled, and with little padding.

Padded: every item has rows of its own, as long as the longest of its batch; a batch takes the smallest of several
lengths, or of several pairs of lengths where items have targets. Packed: items share rows, which may be longer than any
of them; the longest item goes first, each into the row that has fewest tokens in it, and a batch takes the cheapest
shape that holds it so. The last shape of all holds any batch.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from bert_jax.data.batching.batch_order import Numbers
from bert_jax.data.batching.items import Item

_ROUNDED_TO = 4  # tokens: finer lengths save nothing that can be measured, and coarser ones pad short texts by a tenth
_SAMPLE = 256  # batches that packing is tried on: more change the choice of shapes no more
_QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.98, 1.0)  # of the lengths that batches need, tried for rows that are shared
# Shared rows may be so much longer than the longest item: where items fill more than half of a row, two are a bad fit.
_LONGER = 1.5
_ROOM = 2  # a row holds so many times its even share of the batch's items, since short items come together


class Shape(NamedTuple):
    """The shape of a batch: groups of rows, rows of one item, tokens of a row, how many items share a row, and tokens
    of a target (G, W, L, S and T in `batches.py`); one of `parts` and `items` is 1, both are with targets."""

    rows: int
    parts: int
    tokens: int
    items: int = 1
    targets: int = 0

    def cost(self, crossover_length: float = np.inf) -> float:
        """Returns the time of a step in tokens: all tokens of the batch, padding included, where attention makes each
        dearer by a share of L / `crossover_length`, the length of rows at which it takes as long as all the rest."""
        length = self.tokens + self.targets
        return self.rows * self.parts * length * (1 + length / crossover_length)

    def __str__(self) -> str:
        targets = f"+{self.targets}" if self.targets else ""
        return f"{self.rows}×{self.tokens}{targets}" if self.parts == 1 else f"{self.rows}×{self.parts}×{self.tokens}"


class Limits(NamedTuple):
    """What shapes are chosen by. `crossover_length` is that of `Shape.cost`; `break_even_tokens` are the tokens of an
    epoch that one more shape has to save, since each has to be compiled."""

    max_shapes: int
    max_length: int
    crossover_length: float = np.inf
    break_even_tokens: float = 0.0


def padded_shapes(items: Sequence[Item], batches: Iterable[Numbers], batch_size: int, limits: Limits) -> list[Shape]:
    """Returns the shapes that waste least on these batches of an epoch.

    The fewest parts get all the lengths that are left over: texts of several windows are as long as the model anyway.
    """
    needs, largest = [_need([items[i] for i in batch]) for batch in batches], _need(items)
    found: dict[float, list[Shape]] = {}
    for number in range(limits.max_shapes, 0, -1):
        if largest.targets:
            sizes = _sizes_with_targets([*needs, largest], number)
        else:
            pairs = [(need.parts, need.tokens) for need in (*needs, largest)]
            sizes = [_Need(*size) for size in _shapes(pairs, number, limits.max_length)]
        shapes = [Shape(batch_size, size.parts, size.tokens, targets=size.targets) for size in sizes]
        fitting = (next(shape for shape in shapes if _holds(shape, need)) for need in needs)
        tokens = sum(shape.cost() for shape in fitting)
        found[tokens + limits.break_even_tokens * len(shapes)] = shapes
    return found[min(found)]


def packed_shapes(
    items: Sequence[Item],
    batches: Sequence[Numbers],
    batch_size: int,
    limits: Limits,
    *,
    epochs: int = 1,
    multiple: int = 1,
) -> list[Shape]:
    """Returns the shapes that cost least on these batches of `epochs` epochs; the last is padded.

    The number of rows is a multiple of `multiple`, so that devices and micro-batches divide it. Shapes are chosen one
    after the other, each the one that saves most beside those chosen before: all choices would be too many to try.
    """
    longest = max(item.length for item in items)
    last = Shape(batch_size, 1, min(_rounded(longest), limits.max_length))
    sample = _sampled(batches)
    scale = len(batches) / len(sample) / epochs
    candidates = _candidates(items, sample, batch_size, multiple, longest)
    chosen: list[Shape] = []

    def cost(shapes: Sequence[Shape]) -> float:
        """Returns the cost of an epoch. Batches to come may differ from those that were tried: half a batch more than
        was seen is assumed to need the last shape, which is compiled only if one does."""
        last_cost = last.cost(limits.crossover_length)
        least = np.full(len(sample), last_cost)
        for shape in shapes:
            least = np.where(candidates[shape], np.minimum(least, shape.cost(limits.crossover_length)), least)
        needs_last = not np.all(np.any([candidates[shape] for shape in shapes] or [[False]], axis=0))
        return scale * (least.sum() + 0.5 * last_cost) + limits.break_even_tokens * (len(shapes) + needs_last)

    while len(chosen) < limits.max_shapes - 1 and candidates:
        best = min(candidates, key=lambda shape: cost([*chosen, shape]))
        if cost([*chosen, best]) >= cost(chosen):
            break
        chosen.append(best)
    return [*sorted(chosen, key=lambda shape: shape.cost(limits.crossover_length)), last]


def _candidates(
    items: Sequence[Item], batches: Sequence[Numbers], batch_size: int, multiple: int, longest: int
) -> dict[Shape, Bool[np.ndarray, " J"]]:
    """Returns shapes of shared rows, with which of the J batches each holds."""
    lengths = np.zeros((len(batches), batch_size), np.int64)
    for row, batch in zip(lengths, batches, strict=True):
        row[: len(batch)] = [items[i].length for i in batch]
    limit, found, count = _rounded(_LONGER * longest), {}, 1
    while (rows := count * multiple) < batch_size:  # 1, 2, … 8, then each about an eighth more
        most = min(batch_size, _ROOM * -(-batch_size // rows))
        need = _assign_rows(lengths, rows, most)[1].max(axis=1)
        for length in {min(_rounded(n), limit) for n in np.quantile(need, _QUANTILES, method="higher")}:
            found[Shape(rows, 1, length, most)] = need <= length
        count += max(1, count // 8)
    return found


def fit(items: Sequence[Item], shapes: Sequence[Shape]) -> tuple[Shape, list[list[int]]]:
    """Returns the first of the shapes that holds these items, and how (`arrange`)."""
    return next((shape, rows) for shape in shapes if (rows := arrange(items, shape)) is not None)


def arrange(items: Sequence[Item], shape: Shape) -> list[list[int]] | None:
    """Returns the positions in the list of the items of each group of rows; None if the shape does not hold them."""
    if shape.items == 1:
        if len(items) > shape.rows or not _holds(shape, _need(items)):
            return None
        return [[i] if i < len(items) else [] for i in range(shape.rows)]
    lengths = np.asarray([[item.length for item in items]])
    (row_of,), loads = _assign_rows(lengths, shape.rows, shape.items)
    if loads.max() > shape.tokens or len(items) > shape.rows * shape.items:
        return None
    return [np.flatnonzero(row_of == row).tolist() for row in range(shape.rows)]


def used_shapes(items: Sequence[Item], batches: Sequence[Numbers], shapes: Sequence[Shape]) -> list[Shape]:
    """Returns the shapes that a sample of these batches uses."""
    return [fit([items[i] for i in batch], shapes)[0] for batch in _sampled(batches)]


def _sampled(batches: Sequence[Numbers]) -> Sequence[Numbers]:
    return batches[:: -(-len(batches) // _SAMPLE)]


def _assign_rows(
    lengths: Int[np.ndarray, "J N"], rows: int, most: int
) -> tuple[Int[np.ndarray, "J N"], Int[np.ndarray, "J rows"]]:
    """Returns for each of J batches the row of every item, and the tokens in every row; a length of 0 is no item.

    Longest first, each into the row with fewest tokens among those with fewer than `most` items: the rows come out
    about equally full, so that the fullest, which decides the length of all, is hardly longer than their mean.
    """
    every = np.arange(len(lengths))
    row_of = np.zeros_like(lengths)
    loads, counts = np.zeros((2, len(lengths), rows), np.int64)
    for item in np.argsort(-lengths, axis=1, kind="stable").T:
        size = lengths[every, item]
        row = np.argmin(np.where(counts < most, loads, np.iinfo(np.int64).max), axis=1)
        row_of[every, item] = np.where(size > 0, row, -1)
        loads[every, row] += size
        counts[every, row] += size > 0
    return row_of, loads


class _Need(NamedTuple):
    """What a batch needs of a shape."""

    parts: int
    tokens: int
    targets: int = 0


def _need(items: Sequence[Item]) -> _Need:
    targets = max(item.target_length for item in items)
    return _Need(max(len(item.parts) for item in items), max(item.length for item in items), targets)


def _holds(shape: Shape, need: _Need) -> bool:
    return shape.parts >= need.parts and shape.tokens >= need.tokens and shape.targets >= need.targets


def _sizes_with_targets(needs: Sequence[_Need], number: int) -> list[_Need]:
    """Returns at most `number` sizes for batches that need these, the smallest first. Batches are grouped by the sum of
    their two lengths, and each group gets the lengths that hold all of it; the last of `needs` holds any batch."""
    largest, sums = needs[-1], [need.tokens + need.targets for need in needs]
    sizes, least = [], 0
    for most in _best_lengths(sums, number, max(sums)):
        group = [need for need, size in zip(needs, sums, strict=True) if least < size <= most]
        tokens = min(_rounded(max(need.tokens for need in group)), largest.tokens)
        sizes.append(_Need(1, tokens, min(_rounded(max(need.targets for need in group)), largest.targets)))
        least = most
    return sizes


def _shapes(needs: Sequence[tuple[int, int]], number: int, max_length: int) -> list[tuple[int, int]]:
    """Returns at most `number` (parts, tokens) for batches that need these, the smallest first."""
    counts = sorted({parts for parts, _ in needs})
    # Many numbers of parts would use up all shapes: powers of two double the rows of an item at worst.
    if len(counts) > max(1, number // 2):
        counts = sorted({min(1 << (count - 1).bit_length(), counts[-1]) for count in counts})
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
    """Returns at most `number` lengths for batches with these maxima, such that the sum of what the batches are padded
    to is least. Exact, by dynamic programming over the sorted maxima."""
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


def _rounded(length: float) -> int:
    return math.ceil(length / _ROUNDED_TO) * _ROUNDED_TO
