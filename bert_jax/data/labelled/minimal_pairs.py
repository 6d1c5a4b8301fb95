"""Minimal pairs: two sentences that differ in one point, of which one is acceptable (BLiMP, Warstadt et al. 2020).

A folder of JSONL files, one pair per line: `sentence_good`, `sentence_bad`; `UID`, the paradigm; `linguistics_term`,
the phenomenon; `field`, its part of linguistics.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool

from bert_jax.config import UserError
from bert_jax.data.labelled.columns import text_in
from bert_jax.data.labelled.tables import Row, read_rows, suffix_of

T = TypeVar("T")


class MinimalPair(NamedTuple):
    """An acceptable sentence and one that is not. `origin` is "file:line"."""

    origin: str
    good: str
    bad: str
    paradigm: str
    phenomenon: str
    field: str


class Accuracies(NamedTuple):
    """Shares of pairs that are right. Each paradigm counts the same, whatever its number of pairs."""

    overall: float
    fields: dict[str, float]
    phenomena: dict[str, float]
    paradigms: dict[str, float]


def read_pairs(folder: str | Path) -> list[MinimalPair]:
    """Returns the pairs of all .jsonl files in a folder, file after file by name; the files may be compressed. Raises
    UserError for a folder without pairs, and with file and line for a line that is no pair."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the one that holds the .jsonl files of minimal pairs")
    files = sorted(path for path in folder.iterdir() if suffix_of(path) == ".jsonl")
    if not files:
        raise UserError(f"{folder} has no .jsonl files; unpack the minimal pairs there")
    pairs = [_pair(row) for path in files for row in read_rows(str(path))]
    seen: dict[str, MinimalPair] = {}
    for pair in pairs:
        first = seen.setdefault(pair.paradigm, pair)
        if (pair.phenomenon, pair.field) != (first.phenomenon, first.field):
            raise UserError(
                f"{pair.origin}: UID '{pair.paradigm}' is of {pair.phenomenon} ({pair.field}) here, but of "
                f"{first.phenomenon} ({first.field}) in {first.origin}; correct one"
            )
    return pairs


def sample(pairs: Sequence[MinimalPair], count: int, seed: int) -> list[MinimalPair]:
    """Returns `count` pairs of each paradigm, or all where it has fewer or if `count` is 0. Those of a paradigm depend
    on the seed and on its own pairs alone."""
    kept: list[MinimalPair] = []
    for paradigm, own in _by(pairs, [pair.paradigm for pair in pairs]).items():
        chosen = sorted(Random(f"{seed} {paradigm}").sample(range(len(own)), min(count or len(own), len(own))))
        kept += [own[i] for i in chosen]
    return kept


def accuracies(pairs: Sequence[MinimalPair], right: Bool[np.ndarray, " N"]) -> Accuracies:
    """Returns the share of right pairs per paradigm, and its means over the paradigms of each phenomenon, of each field
    and of all. Names are in the order of the alphabet."""
    of_paradigm = {pair.paradigm: pair for pair in pairs}
    paradigms = _means(right.tolist(), [pair.paradigm for pair in pairs])
    shares, examples = list(paradigms.values()), [of_paradigm[name] for name in paradigms]
    phenomena = _means(shares, [pair.phenomenon for pair in examples])
    fields = _means(shares, [pair.field for pair in examples])
    return Accuracies(float(np.mean(shares)), fields, phenomena, paradigms)


def _pair(row: Row) -> MinimalPair:
    good, bad, paradigm, phenomenon, field = (
        text_in(row, name) for name in ("sentence_good", "sentence_bad", "UID", "linguistics_term", "field")
    )
    for name, text in (("sentence_good", good), ("sentence_bad", bad), ("UID", paradigm)):
        if not text.strip():
            raise UserError(f"{row.origin}: {name} is empty; correct or leave out this line")
    return MinimalPair(row.origin, good, bad, paradigm, phenomenon, field.replace("/", "_"))  # BLiMP writes both


def _means(values: Sequence[float], names: Sequence[str]) -> dict[str, float]:
    return {name: float(np.mean(own)) for name, own in sorted(_by(values, names).items())}


def _by(values: Iterable[T], names: Iterable[str]) -> Mapping[str, list[T]]:
    groups: dict[str, list[T]] = defaultdict(list)
    for value, name in zip(values, names, strict=True):
        groups[name].append(value)
    return groups
