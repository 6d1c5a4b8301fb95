"""Where a vocabulary comes from: learned from text, or the lines of a vocab.txt.

The same text gives the same WordPiece tokens each time, unlike with `tokenizers.WordPieceTrainer`, which numbers its
`##x` pieces in the order of a randomly seeded hash table and breaks ties by that number. Here a continuing character is
written as another code point, the plain BPE trainer learns the merges, and the names are translated back.
"""

import io
import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from bert_jax.config import UserError
from bert_jax.data.text.text_files import read_bytes
from bert_jax.data.tokenizers.encoding import CONTINUATION

_SHIFT = 0x80000  # planes 8 to 11 hold no character: x + _SHIFT stands for "##x"
_COVERAGE = 0.9999  # share of characters that the alphabet holds; at 5 a word ≤ 0.05 % of words become [UNK]
_MAX_ALPHABET_SHARE = 0.8  # of the vocabulary
_MAX_WORD = 100  # characters; longer words are [UNK] anyway
_REPEATS = 1000  # copies of a word in one sequence given to the trainer
_CJK = re.compile("([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")  # fewer than any tokenizer's own ranges
_CJK_LEADS = [bytes([byte]) for byte in (*range(0xE3, 0xEA), 0xEF)]  # first bytes of these characters in UTF-8
_SEPARATED = string.punctuation.encode()


def train_wordpiece(
    words: Counter[str], vocab_size: int, special_tokens: list[str], *, progress: bool = False
) -> list[str]:
    """Returns the tokens in id order, special tokens first; fewer than `vocab_size` if the text has no more pairs seen
    twice. `words` is what `count_words` returns, or its sum over the parts of a text."""
    if not words:
        raise UserError("no text to learn a vocabulary from: check data.files")
    firsts, nexts = _alphabet(words, vocab_size - len(special_tokens))
    kept = firsts | nexts
    spelled = [
        (word[0] + "".join([chr(ord(char) + _SHIFT) for char in word[1:]]), count)
        for word, count in sorted(words.items())
        if 1 < len(word) <= _MAX_WORD and kept.issuperset(word)
    ]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=progress,
        special_tokens=special_tokens,
        initial_alphabet=sorted(firsts) + [chr(ord(char) + _SHIFT) for char in sorted(nexts)],
    )
    parts = ((word, min(_REPEATS, count - done)) for word, count in spelled for done in range(0, count, _REPEATS))
    backend.train_from_iterator(((word + " ") * count for word, count in parts), trainer)
    vocab = backend.get_vocab()
    return [_piece_name(token) for token in sorted(vocab, key=vocab.__getitem__)]


def count_words(texts: Iterable[str], normalizer: normalizers.BertNormalizer) -> Counter[str]:
    """Returns the counts of the words that the encoder will see."""
    # Bytes are split at spaces and ASCII punctuation first (C speed), and only the distinct words go through the exact
    # normalizer. It treats words apart from each other, so all words with one count make one string.
    lower = string.ascii_uppercase.encode() if normalizer.lowercase else b""
    table = bytes.maketrans(_SEPARATED + lower, b" " * len(_SEPARATED) + lower.lower())
    raw: Counter[bytes] = Counter()
    marks = np.zeros(256, np.int64)
    for text in texts:
        encoded = text.encode("utf-8", "replace")
        if normalizer.handle_chinese_chars and may_hold_cjk(encoded):  # else whole sentences would count as words
            encoded = separate_cjk(text).encode("utf-8", "replace")
        raw.update(encoded.translate(table).split())
        marks += np.bincount(np.frombuffer(encoded, np.uint8), minlength=256)
    words: Counter[str] = Counter({chr(mark): int(marks[mark]) for mark in _SEPARATED})
    groups: dict[int, list[str]] = defaultdict(list)
    for word, count in raw.items():
        groups[count].append(word.decode("utf-8", "replace"))
    split = pre_tokenizers.BertPreTokenizer()
    for count, group in groups.items():
        joined = " ".join(group)
        if not (joined.isascii() and joined.isprintable()):
            group = [word for word, _ in split.pre_tokenize_str(normalizer.normalize_str(joined))]
        for word in group:
            words[word] += count
    return +words


def train_sentencepiece(
    texts: Iterator[str], vocab_size: int, kind: str, special_tokens: list[str], *, lowercase: bool
) -> bytes:
    """Returns a serialized model of `kind` unigram | bpe. [MASK] can be typed in text; the other special tokens cannot.

    Raises UserError if the text has too little variety, with the size that is possible (BPE shrinks by itself).
    """
    pad, unk, cls, sep, mask = special_tokens
    lines = [line for text in texts for line in text.split("\n") if line.strip()]
    if not lines:
        raise UserError("no text to learn a vocabulary from: check data.files")
    options: dict[str, Any] = {
        "model_type": kind,
        "hard_vocab_limit": False,
        "character_coverage": _COVERAGE,
        "normalization_rule_name": "nmt_nfkc_cf" if lowercase else "nmt_nfkc",
        "max_sentence_length": 1 << 16,  # bytes; longer lines would be left out
        "num_threads": 4,  # fixed: each thread sums its share of the counts
        "minloglevel": 2,
        "user_defined_symbols": [mask],
        **{"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3},
        **{"pad_piece": pad, "unk_piece": unk, "bos_piece": cls, "eos_piece": sep},
    }

    def train(size: int) -> bytes:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=size, **options
        )
        return model.getvalue()

    try:
        return train(vocab_size)
    except RuntimeError as error:
        limit = re.search(r"value <= (\d+)", str(error))
        if limit is None:
            reason = " ".join(str(error).split())
            raise UserError(f"data.tokenizer {kind}: cannot learn from this text: {reason}") from error
        return train(int(limit[1]))


def read_vocab_file(path: Path) -> list[str]:
    """Returns the lines, which are tokens in id order. Raises UserError for a token that occurs twice."""
    try:
        lines = read_bytes(path).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}: give a vocab.txt, one token a line") from error
    tokens = [line.rstrip("\r") for line in lines]
    while tokens and not tokens[-1]:
        tokens.pop()
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens, 1):
        first = seen.setdefault(token, number)
        if first != number:
            raise UserError(f"{path}: token {token!r} on line {first} and on line {number}: remove one of them")
    return tokens


def separate_cjk(text: str) -> str:
    """Puts spaces around common CJK characters, which the normalizer would do anyway, at C speed."""
    return text if text.isascii() else " ".join(_CJK.split(text))


def may_hold_cjk(encoded: bytes) -> bool:
    """Returns False if there are no common CJK characters, as in nearly all text in alphabets."""
    return any(byte in encoded for byte in _CJK_LEADS)


def _alphabet(words: Counter[str], room: int) -> tuple[set[str], set[str]]:
    """Returns the characters that may begin a word and those that may continue one."""
    counts: Counter[str] = Counter()
    continuing: set[str] = set()
    for word, count in words.items():
        for char in word:
            counts[char] += count
        continuing.update(word[1:])
    firsts: set[str] = set()
    wanted, entries = _COVERAGE * counts.total(), 0
    for char, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        entries += 2 if char in continuing else 1
        if wanted <= 0 or entries > _MAX_ALPHABET_SHARE * room or ord(char) >= _SHIFT // 2:
            break
        firsts.add(char)
        wanted -= count
    return firsts, firsts & continuing


def _piece_name(token: str) -> str:
    plain = "".join([chr(ord(char) - _SHIFT) if ord(char) >= _SHIFT else char for char in token])
    return CONTINUATION + plain if ord(token[0]) >= _SHIFT else plain
