"""Chunks → sentence pairs, made when they are read: a pure function of (seed, epoch, index).

A row is sampled as create_pretraining_data.py of google-research/bert (REFERENCE.md §2.1) samples its instances: the
target length, where A ends, whether B is random, how a pair is truncated. Two points differ, both because chunks are
cut once and read again in each epoch: a row with a random B does not give the unused sentences of its chunk back (other
epochs use them), and a random B starts in a random chunk of another document, so documents are drawn in proportion to
their length.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np

# Not inside the function: while TFDS is imported in one thread, imports of the other threads give lazy modules.
from grain.experimental import index_shuffle
from jaxtyping import Int32, Integer
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data.tokenizers.encoding import Tokenizer
from bert_jax.data.tokenizers.rows import pair_lengths, row_length, write_row, write_types

_MASK64 = (1 << 64) - 1
_AGAIN = "delete the dataset and prepare it again"

Tokens = Integer[np.ndarray, " _"]
Chunk = Mapping[str, Any]  # a record: tokens and sentence_lengths are arrays, the other fields integers


class ChunkSource(Protocol):
    """Random access to the chunks of a split: `Records`, or a list in tests. The chunks of a document are
    neighbours."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Chunk: ...


@dataclass(frozen=True)
class PairSettings:
    """What a row depends on besides the chunks; lengths in tokens, rates in [0, 1]."""

    sequence_length: int
    pairing: str  # nsp | sop | none
    random_next_rate: float
    short_sequence_rate: float
    cls_id: int
    sep_id: int
    vocab_size: int

    @classmethod
    def from_config(cls, data: ConfigDict, tokenizer: Tokenizer) -> "PairSettings":
        return cls(
            sequence_length=data.sequence_length,
            pairing=data.pairing,
            random_next_rate=data.random_next_rate,
            short_sequence_rate=data.short_sequence_rate,
            cls_id=tokenizer.cls_id,
            sep_id=tokenizer.sep_id,
            vocab_size=tokenizer.vocab_size,
        )


class Pair(NamedTuple):
    """The tokens of both parts without special ones; B and the label are None where there is none."""

    record: int  # the chunk that A is from
    a: Tokens
    b: Tokens | None
    label: int | None

    @property
    def tokens(self) -> int:
        """The length of the row that the pair fills, special tokens included."""
        return row_length(len(self.a), None if self.b is None else len(self.b))


def instance(source: ChunkSource, settings: PairSettings, seed: int, position: int) -> dict[str, np.ndarray]:
    """Returns row `position` of the endless sequence of epochs over `source`.

    It has input_ids, token_type_ids, position_ids, sequence_ids (1 = token, 0 = padding), all int32[L], and with one
    entry, that of the only pair: first_tokens int32[1], next_sentence_labels int32[1] (nsp: 1 = random B; sop: 1 =
    swapped) and next_sentence_weights float32[1] (0 where a row has no label). Raises UserError for a token id outside
    the vocabulary.
    """
    pair = make_pair(source, settings, seed, position)
    input_ids, token_type_ids, sequence_ids = np.zeros((3, settings.sequence_length), np.int32)
    write_pair(pair, settings, input_ids, token_type_ids)
    sequence_ids[: pair.tokens] = 1
    check_ids(source, settings, pair.record, input_ids)
    return {
        "input_ids": input_ids,
        "token_type_ids": token_type_ids,
        "position_ids": np.arange(settings.sequence_length, dtype=np.int32),
        "sequence_ids": sequence_ids,
        "first_tokens": np.zeros(1, np.int32),
        "next_sentence_labels": np.asarray([pair.label or 0], np.int32),
        "next_sentence_weights": np.asarray([pair.label is not None], np.float32),
    }


def make_pair(source: ChunkSource, settings: PairSettings, seed: int, position: int) -> Pair:
    """Returns the pair of row `position`. Its ids are not checked: packing makes many pairs that it does not use."""
    epoch, index = divmod(position, len(source))
    record = shuffled(index, len(source), seed, epoch)
    # Each row has a stream of draws of its own, so that it can be made without the rows before it.
    draws = _Draws(seed, epoch, index)
    chunk = source[record]
    if settings.pairing == "none":
        return Pair(record, _trim(chunk["tokens"], settings.sequence_length - 2, draws), None, None)
    target = settings.sequence_length - 3
    short = draws.uniform() < settings.short_sequence_rate
    if short:
        target = draws.between(2, target)
    sentences = _window(source, chunk, target if short else None, draws)
    parts = _next_sentence if settings.pairing == "nsp" else _sentence_order
    return Pair(record, *parts(source, settings, record, chunk, sentences, target, draws))


