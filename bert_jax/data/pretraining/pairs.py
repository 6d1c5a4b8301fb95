"""Chunks → sentence pairs, made when they are read: a pure function of (seed, epoch, index).

A row is sampled as create_pretraining_data.py of google-research/bert (REFERENCE.md §2.1) samples its instances: the
target length, where A ends, whether B is random, how a pair is truncated. Two points differ, both because chunks are
cut once and read again in each epoch: a row with a random B does not give the unused sentences of its chunk back (other
epochs use them), and a random B starts in a random chunk of another document, so documents are drawn in proportion to
their length.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np

# Not inside the function: while TFDS is imported in one thread, imports of the other threads give lazy modules.
from grain.experimental import index_shuffle
from jaxtyping import Int32, Integer
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data.batching.reader import Batch
from bert_jax.data.tokenizers.encoding import Tokenizer
from bert_jax.data.tokenizers.rows import pair_lengths, row_length, write_row, write_types

_MASK64 = (1 << 64) - 1
AGAIN = "delete the dataset and prepare it again"

Tokens = Integer[np.ndarray, " _"]
Chunk = Mapping[str, Any]  # a record: tokens and sentence_lengths are arrays, the other fields integers


class ChunkSource(Protocol):
    """Random access to the chunks of a split, in which those of a document are neighbours: `Records`, or a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Chunk: ...


@dataclass(frozen=True)
class PairSettings:
    """What a row depends on besides the chunks; lengths in tokens, rates in [0, 1]."""

    sequence_length: int
    pairing: str  # nsp | sop | none, or translation: a chunk holds a text and its translation
    random_next_rate: float
    short_sequence_rate: float
    cls_id: int
    sep_id: int
    vocab_size: int
    restart_positions: bool = False  # of a row's second part, from 0

    @classmethod
    def from_config(cls, data: ConfigDict, tokenizer: Tokenizer) -> "PairSettings":
        rates = data.random_next_rate, data.short_sequence_rate
        ids = tokenizer.cls_id, tokenizer.sep_id
        return cls(data.sequence_length, data.pairing, *rates, *ids, tokenizer.vocab_size)


class Pair(NamedTuple):
    """The tokens of both parts without special ones; B and the label are None where there is none."""

    record: int  # the chunk that A is from
    a: Tokens
    b: Tokens | None
    label: int | None  # nsp: 1 = random B; sop: 1 = swapped

    @property
    def tokens(self) -> int:
        """The length of the row that the pair fills, special tokens included."""
        return row_length(len(self.a), None if self.b is None else len(self.b))


