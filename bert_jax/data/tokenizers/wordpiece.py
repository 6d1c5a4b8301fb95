"""WordPiece: the Rust tokenizer with a cache of words in front, or the original's rules."""

import json
import re
import string
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int32, Int64
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from bert_jax.config import UserError
from bert_jax.data.tokenizers.encoding import CONTINUATION, SPECIAL_TOKENS, Pieces, Tokenizer, special_id, to_json
from bert_jax.data.tokenizers.original_wordpiece import MAX_WORD_LENGTH, OriginalWordPiece
from bert_jax.data.tokenizers.vocabulary import may_hold_cjk, separate_cjk

_CACHE_WORDS = 1 << 17  # about 20 MB a process
_CACHED_LENGTH = 40  # bytes; longer "words" do not come back often
_PUNCTUATION = [(mark.encode(), f" {mark} ".encode()) for mark in string.punctuation]  # every one is a word of its own
_END = b"\xff"  # ends a text, as a word that no UTF-8 holds
_END_ID = -1


class WordPieceTokenizer(Tokenizer):
    """A WordPiece vocabulary; with `original=True` by the rules of google-research/bert, with the backend's
    switches."""

    def __init__(self, backend: tokenizers.Tokenizer, origin: str, original: bool = False):
        backend.no_truncation()
        backend.no_padding()
        self._backend, self._normalizer = backend, backend.normalizer
        rules = json.loads(backend.to_str())
        model, decoder = rules["model"], rules["decoder"] or {"type": "WordPiece"}
        if model["type"] != "WordPiece":
            remedy = "load a *.model file for SentencePiece"
            raise UserError(f"{origin}: a {model['type']} model, expected WordPiece: {remedy}")
        vocab = backend.get_vocab(with_added_tokens=True)
        tokens = sorted(vocab, key=vocab.__getitem__)
        if sorted(vocab.values()) != list(range(len(tokens))):
            largest = max(vocab.values())
            raise UserError(f"{origin}: {len(tokens)} tokens but ids up to {largest}: number them without holes")
        if model["unk_token"] not in model["vocab"]:  # the library would fail at the first unknown word
            raise UserError(f"{origin}: unk_token {model['unk_token']!r} is not in the model's vocabulary: add it")
        self.continuation_prefix = prefix = model["continuing_subword_prefix"]
        if decoder["type"] == "WordPiece" and decoder.get("prefix") != prefix:
            parts: Any = backend  # its properties have no setters in the stubs
            parts.decoder = decoders.WordPiece(prefix=prefix, cleanup=decoder.get("cleanup") is not False)
        del model["vocab"]
        options = [rules["normalizer"], rules["pre_tokenizer"], model, rules["added_tokens"], original]
        super().__init__(tokens, origin, options)
        self.original = original
        self._split_cjk = bool(getattr(self._normalizer, "handle_chinese_chars", False))
        self._lowercase = bool(getattr(self._normalizer, "lowercase", False))
        self._rules = self._original_rules() if original else None
        added = (token.content for token in backend.get_added_tokens_decoder().values())
        self._inseparable = ("Σ".encode(),) if original else tuple(token.encode() for token in added)
        self._first = {token: _as_bytes([index]) for token, index in self._ids.items()}
        self._next = {t.removeprefix(prefix): ids for t, ids in self._first.items() if t.startswith(prefix)}
        self._word_limit = MAX_WORD_LENGTH if original else model["max_input_chars_per_word"]
        self._unknown = self._first.get(self.token(self.unk_id) if original else model["unk_token"], b"")
        self._cache = _WordCache(self._encode_word) if original or _splits_at_spaces(backend) else None
        # Without a prefix nothing tells a continuing piece from a first one: then every piece counts as a word.
        self.is_continuation = np.array([bool(prefix) and token.startswith(prefix) for token in tokens])

    def encode_words(self, texts: Sequence[str]) -> list[list[int]]:
        if self._cache is None:
            return [ids for ids, _ in self.pieces(texts)]
        ids, lengths = self.encode_flat(texts)
        flat, ends = ids.tolist(), np.cumsum(lengths).tolist()
        return [flat[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]

    def encode_flat(self, texts: Sequence[str]) -> tuple[Int32[np.ndarray, " T"], Int64[np.ndarray, " N"]]:
        """A cache from word to ids, both as bytes, stands in front of the tokenizer: no id becomes a Python object.

        Exact because every rule of BERT's tokenizer stops at U+0020: cleaning, CJK spacing, lower-casing and accents
        work a character at a time (a space has combining class 0, so NFD moves nothing across it), and no special
        token holds a space. Tab, line feed and carriage return are spaces to every rule; other white space stays inside
        the "word" and is left to the tokenizer.
        """
        if self._cache is None:
            return super().encode_flat(texts)
        found = np.frombuffer(b"".join(map(self._cache.lookup(), self._words(texts))), np.int32)
        is_end = found == _END_ID
        return found[~is_end], np.diff(np.flatnonzero(is_end), prepend=-1) - 1

    def decode(self, ids: Iterable[int]) -> str:
        return self._backend.decode(self._shown(ids), skip_special_tokens=False)

    def files(self) -> dict[str, bytes]:
        names = zip(("pad", "unk", "cls", "sep", "mask"), self.special_ids, strict=True)
        options = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": getattr(self._normalizer, "lowercase", None),
            "strip_accents": getattr(self._normalizer, "strip_accents", None),
            "tokenize_chinese_chars": self._split_cjk,
            "original": self.original,
            **{f"{name}_token": self._tokens[index] for name, index in names},
        }
        return {
            "vocab.txt": "".join(f"{token}\n" for token in self._tokens).encode(),
            "tokenizer.json": self._backend.to_str(pretty=True).encode(),
            "tokenizer_config.json": to_json(options),
        }

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """Returns a copy of the Rust tokenizer behind this one."""
        return tokenizers.Tokenizer.from_str(self._backend.to_str())

    def split_words(self, texts: Sequence[str]) -> list[list[str]]:
        """Returns the normalised words of each text, before any vocabulary is looked at."""
        if self._rules is not None:
            return [[word for word, _ in self._rules.words(text)] for text in texts]
        clean, split = self._normalizer, self._backend.pre_tokenizer
        if clean is None or split is None:
            raise UserError("the tokenizer has no normalizer or no pre-tokenizer: it is not BERT's")
        return [[word for word, _ in split.pre_tokenize_str(clean.normalize_str(text))] for text in texts]

    def __reduce__(self):
        return WordPieceTokenizer, (self._backend, "a copy", self.original)  # the cache does not travel

    def pieces(self, texts: Sequence[str]) -> list[Pieces]:
        if self._rules is not None:
            return [self._rules.pieces(text) for text in texts]
        return [(e.ids, e.offsets) for e in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    def _words(self, texts: Sequence[str]) -> list[bytes]:
        """Returns the words of all texts, with `_END` after each text."""
        joined = b" \xff ".join([*map(str.encode, texts), b""])
        if self._split_cjk and may_hold_cjk(joined):
            joined = b" \xff ".join([*(separate_cjk(text).encode() for text in texts), b""])
        if any(token in joined for token in self._inseparable):
            joined = b"\xff".join([self._separate(text) for text in joined.split(b"\xff")])
        else:
            joined = self._separate(joined)
        controls = b"\x0b" in joined or b"\x0c" in joined  # white space to split(), not to the tokenizer
        return joined.split(b" ") if controls else joined.split()

    def _separate(self, text: bytes) -> bytes:
        """Does early, and so for fewer distinct words, what the tokenizer does anyway.

        Not for a text that holds a special token, nor in the original for a capital sigma: whether that is final
        depends on the letters behind the punctuation.
        """
        if any(token in text for token in self._inseparable):
            return text
        if self._lowercase:
            text = text.lower()  # ASCII only
        for mark, separated in _PUNCTUATION:
            text = text.replace(mark, separated)
        return text

    def _encode_word(self, encoded: bytes) -> bytes:
        word = encoded.decode()
        if encoded.isalnum() and len(word) <= min(_CACHED_LENGTH, self._word_limit):  # ASCII letters and digits
            return self._longest_first(word.lower() if self._lowercase else word)
        if self._rules is not None:
            return _as_bytes(self._rules.pieces(word)[0])
        return _as_bytes(self._backend.encode(word, add_special_tokens=False).ids)

    def _longest_first(self, word: str) -> bytes:
        """Applies WordPiece's rule to words that no other rule touches: twice as fast as a call into Rust."""
        vocab, found = self._first, b""
        while word:
            end = len(word)
            while (piece := vocab.get(word[:end])) is None:
                end -= 1
                if not end:
                    return self._unknown
            found += piece
            word, vocab = word[end:], self._next
        return found

    def _original_rules(self) -> OriginalWordPiece:
        normalizer = self._normalizer
        if not isinstance(normalizer, normalizers.BertNormalizer):
            raise UserError("the original's WordPiece needs a BertNormalizer: load vocab.txt instead of tokenizer.json")
        strip = self._lowercase if normalizer.strip_accents is None else bool(normalizer.strip_accents)
        switches = self._lowercase, strip, self._split_cjk
        return OriginalWordPiece(self._ids, self.unk_id, *switches, self.continuation_prefix)


class _WordCache:
    """Word (UTF-8) → its ids (int32) as bytes, made when asked for, of at most `_CACHE_WORDS` words.

    Threads share it without a lock. There are two generations: words that are asked for move into the young one; when
    it is full it becomes the old one by a single assignment, and the words of the old one that nobody asked for are
    forgotten. No dict is ever emptied, so a thread that holds an earlier generation still finds its words there.
    """

    def __init__(self, encode: Callable[[bytes], bytes]):
        self._encode = encode
        self._generations = _Words(self._missing), _Words(self._missing)

    def lookup(self) -> Callable[[bytes], bytes]:
        """Returns a function from word to ids that finds known words without running any Python code."""
        return self._generations[0].__getitem__

    def __len__(self) -> int:
        return sum(map(len, self._generations))

    def __contains__(self, word: bytes) -> bool:
        return any(word in words for words in self._generations)

    def _missing(self, word: bytes) -> bytes:
        young, old = self._generations
        ids = young.get(word, old.get(word))  # `young` may be newer than the generation that was asked
        if ids is None:
            ids = self._encode(word)
        if len(word) <= _CACHED_LENGTH:
            if len(young) >= _CACHE_WORDS // 2:
                young, old = _Words(self._missing), young
                self._generations = young, old
            young[word] = ids
        return ids


class _Words(dict[bytes, bytes]):
    """One generation of the cache. `_END` is in it from the start, since no tokenizer may see that byte."""

    def __init__(self, missing: Callable[[bytes], bytes]):
        super().__init__({_END: _as_bytes([_END_ID])})
        self._missing = missing

    def __missing__(self, word: bytes) -> bytes:
        return self._missing(word)


def make_wordpiece(
    tokens: list[str], origin: str, lowercase: bool, strip_accents: bool | None, split_cjk: bool, original: bool = False
) -> WordPieceTokenizer:
    """Returns a tokenizer of BERT's rules with a vocabulary in id order."""
    vocab = {token: index for index, token in enumerate(tokens)}
    unk, cls, sep = (tokens[special_id(vocab, name, origin)] for name in ("[UNK]", "[CLS]", "[SEP]"))
    model = models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100, continuing_subword_prefix=CONTINUATION)
    backend = tokenizers.Tokenizer(model)
    parts: Any = backend  # its properties have no setters in the stubs
    parts.normalizer = bert_normalizer(lowercase, strip_accents, split_cjk)
    parts.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    parts.post_processor = processors.BertProcessing((sep, vocab[sep]), (cls, vocab[cls]))
    parts.decoder = decoders.WordPiece(prefix=CONTINUATION, cleanup=True)
    backend.add_special_tokens([tokens[special_id(vocab, name, origin)] for name in SPECIAL_TOKENS])
    return WordPieceTokenizer(backend, origin, original)


def bert_normalizer(lowercase: bool, strip_accents: bool | None, split_cjk: bool) -> normalizers.BertNormalizer:
    return normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=split_cjk, strip_accents=strip_accents, lowercase=lowercase
    )


def _splits_at_spaces(backend: tokenizers.Tokenizer) -> bool:
    """Returns True if encoding a text is encoding its words one by one (see `encode_flat`), and separating or
    lower-casing a text cannot spell an added token."""
    plain = all(
        not (token.lstrip or token.rstrip or token.single_word or token.normalized or re.search(r"\s", token.content))
        and token.content.startswith(tuple(string.punctuation))
        for token in backend.get_added_tokens_decoder().values()
    )
    bert = isinstance(backend.normalizer, normalizers.BertNormalizer)
    return plain and bert and isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer)


def _as_bytes(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()
