"""Texts with gaps taken apart, without a model: marks, lengths of gaps, words that must occur, allowed pieces.

[MASK] stands for one token, [GAP] for one to `gap` of them. Marks with nothing but white space between them are a run.
Every combination of lengths, and of places for the words that must occur, is a candidate.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import numpy as np
from jaxtyping import Bool

from bert_jax.config import Json, UserError
from bert_jax.data.labelled.columns import text_in
from bert_jax.data.labelled.tables import Row
from bert_jax.data.text.text_files import is_unicode
from bert_jax.data.tokenizers.encoding import Tokenizer
from bert_jax.inference.filling import Blank, Filled

STRATEGIES = ("left_to_right", "confidence", "mask_predict", "beam", "gibbs")
MASK, GAP = "[MASK]", "[GAP]"
_MOST_MASKS = 64  # in a text
_MOST = 256  # candidates of a text, and the largest value of several options
_MARK = re.compile(r"\[(?:MASK|GAP)\]")
_RUN = re.compile(rf"{_MARK.pattern}(?:\s*{_MARK.pattern})*")
_LETTER = re.compile(r"\w")
_UNUSED = re.compile(r"\[unused\d+\]|<unused\d*>")
_ANY, _BEGINS, _WORD = 0, 1, 2  # kinds of places: any piece; a piece that begins a word; one that is a word


@dataclass(frozen=True)
class Infilling:
    """How gaps are filled. [UNK] and other special pieces are never chosen.

    `iterations` are those of mask_predict, and the sweeps of gibbs; `beams` is the width of beam; `temperature` and
    `seed` are for gibbs. `whole_words`: each mask is a whole word, no punctuation. `contains`: words that must occur
    among the fillings. `allowed`: pieces or words of one piece that masks may get, one list for all, or a list for each
    [MASK]. Raises UserError for values of other types and out of range.
    """

    strategy: str = "confidence"
    gap: int = 4
    iterations: int = 10
    beams: int = 4
    temperature: float = 1.0
    seed: int = 0
    whole_words: bool = False
    contains: tuple[str, ...] = ()
    allowed: tuple[str, ...] | tuple[tuple[str, ...], ...] = ()

    @classmethod
    def from_flags(cls, strategy: str, *, contains: str, allowed: str, **numbers: Any) -> "Infilling | None":
        """Returns the options that the flags of --mode=fill_mask describe, words comma-separated; None without a
        strategy. Raises UserError for a flag that needs one."""
        if not strategy:
            given = numbers | {"contains": contains or (), "allowed": allowed or ()}
            for name in (name for name, value in given.items() if value != getattr(cls, name)):
                raise UserError(f"--{name} is about masks that are filled jointly: give a --strategy, or leave it out")
            return None
        return cls(strategy, contains=_comma_separated(contains), allowed=_comma_separated(allowed), **numbers)

    def __post_init__(self):
        if self.strategy not in STRATEGIES:
            raise UserError(f"strategy '{self.strategy}' is unknown; it can be {', '.join(STRATEGIES)}")
        for name in ("gap", "iterations", "beams"):
            value: int = getattr(self, name)
            if not isinstance(value, Integral) or not 1 <= value <= _MOST:
                raise UserError(f"{name} is {value!r}; it can be 1 to {_MOST}")
        if not isinstance(self.temperature, Real) or not 0 < self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature!r}; it must be a number over 0")
        if not isinstance(self.seed, Integral) or self.seed < 0:
            raise UserError(f"seed is {self.seed!r}; it must be 0 or more")
        if not _are_texts(self.contains):
            raise UserError(f"contains is {self.contains!r}; it must be a list of words")
        lists = self.allowed_lists
        if not isinstance(lists, list | tuple) or not all(words and _are_texts(words) for words in lists):
            raise UserError("allowed is a list of pieces, or a list of such lists, none of them empty")

    @property
    def allowed_lists(self) -> Sequence[Any]:
        """The lists of `allowed`: one for all masks, or one for each [MASK]; none if all pieces are allowed."""
        return (self.allowed,) if self.allowed and _are_texts(self.allowed) else self.allowed


class Grammar:
    """What a vocabulary and the options allow in a gap. Raises UserError for words that the vocabulary lacks.

    `tables` [K, V] says for each kind of place which tokens are allowed there.
    """

    def __init__(self, tokenizer: Tokenizer, how: Infilling):
        self.tokenizer, self.how = tokenizer, how
        never = {*tokenizer.special_ids}
        never |= {i for i in range(tokenizer.vocab_size) if _UNUSED.fullmatch(tokenizer.token(i))}
        any_piece = ~np.isin(np.arange(tokenizer.vocab_size), list(never))
        self.words = [self._spelled(word) for word in how.contains]
        own = [np.isin(np.arange(tokenizer.vocab_size), list(map(self._piece, words))) for words in how.allowed_lists]
        begins = any_piece & ~tokenizer.is_continuation
        word = begins & [bool(_LETTER.search(tokenizer.token(i))) for i in range(tokenizer.vocab_size)]
        self.tables: Bool[np.ndarray, "K V"] = np.stack([any_piece, begins, word, *own])
        self.per_mask = [len(self.tables) - len(own) + i for i in range(len(own))]

    def kinds(self, size: int, is_glued: bool) -> list[int]:
        """Returns the kinds of the places of a run, unless `how.allowed` decides. A word that is written up to the run
        may be continued, as in "play[MASK]"."""
        if self.how.whole_words:
            return [_WORD] * size
        return [_ANY if is_glued else _BEGINS] + [_ANY] * (size - 1)

    def _piece(self, word: str) -> int:
        pieces = self.tokenizer.encode_words([word])[0]
        if len(pieces) != 1:  # not a whole word, but maybe a piece as the vocabulary writes it
            try:
                pieces = [self.tokenizer.id(word)]
            except KeyError:
                pieces = []
        if not pieces or pieces[0] in self.tokenizer.special_ids:
            raise UserError(f"allowed names '{word}', which is not one piece of the vocabulary; name others")
        return pieces[0]

    def _spelled(self, word: str) -> list[int]:
        pieces = self.tokenizer.encode_words([word])[0]
        if not pieces or self.tokenizer.unk_id in pieces:
            raise UserError(f"contains names '{word}', which the vocabulary cannot spell; name another word")
        return pieces


@dataclass(frozen=True)
class Template:
    """A text taken apart: `texts[i]` precedes the i-th run of marks, the last one ends the text."""

    origin: str
    texts: list[str]
    runs: list[list[str]]
    grammar: Grammar

    @classmethod
    def of_row(cls, row: Row, column: str, grammar: Grammar) -> "Template":
        """Raises UserError, with the row, for a text without marks or with too many."""
        text = text_in(row, column)
        runs = [_MARK.findall(run) for run in _RUN.findall(text)]
        marks, per_mask = [mark for run in runs for mark in run], grammar.per_mask
        if not runs:
            raise UserError(f"{row.origin}: no {MASK} and no {GAP} in '{text[:60]}'; put one where text is missing")
        if len(marks) > _MOST_MASKS:
            raise UserError(f"{row.origin}: {len(marks)} masks, over {_MOST_MASKS}; fill them in parts")
        if len(per_mask) > 1 and (GAP in marks or len(per_mask) != len(marks)):
            count = f"{len(per_mask)} lists of allowed pieces for {len(marks)} marks"
            raise UserError(f"{row.origin}: {count}; give one list for each {MASK}, and leave no {GAP}")
        return cls(row.origin, _RUN.split(text), runs, grammar)

    def candidates(self, max_length: int) -> list[tuple[Blank, list[int]]]:
        """Returns rows with the lengths of their runs. Raises UserError if there are too many, if one is longer than
        the model, or if the words that must occur do not fit."""
        how, gaps, found = self.grammar.how, sum(run.count(GAP) for run in self.runs), []
        if how.gap**gaps > _MOST:
            count = f"{gaps} gaps of 1 to {how.gap} tokens are {how.gap**gaps} candidates, over {_MOST}"
            raise UserError(f"{self.origin}: {count}; leave fewer {GAP}, or lower gap")
        for lengths in itertools.product(range(1, how.gap + 1), repeat=gaps):
            of_gap = iter(lengths)
            sizes = [sum(1 if mark == MASK else next(of_gap) for mark in run) for run in self.runs]
            blank = self._blank(sizes)
            if len(blank.ids) > max_length:
                count = f"{len(blank.ids)} tokens, over {max_length}, the model's positions"
                raise UserError(f"{self.origin}: {count}; shorten it")
            placed = _with_words(blank, sizes, self.grammar.words)
            found += [(one, sizes) for one in itertools.islice(placed, _MOST + 1)]  # there may be billions
            if len(found) > _MOST:
                raise UserError(
                    f"{self.origin}: over {_MOST} ways to place the words that must occur; name fewer, or lower gap"
                )
        if not found:
            words = ", ".join(how.contains)
            raise UserError(f"{self.origin}: no run of masks has room for {words}; put more {MASK} there")
        return found

    def record(self, filled: Filled, blank: Blank, sizes: Sequence[int]) -> Json:
        """Returns the text with its gaps filled, what is in them, and the probability of each token of theirs; that of
        a token of a word that must occur is 1."""
        tokenizer = self.grammar.tokenizer
        chosen = dict(zip(blank.places, np.exp(filled.log_probabilities).tolist(), strict=True))
        text, fillings, tokens, at = self.texts[0], [], [], 1 + len(self._encoded[0])
        for size, after, following in zip(sizes, self.texts[1:], self._encoded[1:], strict=True):
            ids = filled.ids[at : at + size].tolist()
            fillings.append(tokenizer.decode(ids).strip().removeprefix(tokenizer.continuation_prefix))
            tokens += [(tokenizer.token(i), chosen.get(at + k, 1.0)) for k, i in enumerate(ids)]
            text += fillings[-1] + after
            at += size + len(following)
        return {"text": text, "fillings": fillings, "tokens": tokens, "score": filled.score}

    @cached_property
    def _encoded(self) -> list[list[int]]:
        return self.grammar.tokenizer.encode_words(self.texts)

    def _blank(self, sizes: Sequence[int]) -> Blank:
        tokenizer, per_mask = self.grammar.tokenizer, self.grammar.per_mask
        ids, places, kinds = [tokenizer.cls_id, *self._encoded[0]], list[int](), list[int]()
        for before, following, size in zip(self.texts, self._encoded[1:], sizes, strict=False):
            places += range(len(ids), len(ids) + size)
            kinds += self.grammar.kinds(size, bool(before) and not before[-1].isspace())
            ids += [tokenizer.mask_id] * size + following
        if per_mask:
            kinds = per_mask * len(kinds) if len(per_mask) == 1 else per_mask
        return Blank(np.asarray([*ids, tokenizer.sep_id], np.int32), tuple(places), tuple(kinds))


def _are_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(x, str) and is_unicode(x) for x in value)


def _comma_separated(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip())


def _with_words(blank: Blank, sizes: Sequence[int], words: Sequence[list[int]]) -> Iterator[Blank]:
    """Yields the row with the words put at masks, in every way: each within one run, none over another. A word begins
    where no other word is continued, and what follows it begins another one."""
    ends = np.cumsum(sizes).tolist()
    runs = [blank.places[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    glued = {run[0] for run, end, size in zip(runs, ends, sizes, strict=True) if blank.kinds[end - size] == _ANY}
    starts = [
        [run[i] for run in runs for i in range(len(run) - len(word) + 1) if run[i] not in glued] for word in words
    ]
    if sum(map(len, words)) > len(blank.places):
        return
    for taken in _placed(starts, words, {}):
        ids = blank.ids.copy()
        ids[list(taken)] = list(taken.values())
        left = [(place, kind) for place, kind in zip(blank.places, blank.kinds, strict=True) if place not in taken]
        kinds = tuple(_BEGINS if kind == _ANY and place - 1 in taken else kind for place, kind in left)
        yield Blank(ids, tuple(place for place, _ in left), kinds)


def _placed(
    starts: Sequence[Sequence[int]], words: Sequence[list[int]], taken: dict[int, int]
) -> Iterator[dict[int, int]]:
    """Yields pieces by their places, `taken` ones among them, in every way to begin each word at one of its starts and
    none over another."""
    if not words:
        yield taken
        return
    for first in starts[0]:
        own = dict(enumerate(words[0], first))
        if own.keys().isdisjoint(taken):
            yield from _placed(starts[1:], words[1:], taken | own)
