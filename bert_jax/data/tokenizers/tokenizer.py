"""One interface over WordPiece (`tokenizers`) and SentencePiece (`sentencepiece`): train, load, save, encode, decode.

WordPiece follows the Rust tokenizer of Hugging Face (words over 100 characters are [UNK], "[MASK]" in raw text is the
special token); `original=True` follows google-research/bert instead. Vocabularies trained here number their special
tokens [PAD] [UNK] [CLS] [SEP] [MASK] = 0 … 4; loaded ones keep theirs.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from ml_collections import ConfigDict
from tokenizers import normalizers

from bert_jax.config import UserError
from bert_jax.data.text.corpus import Corpus
from bert_jax.data.tokenizers.encoding import SPECIAL_TOKENS, Encoding, Pieces, Tokenizer, to_json
from bert_jax.data.tokenizers.rows import Span
from bert_jax.data.tokenizers.vocabulary import read_vocab_file, train_sentencepiece, train_wordpiece
from bert_jax.data.tokenizers.wordpiece import WordPieceTokenizer, bert_normalizer, make_wordpiece

__all__ = [
    "FILES",
    "Encoding",
    "SentencePieceTokenizer",
    "Tokenizer",
    "WordPieceTokenizer",
    "load_tokenizer",
    "tokenizer_from_config",
    "tokenizer_from_files",
    "train_tokenizer",
]

FILES = ("spm.model", "tokenizer.json", "tokenizer_config.json", "vocab.txt")  # of `Tokenizer.files`

_log = logging.getLogger(__name__)
_ADDED = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")  # fields of an added token
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes of Transformers that take tokenizer.json as it is


class SentencePieceTokenizer(Tokenizer):
    """Unigram or BPE; a piece that begins a word starts with ▁."""

    def __init__(self, model: bytes, origin: str):
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(f"{origin}: not a SentencePiece model, {len(model):,} bytes: is it whole?") from error
        tokens = [self._processor.id_to_piece(i) for i in range(len(self._processor))]
        super().__init__(tokens, origin, hashlib.blake2b(model, digest_size=16).hexdigest())
        begins = [token.startswith("▁") or index in self.special_ids for index, token in enumerate(tokens)]
        self.is_continuation = ~np.array(begins)

    def encode_words(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.encode(list(texts), out_type=int, num_threads=1)

    def decode(self, ids: Iterable[int]) -> str:
        hidden = (self.pad_id, self.cls_id, self.sep_id)
        return self._processor.decode([i for i in map(int, ids) if i not in hidden])

    def files(self) -> dict[str, bytes]:
        return {"spm.model": self._model, "tokenizer_config.json": to_json({"tokenizer_class": "SentencePiece"})}

    def __getstate__(self) -> bytes:
        return self._model

    def __setstate__(self, model: bytes) -> None:
        self.__init__(model, "spm.model")

    def pieces(self, texts: Sequence[str]) -> list[Pieces]:
        found = self._processor.encode(list(texts), return_type="offset_mapping", return_bytes=False)
        rows = zip(texts, found, strict=True)
        return [(row["ids"], [_without_spaces(text, *span) for span in row["offsets"]]) for text, row in rows]


def load_tokenizer(path: str | Path, data: ConfigDict | None = None) -> Tokenizer:
    """From a file (vocab.txt, tokenizer.json, *.model) or a folder (written by `save`, or a Hugging Face one).

    Where lower-casing, accents and CJK splitting come from: 1. the folder's tokenizer_config.json (as in Transformers),
    2. tokenizer.json, 3. `data`, 4. uncased. Tokens added to the vocabulary are found wherever Transformers puts them.
    Raises UserError for what is missing, malformed or lacks a special token.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, data)
    if not path.is_file():
        raise UserError(f"vocabulary {path} does not exist: name a vocab.txt, tokenizer.json or *.model")
    if path.suffix == ".model":
        return SentencePieceTokenizer(path.read_bytes(), str(path))
    if path.suffix == ".json":
        return WordPieceTokenizer(_read_backend(path), str(path))
    options = (True, None, True) if data is None else (data.lowercase, data.strip_accents, data.split_cjk)
    return make_wordpiece(read_vocab_file(path), str(path), *options)


def tokenizer_from_files(files: Mapping[str, bytes], origin: str) -> Tokenizer:
    """Returns the tokenizer whose `files()` these are, without touching a disk. Raises UserError naming `origin`."""
    if "spm.model" in files:
        return SentencePieceTokenizer(files["spm.model"], origin)
    if not {"tokenizer.json", "tokenizer_config.json"} <= files.keys():
        raise UserError(f"{origin}: neither spm.model nor tokenizer.json with tokenizer_config.json is among its files")
    try:
        options = json.loads(files["tokenizer_config.json"])
        backend = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"])
    except Exception as error:  # the Rust parser raises nothing narrower
        raise UserError(f"{origin}: {' '.join(str(error).split())}") from error
    return WordPieceTokenizer(backend, origin, isinstance(options, dict) and bool(options.get("original")))