def write_pair(
    pair: Pair, settings: PairSettings, input_ids: Int32[np.ndarray, " L"], token_type_ids: Int32[np.ndarray, " L"]
) -> None:
    """Fills the first `pair.tokens` positions of two arrays of zeros."""
    write_row(input_ids[: pair.tokens], pair.a, pair.b, settings.cls_id, settings.sep_id)
    if pair.b is not None:
        write_types(token_type_ids[: pair.tokens], len(pair.a))


def check_ids(source: ChunkSource, settings: PairSettings, record: int, input_ids: Int32[np.ndarray, " L"]) -> None:
    """Raises UserError for an id outside the vocabulary, in a row that `record` is in."""
    largest = int(input_ids.view(np.uint32).max())  # a negative id is then the largest
    if largest >= settings.vocab_size:
        raise UserError(
            f"token id {largest} in a row of record {record} of {_name(source)} is outside the vocabulary of "
            f"{settings.vocab_size}: the dataset was prepared with another tokenizer; prepare it again"
        )


def shuffled(index: int, count: int, seed: int, epoch: int) -> int:
    """Returns the record that row `index` of an epoch starts from: a permutation of range(count) per (seed, epoch)."""
    key = _mix(_mix(seed & _MASK64) ^ epoch) & 0xFFFFFFFF
    return index_shuffle(index, max_index=count - 1, seed=key, rounds=4)


def _window(source: ChunkSource, chunk: Chunk, target: int | None, draws: "_Draws") -> list[int]:
    """Returns the token offsets of the sentences that a row uses: where the first begins, and where each one ends.

    Without a target these are all of the chunk. With one, sentences are taken until it is reached, from a start drawn
    among those with enough text after them: starting always with the first would starve the others.
    """
    ends = [0, *_ends(source, chunk)]
    if target is None:
        return ends
    possible = bisect_right(ends, ends[-1] - target)  # starts with >= target tokens after them
    first = draws.below(possible) if possible > 1 else 0
    last = bisect_left(ends, ends[first] + target)
    return ends[first : last + 1]


def _next_sentence(
    source: ChunkSource,
    settings: PairSettings,
    record: int,
    chunk: Chunk,
    sentences: list[int],
    target: int,
    draws: "_Draws",
) -> tuple[Tokens, Tokens, int]:
    """Returns A, B, and the label: 0 if B is the rest of the sentences, 1 if it comes from another document."""
    tokens, count = chunk["tokens"], len(sentences) - 1
    a_end = draws.between(1, count - 1) if count > 1 else 1
    a = tokens[sentences[0] : sentences[a_end]]
    # A single sentence has no rest, so its B is always random, as in the original.
    if count == 1 or draws.uniform() < settings.random_next_rate:
        b, label = _random_part(source, record, chunk, target - len(a), draws), 1
    else:
        b, label = tokens[sentences[a_end] : sentences[-1]], 0
    a, b = _truncate(a, b, settings.sequence_length - 3, draws)
    return a, b, label


def _sentence_order(
    source: ChunkSource,
    settings: PairSettings,
    record: int,
    chunk: Chunk,
    sentences: list[int],
    target: int,
    draws: "_Draws",
) -> tuple[Tokens, Tokens | None, int | None]:
    """Returns two neighbouring parts and the label: 0 in order, 1 swapped. A lone sentence is cut between two
    tokens."""
    tokens, count = chunk["tokens"], len(sentences) - 1
    if count > 1:
        cut = sentences[draws.between(1, count - 1)]
    elif sentences[1] - sentences[0] > 1:
        cut = sentences[0] + draws.between(1, sentences[1] - sentences[0] - 1)
    else:
        return tokens[sentences[0] : sentences[1]], None, None
    # Truncated before swapping: which part loses the odd token must not tell whether they were swapped.
    a, b = _truncate(tokens[sentences[0] : cut], tokens[cut : sentences[-1]], settings.sequence_length - 3, draws)
    return (b, a, 1) if draws.uniform() < 0.5 else (a, b, 0)


