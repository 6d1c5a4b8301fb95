"""What every tokenizer is and gives: the interface, and rows with special tokens, offsets and truncation."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from bert_jax.config import UserError

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_OTHER_NAMES = {"[PAD]": "<pad>", "[UNK]": "<unk>", "[CLS]": "<s>", "[SEP]": "</s>", "[MASK]": "<mask>"}

Span = tuple[int, int]


class Encoding(NamedTuple):
    """One row, unpadded; all lists have the same length. Offsets count characters of the text the token came from."""

    ids: list[int]
    offsets: list[Span]  # (0, 0) for special tokens
    type_ids: list[int]  # 0 for [CLS] A [SEP], 1 for B [SEP]
    special_tokens_mask: list[int]  # 1 for the [CLS] and [SEP] added here


class Tokenizer(ABC):
    """A vocabulary with its rules. `tokens` in id order; `origin` is named in errors."""

    vocab_size: int
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    special_ids: tuple[int, ...]
    original = False  # rules of google-research/bert
    content_hash: str  # of vocabulary and options: equal hashes encode alike
    is_continuation: Bool[np.ndarray, " V"]  # the piece continues a word

    def __init__(self, tokens: Sequence[str], origin: str, options: Any):
        self._tokens = list(tokens)
        self._ids = {token: index for index, token in enumerate(tokens)}
        self.vocab_size = len(tokens)
        self.special_ids = tuple(special_id(self._ids, name, origin) for name in SPECIAL_TOKENS)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = self.special_ids
        content = json.dumps([self._tokens, self.special_ids, options], sort_keys=True)
        self.content_hash = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    @abstractmethod
    def encode_words(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids only, no special tokens added, never truncated."""

    def encode_flat(self, texts: Sequence[str]) -> tuple[Int32[np.ndarray, " T"], Int64[np.ndarray, " N"]]:
        """The same ids in one array, and the number of each text: the fast path for corpora."""
        rows = self.encode_words(texts)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, without [PAD], [CLS] and [SEP]."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Writes the files that `load_tokenizer(directory)` reads."""

    @abstractmethod
    def _pieces(self, texts: Sequence[str]) -> list[tuple[list[int], list[Span]]]: ...

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_length: int | None = None
    ) -> list[Encoding]:
        """[CLS] A [SEP] or [CLS] A [SEP] B [SEP]; over `max_length` as in `truncated`."""
        firsts = self._pieces(texts)
        seconds = self._pieces(pairs) if pairs is not None else [None] * len(texts)
        return [self._join(a, b, max_length) for a, b in zip(firsts, seconds, strict=True)]

    def token(self, token_id: int) -> str:
        return self._tokens[token_id]

    def id(self, token: str) -> int:
        """Raises KeyError for a token that is not in the vocabulary."""
        return self._ids[token]

    def truncated(self, length_a: int, length_b: int, room: int) -> tuple[int, int]:
        """Lengths of two parts after their ends were cut off so that together they fit into `room`: the longer first.

        Where both are cut and `room` is odd, Hugging Face's tokenizers give the odd token to the longer part (B if
        equal), the original to A.
        """
        if length_a + length_b <= room:
            return length_a, length_b
        if self.original:
            kept_b = min(length_b, max(room - length_a, room // 2))
            return room - kept_b, kept_b
        kept = min(length_a, length_b, room // 2)
        return (kept, room - kept) if length_a <= length_b else (room - kept, kept)

    def _join(self, a: tuple[list[int], list[Span]], b: tuple[list[int], list[Span]] | None, limit: int | None):
        if limit is not None:
            room = limit - (2 if b is None else 3)
            if room < 0:
                raise UserError(f"max_length {limit} has no room for [CLS] and [SEP]: give at least {limit - room}")
            length_a, length_b = self.truncated(len(a[0]), len(b[0]) if b else 0, room)
            a = (a[0][:length_a], a[1][:length_a])
            b = b and (b[0][:length_b], b[1][:length_b])
        none = (0, 0)
        ids, offsets = [self.cls_id, *a[0], self.sep_id], [none, *a[1], none]
        types, special = [0] * len(ids), [1, *[0] * len(a[0]), 1]
        if b is not None:
            ids += [*b[0], self.sep_id]
            offsets += [*b[1], none]
            types += [1] * (len(b[0]) + 1)
            special += [*[0] * len(b[0]), 1]
        return Encoding(ids, offsets, types, special)


def special_id(ids: dict[str, int], name: str, origin: str) -> int:
    for token in (name, _OTHER_NAMES[name]):
        if token in ids:
            return ids[token]
    raise UserError(f"{origin}: no {name} among {len(ids):,} tokens: add it, BERT needs {' '.join(SPECIAL_TOKENS)}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
