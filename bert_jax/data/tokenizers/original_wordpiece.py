"""WordPiece as `tokenization.py` of google-research/bert does it, to the letter, and with character offsets.

Differs from the Rust tokenizer in rare characters (control characters are Cc and Cf only, final sigma is lower-cased by
context, one CJK range), in the longest word (200 characters) and in that special tokens in raw text are split like any
other text. About 1 MB/s: put a cache in front.
"""

import re
import string
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bert_jax.data.tokenizers.encoding import CONTINUATION

MAX_WORD_LENGTH = 200
_CJK = re.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f]"
)

Word = tuple[str, list[int]]  # normalised characters, and the index in the source text of each


@dataclass(frozen=True)
class OriginalWordPiece:
    """The original's tokenizer; its switches are those of data.* in the config."""

    vocab: Mapping[str, int]
    unk_id: int
    lowercase: bool
    strip_accents: bool
    split_cjk: bool
    continuation_prefix: str = CONTINUATION

    def pieces(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for chars, positions in self.words(text):
            for piece_id, start, end in self._greedy(chars):
                ids.append(piece_id)
                offsets.append((positions[start], positions[end - 1] + 1))
        return ids, offsets

    def words(self, text: str) -> Iterator[Word]:
        """Yields the words, normalised and split at punctuation, before any vocabulary is looked at."""
        for word in self._words(text):
            yield from _split_punctuation(self._normalise(word))

    def _words(self, text: str) -> Iterator[Word]:
        chars: list[str] = []
        positions: list[int] = []
        for position, char in enumerate(text):
            if char in "\0\ufffd" or (char not in "\t\n\r" and unicodedata.category(char) in ("Cc", "Cf")):
                continue
            alone = self.split_cjk and char >= "\u3400" and _CJK.match(char)
            if (alone or char.isspace()) and chars:
                yield "".join(chars), positions
                chars, positions = [], []
            if alone:
                yield char, [position]
            elif not char.isspace():
                chars.append(char)
                positions.append(position)
        if chars:
            yield "".join(chars), positions

    def _normalise(self, word: Word) -> Word:
        """Returns the normalised word with the position of each of its characters.

        Positions are carried character by character, but the text is normalised as a whole: otherwise the final sigma
        and the order of combining marks would differ from the original. Both have the same length."""
        text, positions = word
        if self.lowercase:
            positions = [p for char, p in zip(text, positions, strict=True) for _ in char.lower()]
            text = text.lower()
        if self.strip_accents:
            positions = [p for char, p in zip(text, positions, strict=True) for _ in _without_accents(char)]
            text = _without_accents(text)
        return text, positions

    def _greedy(self, chars: str) -> list[tuple[int, int, int]]:
        """Returns (id, start, end) of the pieces, the longest match first; a word that is too long or has a part that
        no piece matches is [UNK] as a whole."""
        unknown = [(self.unk_id, 0, len(chars))]
        if len(chars) > MAX_WORD_LENGTH:
            return unknown
        found, start = [], 0
        while start < len(chars):
            prefix = self.continuation_prefix if start else ""
            for end in range(len(chars), start, -1):
                piece_id = self.vocab.get(prefix + chars[start:end])
                if piece_id is not None:
                    found.append((piece_id, start, end))
                    start = end
                    break
            else:
                return unknown
        return found


def _split_punctuation(word: Word) -> Iterator[Word]:
    text, positions = word
    start = 0
    for index, char in enumerate(text):
        if char in string.punctuation or unicodedata.category(char).startswith("P"):
            if index > start:
                yield text[start:index], positions[start:index]
            yield char, positions[index : index + 1]
            start = index + 1
    if start < len(text):
        yield text[start:], positions[start:]


def _without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
