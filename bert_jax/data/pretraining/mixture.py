"""Several corpora in one training: which row comes from which, and how much each corpus gets.

Row by row a corpus is chosen with a probability that is given or follows from its size, P^S / ΣP^S with P its share of
the tokens (Devlin et al. 2018 for multilingual BERT: S = 0.7; Lample and Conneau 2019: 0.3 to 0.7). Each corpus has an
endless sequence of rows of its own, of which the mixture takes one after the other: none is left out or read twice in
an epoch of the corpus, however small or large its share is.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np
from jaxtyping import Int

from bert_jax.config import UserError
from bert_jax.data.batching.reader import Batch
from bert_jax.data.pretraining.pairs import mix

_WHOLE = 1 << 32  # parts that shares are counted in
_STEP = 2_654_435_769  # 2^32 / the golden ratio: multiples of it fall everywhere in [0, 2^32) equally often, and evenly
_TOGETHER = 1 << 10  # rows whose order is shuffled
_LEAST = 1e-6  # of the shares: smaller ones would be rounded by more than a thousandth


class Sampler:
    """A function from the position of a row to (number of its corpus, position in that corpus's own sequence).

    It depends on (seed, position) alone and takes O(log) time, so a run is resumed anywhere by any number of processes.
    Of the first n × 1,024 rows each corpus has its share to within a few rows: multiples of the golden ratio are spread
    more evenly than random numbers. The order of 1,024 rows is shuffled.
    """

    def __init__(self, shares: Sequence[float], seed: int):
        ends = [round(_WHOLE * end / sum(shares)) for end in accumulate(shares)]
        self._bounds, self._seed = (0, *ends), seed

    def __call__(self, position: int) -> tuple[int, int]:
        block, place = divmod(position, _TOGETHER)
        corpora, positions = _block(self._bounds, self._seed, block)
        return int(corpora[place]), int(positions[place])


class MixedRows:
    """The endless sequence of rows of several corpora, each of which has one of its own, in which it reads on."""

    def __init__(self, rows: Sequence[Callable[[int], Batch]], shares: Sequence[float], seed: int):
        self._rows, self._sampler = list(rows), Sampler(shares, seed)

    def __call__(self, position: int) -> Batch:
        corpus, own = self._sampler(position)
        return self._rows[corpus](own)


def with_corpus(row: Batch, corpus: int, languages: tuple[int, int]) -> Batch:
    """Returns a row with corpus_ids int32[], the number of its corpus, and language_ids int32[L], the numbers of the
    languages of its tokens: `languages` of the first and of the second parts."""
    of_tokens = np.where(row["token_type_ids"] == 0, *languages).astype(np.int32)
    return row | {"corpus_ids": np.asarray(corpus, np.int32), "language_ids": of_tokens}


def sampling_shares(sizes: Mapping[str, float], given: Mapping[str, float | None], exponent: float) -> dict[str, float]:
    """Returns the share of each corpus, which sum to 1.

    Those that are `given` stay as they are; the other corpora divide what is left in proportion to size^exponent: 1
    keeps the proportions of the corpora, 0 makes them equal. Raises UserError for shares that cannot sum to 1, and for
    an open share of a corpus without text.
    """
    fixed = {name: share for name in sizes if (share := given.get(name)) is not None}
    open_names = [name for name in sizes if name not in fixed]
    total = sum(fixed.values())
    if total > 1 + 1e-6 or (not open_names and abs(total - 1) > 1e-6):
        shown = " + ".join(f"corpora.{name}.share={share:g}" for name, share in fixed.items())
        rest = "leave some open" if not open_names else "lower them: the corpora without one divide the rest"
        raise UserError(f"{shown} is {total:g}; shares must sum to 1: correct them, or {rest}")
    if open_names and total > 1 - _LEAST:
        raise UserError(f"corpora.{open_names[0]}.share is open, but the given shares leave nothing: lower one of them")
    if empty := [name for name in open_names if not sizes[name]]:
        raise UserError(f"corpora.{empty[0]} has no text to train on: check corpora.{empty[0]}.files")
    # Divided by the largest first: tokens are up to 10^12, and their powers need not be.
    most = max((sizes[name] for name in open_names), default=1)
    powers = {name: (sizes[name] / most) ** exponent for name in open_names}
    whole = sum(powers.values())
    found = {name: fixed[name] if name in fixed else (1 - total) * powers[name] / whole for name in sizes}
    if rare := [name for name, share in found.items() if 0 < share < _LEAST]:
        wrong = f"corpora.{rare[0]} would be {found[rare[0]]:.1g} of the rows, under {_LEAST:g}"
        raise UserError(f"{wrong}: lower data.corpora_exponent, or set corpora.{rare[0]}.share")
    return found


@lru_cache(maxsize=16)
def _block(bounds: tuple[int, ...], seed: int, block: int) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Returns for each row of a block the number of its corpus and its position in that corpus's sequence."""
    first, start = block * _TOGETHER, mix(seed) % _WHOLE
    multiples = np.arange(_TOGETHER, dtype=np.uint64) * np.uint64(_STEP) + np.uint64((first * _STEP + start) % _WHOLE)
    corpora = np.searchsorted(np.asarray(bounds, np.uint64), multiples % np.uint64(_WHOLE), side="right") - 1
    below = [_count_below(bound, first, start) for bound in bounds]
    positions = np.zeros(_TOGETHER, np.int64)
    for corpus, (lower, upper) in enumerate(pairwise(below)):
        own = corpora == corpus
        positions[own] = upper - lower + np.arange(np.count_nonzero(own))
    order = np.random.default_rng((seed, block)).permutation(_TOGETHER)
    return corpora[order], positions[order]


def _count_below(bound: int, count: int, start: int) -> int:
    """Returns how many of the first multiples are below the bound, before rows are shuffled."""
    return _floor_sum(count, _WHOLE, _STEP, start) - _floor_sum(count, _WHOLE, _STEP, start - bound)


def _floor_sum(count: int, divisor: int, slope: int, offset: int) -> int:
    """Returns Σ ⌊(slope × i + offset) / divisor⌋ over i in [0, count), by steps like those of Euclid's algorithm."""
    total = 0
    while True:
        whole, slope = divmod(slope, divisor)
        total += whole * (count * (count - 1) // 2)
        whole, offset = divmod(offset, divisor)
        total += whole * count
        last = slope * count + offset
        if last < divisor:
            return total
        count, offset = divmod(last, divisor)
        divisor, slope = slope, divisor