def _random_part(source: ChunkSource, record: int, chunk: Chunk, length: int, draws: "_Draws") -> Tokens:
    """Returns whole sentences of another document, at least `length` tokens unless that document ends before.

    The chunks of a document are neighbours, so this one occupies `num_chunks` records from
    `record - chunk_index`: skipping that range draws another document without trying.
    """
    own_first, own_count = record - chunk["chunk_index"], chunk["num_chunks"]
    if own_count >= len(source):
        raise UserError(
            f"nsp needs a second document to draw random sentences from, but the split has only one "
            f"({own_count} chunks): add documents or set data.pairing to sop or none"
        )
    drawn = draws.below(len(source) - own_count)
    drawn += own_count if drawn >= own_first else 0
    other = source[drawn]
    ends = _ends(source, other)
    start = draws.below(len(ends))
    offset = ends[start - 1] if start else 0
    last = min(max(bisect_left(ends, offset + length), start), len(ends) - 1)
    part = other["tokens"][offset : ends[last]]
    missing = length - len(part)
    # One following chunk suffices: all but the last of a document have as many tokens as a pair can.
    if missing <= 0 or other["chunk_index"] + 1 == other["num_chunks"]:
        return part
    if drawn + 1 >= len(source):
        raise UserError(f"{_name(source)}: record {drawn} is the last one, but not of its document: {_AGAIN}")
    following = source[drawn + 1]
    ends = _ends(source, following)
    last = min(bisect_left(ends, missing), len(ends) - 1)
    return np.concatenate((part, following["tokens"][: ends[last]]))


def _ends(source: ChunkSource, chunk: Chunk) -> list[int]:
    """Returns where the sentences of a chunk end, in tokens. Raises UserError if they are not those of its tokens.

    They are plain integers: for so few sentences NumPy takes twice as long.
    """
    ends = list(accumulate(chunk["sentence_lengths"].tolist()))
    if not ends or ends[-1] != len(chunk["tokens"]):
        raise UserError(
            f"{_name(source)}: a record has {len(chunk['tokens'])} tokens, but its sentences have others: {_AGAIN}"
        )
    return ends


def _name(source: ChunkSource) -> str:
    return str(getattr(source, "directory", "the dataset"))


def _truncate(a: Tokens, b: Tokens, limit: int, draws: "_Draws") -> tuple[Tokens, Tokens]:
    """Returns the parts as the original's loop leaves them, which takes the first or the last token of the longer one
    (B if equal) while the pair is too long: its lengths, and as many tokens from either end as its coins would say."""
    keep_a, keep_b = pair_lengths(len(a), len(b), limit, original=True)
    return _trim(a, keep_a, draws), _trim(b, keep_b, draws)


def _trim(tokens: Tokens, length: int, draws: "_Draws") -> Tokens:
    """Returns `length` tokens at most, after dropping tokens from the front or the back with equal chance each."""
    excess = len(tokens) - length
    if excess <= 0:
        return tokens
    front = draws.heads(excess)
    return tokens[front : front + length]


def _mix(state: int) -> int:
    """Returns the finaliser of SplitMix64 (Steele, Lea, Flood 2014) on an unsigned 64-bit integer."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
    return state ^ (state >> 31)


class _Draws:
    """A SplitMix64 stream keyed by integers: ten times cheaper to start than a NumPy Generator."""

    def __init__(self, *key: int):
        self._state = 0
        for part in key:
            self._state = _mix((self._state + part + 0x9E3779B97F4A7C15) & _MASK64)

    def bits(self) -> int:
        """Returns 64 random bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK64
        return _mix(self._state)

    def below(self, count: int) -> int:
        """Returns an integer, uniform on [0, count); the bias is under count / 2^64."""
        return (self.bits() * count) >> 64

    def between(self, low: int, high: int) -> int:
        """Returns an integer, uniform on [low, high], both included."""
        return low + self.below(high - low + 1)

    def uniform(self) -> float:
        """Returns a number, uniform on [0, 1)."""
        return (self.bits() >> 11) * 2.0**-53

    def heads(self, tosses: int) -> int:
        """Returns how many of `tosses` fair coins show heads, 64 coins per draw."""
        heads = 0
        for done in range(0, tosses, 64):
            heads += (self.bits() >> max(0, 64 - (tosses - done))).bit_count()
        return heads
