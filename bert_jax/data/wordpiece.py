"""WordPiece: the Rust tokenizer with a cache of words in front, or the original's rules."""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from bert_jax.config import UserError
from bert_jax.data.encoding import SPECIAL_TOKENS, Span, Tokenizer, special_id, write_json
from bert_jax.data.original_wordpiece import OriginalWordPiece
from bert_jax.data.vocabulary import separate_cjk

_CACHE_WORDS = 1 << 18  # about 60 MB a process
_CACHED_LENGTH = 40  # characters; longer "words" do not come back often
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")  # ASCII; every one is a word of its own


class WordPieceTokenizer(Tokenizer):
    """`original=True`: the rules of google-research/bert, with the switches of the backend's BertNormalizer."""

    def __init__(self, backend: tokenizers.Tokenizer, origin: str, original: bool = False):
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        rules = json.loads(backend.to_str())
        model = rules["model"]
        if model["type"] != "WordPiece":
            raise UserError(
                f"{origin}: a {model['type']} model, expected WordPiece: load a *.model file for SentencePiece"
            )
        vocab = backend.get_vocab(with_added_tokens=True)
        tokens = sorted(vocab, key=vocab.__getitem__)
        if tokens and vocab[tokens[-1]] != len(tokens) - 1:
            raise UserError(
                f"{origin}: {len(tokens)} tokens but ids up to {vocab[tokens[-1]]}: number them without holes"
            )
        del model["vocab"]
        options = [rules["normalizer"], rules["pre_tokenizer"], model, rules["added_tokens"], original]
        super().__init__(tokens, origin, options)
        self.original = original
        self._normalizer = backend.normalizer
        self._rules = self._original_rules() if original else None
        self._cache: dict[str, tuple[int, ...]] | None = {} if original or _splits_at_spaces(backend) else None
        self._split_cjk = bool(getattr(self._normalizer, "handle_chinese_chars", False))
        self._lowercase = bool(getattr(self._normalizer, "lowercase", False))
        added = (token.content for token in backend.get_added_tokens_decoder().values())
        self._inseparable = ("Σ",) if original else tuple(added)
        self.is_continuation = np.array([token.startswith("##") for token in tokens])

    def encode_words(self, texts: Sequence[str]) -> list[list[int]]:
        """A cache from word to ids stands in front of the tokenizer.

        Exact because every rule of BERT's tokenizer stops at U+0020: cleaning, CJK spacing, lower-casing and accents
        work a character at a time (a space has combining class 0, so NFD moves nothing across it), and no special
        token holds a space. Other white space stays inside the "word" and is left to the tokenizer.
        """
        cache = self._cache
        if cache is None:
            return [ids for ids, _ in self._pieces(texts)]
        rows: list[list[int] | None] = []
        waiting: list[tuple[int, list[str]]] = []
        find, flatten = cache.__getitem__, chain.from_iterable
        for text in texts:
            words = self._separate(text).split(" ")
            try:
                rows.append(list(flatten(map(find, words))))
            except KeyError:
                waiting.append((len(rows), words))
                rows.append(None)
        if waiting:
            missing = list(dict.fromkeys(word for _, words in waiting for word in words if word not in cache))
            found = dict(zip(missing, self._encode_missing(missing), strict=True))
            for index, words in waiting:
                rows[index] = list(flatten(found[word] if word in found else find(word) for word in words))
            self._remember(found)
        return rows  # pyright: ignore[reportReturnType]

    def decode(self, ids: Iterable[int]) -> str:
        hidden = (self.pad_id, self.cls_id, self.sep_id)
        return self._backend.decode([i for i in map(int, ids) if i not in hidden], skip_special_tokens=False)

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in self._tokens), "utf-8", newline="\n")
        self._backend.save(str(directory / "tokenizer.json"))
        names = zip(("pad", "unk", "cls", "sep", "mask"), self.special_ids, strict=True)
        options = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": getattr(self._normalizer, "lowercase", None),
            "strip_accents": getattr(self._normalizer, "strip_accents", None),
            "tokenize_chinese_chars": self._split_cjk,
            "original": self.original,
            **{f"{name}_token": self._tokens[index] for name, index in names},
        }
        write_json(directory / "tokenizer_config.json", options)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None if self._cache is None else {}}  # the cache does not travel

    def _pieces(self, texts: Sequence[str]) -> list[tuple[list[int], list[Span]]]:
        if self._rules is not None:
            return [self._rules.pieces(text) for text in texts]
        return [(e.ids, e.offsets) for e in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    def _separate(self, text: str) -> str:
        """Does early, and so for fewer distinct words, what the tokenizer does anyway.

        Not for a text that holds a special token, nor in the original for a capital sigma: whether that is final
        depends on the letters behind the punctuation.
        """
        if self._split_cjk:
            text = separate_cjk(text)
        if any(token in text for token in self._inseparable):
            return text
        if self._lowercase and text.isascii():
            text = text.lower()
        return " ".join(_PUNCTUATION.split(text))

    def _encode_missing(self, words: list[str]) -> list[tuple[int, ...]]:
        if self._rules is not None:
            return [tuple(self._rules.pieces(word)[0]) for word in words]
        return [tuple(e.ids) for e in self._backend.encode_batch_fast(words, add_special_tokens=False)]

    def _remember(self, found: dict[str, tuple[int, ...]]) -> None:
        assert self._cache is not None
        if len(self._cache) + len(found) > _CACHE_WORDS:  # keep the words met first: the frequent ones
            self._cache = dict(list(self._cache.items())[: _CACHE_WORDS // 2])
            found = dict(list(found.items())[: _CACHE_WORDS // 2])
        self._cache.update((word, ids) for word, ids in found.items() if len(word) <= _CACHED_LENGTH)

    def _original_rules(self) -> OriginalWordPiece:
        normalizer = self._normalizer
        if not isinstance(normalizer, normalizers.BertNormalizer):
            raise UserError("the original's WordPiece needs a BertNormalizer: load vocab.txt instead of tokenizer.json")
        lowercase = bool(normalizer.lowercase)
        strip = lowercase if normalizer.strip_accents is None else bool(normalizer.strip_accents)
        return OriginalWordPiece(self._ids, self.unk_id, lowercase, strip, bool(normalizer.handle_chinese_chars))


def make_wordpiece(
    tokens: list[str],
    origin: str,
    lowercase: bool,
    strip_accents: bool | None,
    split_cjk: bool,
    original: bool = False,
) -> WordPieceTokenizer:
    vocab = {token: index for index, token in enumerate(tokens)}
    unk, cls, sep = (tokens[special_id(vocab, name, origin)] for name in ("[UNK]", "[CLS]", "[SEP]"))
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100))
    parts: Any = backend  # its properties have no setters in the stubs
    parts.normalizer = bert_normalizer(lowercase, strip_accents, split_cjk)
    parts.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    parts.post_processor = processors.BertProcessing((sep, vocab[sep]), (cls, vocab[cls]))
    parts.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    backend.add_special_tokens([tokens[special_id(vocab, name, origin)] for name in SPECIAL_TOKENS])
    return WordPieceTokenizer(backend, origin, original)


def bert_normalizer(lowercase: bool, strip_accents: bool | None, split_cjk: bool) -> normalizers.BertNormalizer:
    return normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=split_cjk, strip_accents=strip_accents, lowercase=lowercase
    )


def _splits_at_spaces(backend: tokenizers.Tokenizer) -> bool:
    """Whether encoding a text is encoding its words: see `encode_words`."""
    plain = all(
        not (token.lstrip or token.rstrip or token.single_word or token.normalized or re.search(r"\s", token.content))
        and _PUNCTUATION.match(token.content)  # so that separating and lower-casing a text cannot spell the token
        for token in backend.get_added_tokens_decoder().values()
    )
    bert = isinstance(backend.normalizer, normalizers.BertNormalizer)
    return plain and bert and isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