class PairRows:
    """The endless sequence of rows of one pair each, epoch after epoch over `source`.

    A row has input_ids, token_type_ids, position_ids, sequence_ids (k = token of the k-th pair, 0 = padding), all
    int32[L], and with an entry for each of up to S pairs: first_tokens, next_sentence_labels int32[S] (see `Pair`) and
    next_sentence_weights float32[S] (0 where a pair has no label, or there is no pair). Here S is 1.
    """

    def __init__(self, source: ChunkSource, settings: PairSettings, seed: int):
        self.source, self._settings, self._seed = source, settings, seed
        self._positions = np.arange(settings.sequence_length, dtype=np.int32)

    def __call__(self, position: int) -> Batch:
        """Returns the row at `position`. Raises UserError for a token id outside the vocabulary."""
        return self.row([self.pair(position)], 1)

    def first_pair(self, position: int) -> int:
        """Returns the number of the first pair that the row at `position` is made from."""
        return position

    def pair(self, position: int) -> Pair:
        """Returns the pair of a row of its own; its ids are not checked."""
        settings, source = self._settings, self.source
        epoch, index = divmod(position, len(source))
        record = shuffled(index, len(source), self._seed, epoch)
        # Each row has a stream of draws of its own, so that it can be made without the rows before it.
        draws = _Draws(self._seed, epoch, index)
        chunk = source[record]
        if settings.pairing == "translation":
            a, b = np.split(chunk["tokens"], self._ends(chunk)[:1])
            return Pair(record, *_truncate(a, b, settings.sequence_length - 3, draws), None)
        if settings.pairing == "none":
            return Pair(record, _trim(chunk["tokens"], settings.sequence_length - 2, draws), None, None)
        target = settings.sequence_length - 3
        short = draws.uniform() < settings.short_sequence_rate
        if short:
            target = draws.between(2, target)
        sentences = self._window(chunk, target if short else None, draws)
        if settings.pairing == "nsp":
            return self._next_sentence(record, chunk, sentences, target, draws)
        return self._sentence_order(record, chunk, sentences, draws)

    def row(self, pairs: Sequence[Pair], most: int) -> Batch:
        """Returns the row of at most `most` pairs, one after the other."""
        length, settings = self._settings.sequence_length, self._settings
        input_ids, token_type_ids, sequence_ids = np.zeros((3, length), np.int32)
        # Those of a row of one pair continue in the padding.
        position_ids = self._positions.copy() if most == 1 else np.zeros(length, np.int32)
        first_tokens, labels = np.zeros((2, most), np.int32)
        weights, start = np.zeros(most, np.float32), 0
        for number, pair in enumerate(pairs):
            tokens = pair.tokens
            end = start + tokens
            write_row(input_ids[start:end], pair.a, pair.b, settings.cls_id, settings.sep_id)
            if pair.b is not None:
                write_types(token_type_ids[start:end], len(pair.a))
            if most > 1:
                position_ids[start:end] = self._positions[:tokens]
            if pair.b is not None and settings.restart_positions:
                position_ids[end - len(pair.b) - 1 : end] = self._positions[: len(pair.b) + 1]
            sequence_ids[start:end] = number + 1
            first_tokens[number], labels[number], weights[number] = start, pair.label or 0, pair.label is not None
            start = end
        if pairs:
            self._check_ids(pairs[0].record, input_ids)
        return {
            "input_ids": input_ids,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "sequence_ids": sequence_ids,
            "first_tokens": first_tokens,
            "next_sentence_labels": labels,
            "next_sentence_weights": weights,
        }

    def _check_ids(self, record: int, ids: Int32[np.ndarray, " _"]) -> None:
        """Raises UserError for an id outside the vocabulary, in a row that `record` is in."""
        largest = int(ids.view(np.uint32).max())  # a negative id is then the largest
        if largest >= self._settings.vocab_size:
            where = f"token id {largest} in a row of record {record} of {self._name()}"
            wrong = f"is outside the vocabulary of {self._settings.vocab_size}"
            raise UserError(f"{where} {wrong}: the dataset was prepared with another tokenizer; prepare it again")

    def _window(self, chunk: Chunk, target: int | None, draws: "_Draws") -> list[int]:
        """Returns the token offsets of the sentences that a row uses: where the first begins, and where each one ends.

        With a target, sentences are taken until it is reached, from a start drawn among those with enough text after
        them: starting always with the first would starve the others.
        """
        ends = [0, *self._ends(chunk)]
        if target is None:
            return ends
        possible = bisect_right(ends, ends[-1] - target)  # starts with >= target tokens after them
        first = draws.below(possible) if possible > 1 else 0
        last = bisect_left(ends, ends[first] + target)
        return ends[first : last + 1]

    def _next_sentence(self, record: int, chunk: Chunk, sentences: list[int], target: int, draws: "_Draws") -> Pair:
        """Returns A and the rest of the sentences, or a part of another document."""
        tokens, count = chunk["tokens"], len(sentences) - 1
        a_end = draws.between(1, count - 1) if count > 1 else 1
        a = tokens[sentences[0] : sentences[a_end]]
        # A single sentence has no rest, so its B is always random, as in the original.
        if count == 1 or draws.uniform() < self._settings.random_next_rate:
            b, label = self._random_part(record, chunk, target - len(a), draws), 1
        else:
            b, label = tokens[sentences[a_end] : sentences[-1]], 0
        return Pair(record, *_truncate(a, b, self._settings.sequence_length - 3, draws), label)

    def _sentence_order(self, record: int, chunk: Chunk, sentences: list[int], draws: "_Draws") -> Pair:
        """Returns two neighbouring parts, in order or swapped. A lone sentence is cut between two tokens."""
        tokens, count = chunk["tokens"], len(sentences) - 1
        if count > 1:
            cut = sentences[draws.between(1, count - 1)]
        elif sentences[1] - sentences[0] > 1:
            cut = sentences[0] + draws.between(1, sentences[1] - sentences[0] - 1)
        else:
            return Pair(record, tokens[sentences[0] : sentences[1]], None, None)
        # Truncated before swapping: which part loses the odd token must not tell whether they were swapped.
        a, b = tokens[sentences[0] : cut], tokens[cut : sentences[-1]]
        a, b = _truncate(a, b, self._settings.sequence_length - 3, draws)
        return Pair(record, b, a, 1) if draws.uniform() < 0.5 else Pair(record, a, b, 0)

    def _random_part(self, record: int, chunk: Chunk, length: int, draws: "_Draws") -> Tokens:
        """Returns whole sentences of another document, at least `length` tokens unless that document ends before."""
        source = self.source
        # The chunks of a document are neighbours: skipping their range draws another document without trying.
        own_first, own_count = record - chunk["chunk_index"], chunk["num_chunks"]
        if own_count >= len(source):
            wrong = f"nsp needs a second document to draw random sentences from, the split has one ({own_count} chunks)"
            raise UserError(f"{wrong}: add documents or set data.pairing to sop or none")
        drawn = draws.below(len(source) - own_count)
        drawn += own_count if drawn >= own_first else 0
        other = source[drawn]
        ends = self._ends(other)
        start = draws.below(len(ends))
        offset = ends[start - 1] if start else 0
        last = min(max(bisect_left(ends, offset + length), start), len(ends) - 1)
        part = other["tokens"][offset : ends[last]]
        missing = length - len(part)
        # One following chunk suffices: all but the last of a document have as many tokens as a pair can.
        if missing <= 0 or other["chunk_index"] + 1 == other["num_chunks"]:
            return part
        if drawn + 1 >= len(source):
            raise UserError(f"{self._name()}: record {drawn} is the last one, but not of its document: {AGAIN}")
        following = source[drawn + 1]
        ends = self._ends(following)
        last = min(bisect_left(ends, missing), len(ends) - 1)
        return np.concatenate((part, following["tokens"][: ends[last]]))

    def _ends(self, chunk: Chunk) -> list[int]:
        """Returns where the sentences of a chunk end. Raises UserError if they are not those of its tokens."""
        # Plain integers: for so few sentences NumPy takes twice as long.
        ends = list(accumulate(chunk["sentence_lengths"].tolist()))
        if not ends or ends[-1] != len(chunk["tokens"]):
            counts = f"{len(chunk['tokens'])} tokens, but its sentences have others"
            raise UserError(f"{self._name()}: a record has {counts}: {AGAIN}")
        return ends

    def _name(self) -> str:
        return str(getattr(self.source, "directory", "the dataset"))


