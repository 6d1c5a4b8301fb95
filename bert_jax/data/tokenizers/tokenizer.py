"""One interface over WordPiece (`tokenizers`) and SentencePiece (`sentencepiece`): train and load.

WordPiece follows the Rust tokenizer of Hugging Face, with `original=True` google-research/bert. Vocabularies trained
here number their special tokens [PAD] [UNK] [CLS] [SEP] [MASK] = 0 … 4; loaded ones keep theirs.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from ml_collections import ConfigDict
from tokenizers import normalizers

from bert_jax.config import Json, UserError
from bert_jax.data.text.corpus import Corpus
from bert_jax.data.text.json_files import JsonObject, parse_object, read_object
from bert_jax.data.text.text_files import read_bytes
from bert_jax.data.tokenizers.encoding import SPECIAL_TOKENS, Pieces, Tokenizer, to_json
from bert_jax.data.tokenizers.rows import Span
from bert_jax.data.tokenizers.vocabulary import count_words, read_vocab_file, train_sentencepiece, train_wordpiece
from bert_jax.data.tokenizers.wordpiece import WordPieceTokenizer, bert_normalizer, make_wordpiece

FILES = ("spm.model", "tokenizer.json", "tokenizer_config.json", "vocab.txt")  # of `Tokenizer.files`

_log = logging.getLogger(__name__)
_ADDED = ("single_word", "lstrip", "rstrip", "normalized", "special")  # what an added token may say besides its content
_SWITCHES = {  # of BERT's normalizer: tokenizer.json's name → tokenizer_config.json's
    "lowercase": "do_lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "tokenize_chinese_chars",
}
_REMEDY = "get the tokenizer's files again"
_SWITCH = (bool, type(None))
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes of Transformers that take tokenizer.json as it is


class SentencePieceTokenizer(Tokenizer):
    """A unigram or BPE model, in which a piece that begins a word starts with ▁."""

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
        return self._processor.decode(self._shown(ids))

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
    """Loads a file (vocab.txt, tokenizer.json, *.model) or a folder (written by `save`, or by Hugging Face).

    Where lower-casing, accents and CJK splitting come from: 1. the folder's tokenizer_config.json (as in Transformers),
    2. tokenizer.json, 3. `data`, 4. uncased. Tokens added to the vocabulary are found wherever Transformers puts them.
    Raises UserError for what is missing, malformed or lacks a special token.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, data)
    if not path.exists():
        raise UserError(f"vocabulary {path} does not exist: name a vocab.txt, tokenizer.json or *.model")
    if path.suffix == ".model":
        return SentencePieceTokenizer(read_bytes(path), str(path))
    if path.suffix == ".json":
        return WordPieceTokenizer(_backend_of(read_bytes(path), path), str(path))
    options = (True, None, True) if data is None else (data.lowercase, data.strip_accents, data.split_cjk)
    return make_wordpiece(read_vocab_file(path), str(path), *options)


def tokenizer_from_files(files: Mapping[str, bytes], origin: str) -> Tokenizer:
    """Returns the tokenizer whose `files()` these are, without touching a disk. Raises UserError naming `origin`."""
    if "spm.model" in files:
        return SentencePieceTokenizer(files["spm.model"], origin)
    if not {"tokenizer.json", "tokenizer_config.json"} <= files.keys():
        raise UserError(f"{origin}: neither spm.model nor tokenizer.json with tokenizer_config.json is among its files")
    options = parse_object(files["tokenizer_config.json"], f"{origin}: tokenizer_config.json", _REMEDY)
    original = bool(options.get("original", _SWITCH, default=False))
    return WordPieceTokenizer(_backend_of(files["tokenizer.json"], origin), origin, original)


def train_tokenizer(data: ConfigDict, texts: Iterator[str], *, progress: bool = False) -> Tokenizer:
    """Learns data.vocab_size tokens from `texts`: a WordPiece, unigram or BPE vocabulary as data.tokenizer says."""
    if data.tokenizer == "wordpiece":
        return tokenizer_of_words(data, count_words(texts, normalizer_from_config(data)), progress=progress)
    if data.strip_accents:  # unigram or bpe, the other choices of the option
        raise UserError(f"data.strip_accents=True is not offered by data.tokenizer={data.tokenizer}: use wordpiece")
    model = train_sentencepiece(texts, data.vocab_size, data.tokenizer, SPECIAL_TOKENS, lowercase=data.lowercase)
    return _with_its_size_checked(SentencePieceTokenizer(model, "the new vocabulary"), data)


def tokenizer_of_words(data: ConfigDict, words: Counter[str], *, progress: bool = False) -> Tokenizer:
    """Learns data.vocab_size WordPiece tokens from words, counted by `count_words` with `normalizer_from_config`."""
    tokens = train_wordpiece(words, data.vocab_size, SPECIAL_TOKENS, progress=progress)
    switches = data.lowercase, data.strip_accents, data.split_cjk
    return _with_its_size_checked(make_wordpiece(tokens, "the new vocabulary", *switches), data)


def normalizer_from_config(data: ConfigDict) -> normalizers.BertNormalizer:
    return bert_normalizer(data.lowercase, data.strip_accents, data.split_cjk)


