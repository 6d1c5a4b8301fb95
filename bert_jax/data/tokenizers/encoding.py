"""The interface of every tokenizer, and its rows with special tokens, offsets and truncation."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from bert_jax.config import Json, UserError
from bert_jax.data.tokenizers.rows import Span, kept, pair_lengths, row_length, write_row, write_types

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CONTINUATION = "##"  # begins the pieces that continue a word, in the vocabularies made here
_OTHER_NAMES = {"[PAD]": "<pad>", "[UNK]": "<unk>", "[CLS]": "<s>", "[SEP]": "</s>", "[MASK]": "<mask>"}

Pieces = tuple[list[int], list[Span]]  # of a text: token ids, and the characters that each token shows


class Part(NamedTuple):
    """The tokens of one sequence, special tokens included, unpadded."""

    ids: Int32[np.ndarray, " L"]
    type_ids: Int32[np.ndarray, " L"]  # 0 for [CLS] a [SEP], 1 for b [SEP]


class Encoding(NamedTuple):
    """A sequence with its positions in the texts: lists of one length. Offsets count characters of the text of the
    token."""

    ids: list[int]
    offsets: list[Span]  # (0, 0) for special tokens
    type_ids: list[int]  # as in `Part`
    special_tokens_mask: list[int]  # 1 for the [CLS] and [SEP] added here

    @property
    def attention_mask(self) -> list[int]:
        """1 for every token: a row is unpadded."""
        return [1] * len(self.ids)

    @property
    def part(self) -> Part:
        return Part(np.asarray(self.ids, np.int32), np.asarray(self.type_ids, np.int32))


class Tokenizer(ABC):
    """A vocabulary with its rules. `tokens` in id order; `origin` is named in errors."""

    vocab_size: int
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    special_ids: tuple[int, ...]
    original = False  # follows the rules of google-research/bert
    continuation_prefix = ""  # of the pieces that continue a word; "" if they are told apart in another way
    content_hash: str  # of vocabulary and options: equal hashes encode alike
    is_continuation: Bool[np.ndarray, " V"]  # the piece continues a word

    def __init__(self, tokens: Sequence[str], origin: str, options: object):
        self._tokens = list(tokens)
        self._ids = {token: index for index, token in enumerate(tokens)}
        self.vocab_size = len(tokens)
        self.special_ids = tuple(special_id(self._ids, name, origin) for name in SPECIAL_TOKENS)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = self.special_ids
        content = json.dumps([self._tokens, self.special_ids, options], sort_keys=True)
        self.content_hash = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    @abstractmethod
    def encode_words(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, without special tokens, never truncated."""

    def encode_flat(self, texts: Sequence[str]) -> tuple[Int32[np.ndarray, " T"], Int64[np.ndarray, " N"]]:
        """Returns the same ids in one array, and how many each text has: the fast path for corpora."""
        rows = self.encode_words(texts)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the ids, without [PAD], [CLS] and [SEP]."""

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """Returns the files that `load_tokenizer` and `tokenizer_from_files` read, by name."""

    def save(self, directory: Path) -> None:
        """Writes the files that `load_tokenizer(directory)` reads."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (directory / name).write_bytes(content)

    @abstractmethod
    def pieces(self, texts: Sequence[str]) -> list[Pieces]:
        """Returns the ids of each text and the (start, end) characters of each, no special tokens added."""

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_length: int | None = None
    ) -> list[Encoding]:
        """Returns [CLS] a [SEP], or [CLS] a [SEP] b [SEP] with `pairs`, cut at the end to `max_length` tokens (see
        `truncated`). Raises UserError if `max_length` has no room for the special tokens."""
        firsts = self.pieces(texts)
        seconds = self.pieces(pairs) if pairs is not None else [None] * len(texts)
        return [self._encoding(a, b, max_length) for a, b in zip(firsts, seconds, strict=True)]

    def row(
        self, a: Sequence[int], b: Sequence[int] | None = None, *, max_length: int | None = None, how: str = "head"
    ) -> Part:
        """Returns [CLS] a [SEP], or [CLS] a [SEP] b [SEP], of token ids without special tokens.

        A longer row than `max_length` is cut by the rule of `truncated`; `how` says which ends remain (`TRUNCATIONS`).
        """
        length_a, length_b = self._lengths(len(a), None if b is None else len(b), max_length)
        a, b = kept(a, length_a, how), None if b is None else kept(b, length_b, how)
        ids, type_ids = np.zeros((2, row_length(len(a), None if b is None else len(b))), np.int32)
        write_row(ids, a, b, self.cls_id, self.sep_id)
        write_types(type_ids, len(a))
        return Part(ids, type_ids)

    def __call__(self, text: str, pair: str | None = None, *, max_length: int | None = None) -> Encoding:
        """Returns the row of one text, or of a pair; as `encode`, which takes many."""
        return self.encode([text], None if pair is None else [pair], max_length=max_length)[0]

    def token(self, token_id: int) -> str:
        return self._tokens[token_id]

    def id(self, token: str) -> int:
        """Returns the id of a token. Raises KeyError if it is not in the vocabulary."""
        return self._ids[token]

    def truncated(self, length_a: int, length_b: int, room: int) -> tuple[int, int]:
        """Returns `pair_lengths` by the rule that belongs to this tokenizer."""
        return pair_lengths(length_a, length_b, room, original=self.original)

    def _shown(self, ids: Iterable[int]) -> list[int]:
        hidden = (self.pad_id, self.cls_id, self.sep_id)
        return [index for index in map(int, ids) if index not in hidden]

    def _lengths(self, length_a: int, length_b: int | None, max_length: int | None) -> tuple[int, int]:
        if max_length is None:
            return length_a, length_b or 0
        least = row_length(0, None if length_b is None else 0)
        if max_length < least:
            raise UserError(f"max_length {max_length} has no room for [CLS] and [SEP]: give at least {least}")
        return self.truncated(length_a, length_b or 0, max_length - least)

    def _encoding(self, a: Pieces, b: Pieces | None, max_length: int | None) -> Encoding:
        length_a, length_b = self._lengths(len(a[0]), None if b is None else len(b[0]), max_length)
        ids, type_ids = self.row(a[0][:length_a], None if b is None else b[0][:length_b])
        offsets, special = np.zeros((len(ids), 2), np.int64), np.zeros(len(ids), np.int64)
        shown = [np.reshape(spans, (-1, 2)) for spans in (a[1][:length_a], b[1][:length_b] if b else [])]
        write_row(offsets, shown[0], None if b is None else shown[1], 0, 0)
        write_row(special, np.zeros(length_a), None if b is None else np.zeros(length_b), 1, 1)
        return Encoding(ids.tolist(), [(i, j) for i, j in offsets.tolist()], type_ids.tolist(), special.tolist())


def special_id(ids: dict[str, int], name: str, origin: str) -> int:
    for token in (name, _OTHER_NAMES[name]):
        if token in ids:
            return ids[token]
    raise UserError(f"{origin}: no {name} among {len(ids):,} tokens: add it, BERT needs {' '.join(SPECIAL_TOKENS)}")


def write_json(path: Path, content: Json) -> None:
    path.write_bytes(to_json(content))


def to_json(content: Json) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