def shuffled(index: int, count: int, seed: int, epoch: int) -> int:
    """Returns the record that row `index` of an epoch starts from: a permutation of range(count) per (seed, epoch)."""
    key = mix(mix(seed & _MASK64) ^ epoch) & 0xFFFFFFFF
    return index_shuffle(index, max_index=count - 1, seed=key, rounds=4)


def _truncate(a: Tokens, b: Tokens, limit: int, draws: "_Draws") -> tuple[Tokens, Tokens]:
    """Returns the parts as the original's loop leaves them, which drops the first or the last token of the longer one
    (B if equal) while the pair is too long."""
    keep_a, keep_b = pair_lengths(len(a), len(b), limit, original=True)
    return _trim(a, keep_a, draws), _trim(b, keep_b, draws)


def _trim(tokens: Tokens, length: int, draws: "_Draws") -> Tokens:
    """Returns `length` tokens at most, after dropping tokens from the front or the back with equal chance each."""
    excess = len(tokens) - length
    if excess <= 0:
        return tokens
    front = draws.heads(excess)
    return tokens[front : front + length]


def mix(state: int) -> int:
    """Returns the finaliser of SplitMix64 (Steele, Lea, Flood 2014) on an unsigned 64-bit integer."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
    return state ^ (state >> 31)


class _Draws:
    """A SplitMix64 stream keyed by integers: ten times cheaper to start than a NumPy Generator."""

    def __init__(self, *key: int):
        self._state = 0
        for part in key:
            self._state = mix((self._state + part + 0x9E3779B97F4A7C15) & _MASK64)

    def bits(self) -> int:
        """Returns 64 random bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK64
        return mix(self._state)

    def below(self, count: int) -> int:
        """Returns an integer, uniform on [0, count) but for a bias under count / 2^64."""
        return (self.bits() * count) >> 64

    def between(self, low: int, high: int) -> int:
        """Returns an integer, uniform on [low, high], both included."""
        return low + self.below(high - low + 1)

    def uniform(self) -> float:
        """Returns a number, uniform on [0, 1)."""
        return (self.bits() >> 11) * 2.0**-53

    def heads(self, tosses: int) -> int:
        """Returns how many of `tosses` fair coins show heads, 64 coins per draw."""
        used = (self.bits() >> max(0, 64 - (tosses - done)) for done in range(0, tosses, 64))
        return sum(bits.bit_count() for bits in used)