def tokenizer_from_config(data: ConfigDict, corpus: Corpus) -> Tokenizer:
    """Loads data.vocab_file, or trains on the corpus as `tokenizer_from_texts` does."""
    if data.vocab_file:
        return load_tokenizer(data.vocab_file, data)
    return tokenizer_from_texts(data, (document.text for document in corpus.documents()))


def tokenizer_from_texts(data: ConfigDict, texts: Iterable[str]) -> Tokenizer:
    """Trains on at most data.vocab_sample_megabytes, spread evenly over the texts."""
    return train_tokenizer(data, iter(_sample(texts, data.vocab_sample_megabytes * 1_000_000)))


def _with_its_size_checked(made: Tokenizer, data: ConfigDict) -> Tokenizer:
    if made.vocab_size < data.vocab_size:
        _log.warning("The corpus gave %d tokens, fewer than data.vocab_size=%d.", made.vocab_size, data.vocab_size)
    return made


def _sample(texts: Iterable[str], limit: int) -> list[str]:
    """Returns every k-th text. Whenever their bytes pass the limit, k doubles and every other one is dropped."""
    kept: list[str] = []
    size, every = 0, 1
    for index, text in enumerate(texts):
        if index % every:
            continue
        kept.append(text[:limit])
        size += len(kept[-1].encode("utf-8", "replace"))
        while size > limit and len(kept) > 1:
            kept, every = kept[::2], every * 2
            size = sum(len(text.encode("utf-8", "replace")) for text in kept)
    return kept


def _load_folder(folder: Path, data: ConfigDict | None) -> Tokenizer:
    path, whole, vocab = (folder / name for name in ("tokenizer_config.json", "tokenizer.json", "vocab.txt"))
    options = _object_in(path)
    if whole.exists():
        backend = _backend_of(read_bytes(whole), whole)
        _set_switches(backend, options)
    elif vocab.exists() and options.content:
        lowercase, strip_accents, split_cjk = (options.get(name, _SWITCH, default=None) for name in _SWITCHES.values())
        switches = lowercase is not False, strip_accents, split_cjk is not False
        backend = make_wordpiece(read_vocab_file(vocab), str(folder), *switches).backend
    else:
        files = [vocab] if vocab.exists() else sorted(folder.glob("*.model"))
        if not files:
            raise UserError(f"{folder}: no tokenizer.json, vocab.txt or *.model in this folder: name another one")
        return load_tokenizer(files[0], data)
    _add_tokens(backend, folder, options)
    return WordPieceTokenizer(backend, str(folder), bool(options.get("original", _SWITCH, default=False)))


def _object_in(path: Path) -> JsonObject:
    return read_object(path, _REMEDY) if path.exists() else JsonObject({}, path, _REMEDY)


def _backend_of(content: bytes, origin: Path | str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except BaseException as error:  # the Rust parser raises Exception itself, and a panic is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise UserError(f"{origin}: not a tokenizer.json ({' '.join(str(error).split())}): {_REMEDY}") from None


def _set_switches(backend: tokenizers.Tokenizer, options: JsonObject) -> None:
    """Lets tokenizer_config.json decide, as Transformers does for a BertTokenizer, whatever tokenizer.json says."""
    normalizer = backend.normalizer
    kind = options.get("tokenizer_class", (str, type(None)), default=None)
    if kind in _GENERIC or not isinstance(normalizer, normalizers.BertNormalizer):
        return
    for ours, theirs in _SWITCHES.items():
        value = options.get(theirs, _SWITCH, default=None)
        if theirs not in options or value == getattr(normalizer, ours):
            continue
        if value is None and ours != "strip_accents":  # null is a value of strip_accents alone: as lower-casing does
            continue
        _log.warning("%s in tokenizer_config.json overrides tokenizer.json: %s", theirs, value)
        setattr(normalizer, ours, value)
    parts: Any = backend  # its properties have no setters in the stubs
    parts.normalizer = normalizer


def _add_tokens(backend: tokenizers.Tokenizer, folder: Path, options: JsonObject) -> None:
    """Adds the tokens of added_tokens.json and of tokenizer_config.json: they are never split."""
    listed = _object_in(folder / "added_tokens.json")
    found: dict[int, Json] = {listed.get(token, int): {"content": token} for token in listed.content}
    content: dict[str, Any] = options.get("added_tokens_decoder", (dict, type(None)), default=None) or {}
    decoder = JsonObject(content, options.origin, _REMEDY)
    for number in content:
        if not number.isdecimal() or len(number) > 9:
            options.refuse("added_tokens_decoder", number, "token ids as keys")
        token = decoder.object(number)
        flags = {name: token.get(name, bool) for name in _ADDED if name in token}
        found[int(number)] = {"content": token.get("content", str), **flags}
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for number, token in sorted(found.items()):
        if (text := token["content"]) not in known:
            backend.add_tokens([tokenizers.AddedToken(**token)])
            if (given := backend.token_to_id(text)) != number:
                numbers = f"number {number}, but the vocabulary gives it {given}"
                raise UserError(f"{folder}: added token {text!r} has {numbers}: {_REMEDY}")


def _without_spaces(text: str, begin: int, end: int) -> Span:
    """Returns the span without the space before a word, which SentencePiece counts to its first piece."""
    return end - len(text[begin:end].lstrip()), end