def train_tokenizer(data: ConfigDict, texts: Iterator[str], *, progress: bool = False) -> Tokenizer:
    """Learns data.vocab_size tokens from `texts`: a WordPiece, unigram or BPE vocabulary as data.tokenizer says."""
    if data.tokenizer == "wordpiece":
        normalizer = bert_normalizer(data.lowercase, data.strip_accents, data.split_cjk)
        tokens = train_wordpiece(texts, data.vocab_size, SPECIAL_TOKENS, normalizer, progress=progress)
        made = make_wordpiece(tokens, "the new vocabulary", data.lowercase, data.strip_accents, data.split_cjk)
    elif data.tokenizer in ("unigram", "bpe"):
        if data.strip_accents:
            raise UserError(f"data.strip_accents=True is not offered by data.tokenizer={data.tokenizer}: use wordpiece")
        model = train_sentencepiece(texts, data.vocab_size, data.tokenizer, SPECIAL_TOKENS, lowercase=data.lowercase)
        made = SentencePieceTokenizer(model, "the new vocabulary")
    else:
        raise UserError(f"data.tokenizer={data.tokenizer!r}: choose wordpiece, unigram or bpe")
    if made.vocab_size < data.vocab_size:
        _log.warning("The corpus gave %d tokens, fewer than data.vocab_size=%d.", made.vocab_size, data.vocab_size)
    return made


def tokenizer_from_config(data: ConfigDict, corpus: Corpus) -> Tokenizer:
    """Loads data.vocab_file, or trains on at most data.vocab_sample_megabytes spread evenly over the corpus."""
    if data.vocab_file:
        return load_tokenizer(data.vocab_file, data)
    return train_tokenizer(data, iter(_sample(corpus, data.vocab_sample_megabytes * 1_000_000)))


def _sample(corpus: Corpus, limit: int) -> list[str]:
    """Every k-th document; k doubles, and every other one kept so far goes, whenever the limit (bytes) is passed."""
    kept: list[str] = []
    size, every = 0, 1
    for index, document in enumerate(corpus.documents()):
        if index % every:
            continue
        kept.append(document.text[:limit])
        size += len(kept[-1].encode("utf-8", "replace"))
        while size > limit and len(kept) > 1:
            kept, every = kept[::2], every * 2
            size = sum(len(text.encode("utf-8", "replace")) for text in kept)
    return kept


def _load_folder(folder: Path, data: ConfigDict | None) -> Tokenizer:
    options = _read_json(folder / "tokenizer_config.json")
    original = bool(options.get("original"))
    models_found = sorted(folder.glob("*.model"))
    if (folder / "tokenizer.json").is_file():
        backend = _read_backend(folder / "tokenizer.json")
        _set_switches(backend, options)
    elif (folder / "vocab.txt").is_file() and options:
        switches = (
            options.get("do_lower_case", True),
            options.get("strip_accents"),
            options.get("tokenize_chinese_chars", True),
        )
        tokens = read_vocab_file(folder / "vocab.txt")
        backend = make_wordpiece(tokens, str(folder), *switches).backend
    elif (folder / "vocab.txt").is_file():
        return load_tokenizer(folder / "vocab.txt", data)
    elif models_found:
        return load_tokenizer(models_found[0])
    else:
        raise UserError(f"{folder}: no tokenizer.json, vocab.txt or *.model in this folder")
    _add_tokens(backend, folder, options)
    return WordPieceTokenizer(backend, str(folder), original)


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust parser raises nothing narrower
        raise UserError(f"{path}: not a tokenizer.json: {' '.join(str(error).split())}") from error


def _read_json(path: Path) -> dict[str, Any]:
    """{} if there is no such file."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error


def _set_switches(backend: tokenizers.Tokenizer, options: dict[str, Any]) -> None:
    """Transformers makes the normalizer of a BertTokenizer anew, whatever tokenizer.json says."""
    normalizer = backend.normalizer
    if options.get("tokenizer_class") in _GENERIC or not isinstance(normalizer, normalizers.BertNormalizer):
        return
    for switch, theirs in (
        ("lowercase", "do_lower_case"),
        ("strip_accents", "strip_accents"),
        ("handle_chinese_chars", "tokenize_chinese_chars"),
    ):
        if theirs in options and options[theirs] != getattr(normalizer, switch):
            if options[theirs] is None and switch != "strip_accents":
                continue
            _log.warning("%s in tokenizer_config.json overrides tokenizer.json: %s", theirs, options[theirs])
            setattr(normalizer, switch, options[theirs])
    parts: Any = backend  # its properties have no setters in the stubs
    parts.normalizer = normalizer


def _add_tokens(backend: tokenizers.Tokenizer, folder: Path, options: dict[str, Any]) -> None:
    """Those of added_tokens.json and of tokenizer_config.json: never split, even where the vocabulary has them."""
    listed = _read_json(folder / "added_tokens.json")
    found: dict[int, dict[str, Any]] = {int(number): {"content": token} for token, number in listed.items()}
    found |= {int(number): token for number, token in options.get("added_tokens_decoder", {}).items()}
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for number, token in sorted(found.items()):
        content = token["content"]
        if content not in known:
            backend.add_tokens([tokenizers.AddedToken(**{key: token[key] for key in _ADDED if key in token})])
            if backend.token_to_id(content) != number:
                given = backend.token_to_id(content)
                raise UserError(f"{folder}: added token {content!r} has number {number}, but {given} is the next")


def _without_spaces(text: str, begin: int, end: int) -> Span:
    """SentencePiece counts the space before a word to its first piece."""
    while begin < end and text[begin].isspace():
        begin += 1
    return begin, end
