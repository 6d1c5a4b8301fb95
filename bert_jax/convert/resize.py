"""New words and more positions for a trained model.

A new word starts as the mean of the pieces that it was split into before: for a text with it, the model's input is then
close to what it was, and further training has the least to correct.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import tokenizers

from bert_jax.config import UserError
from bert_jax.convert.mapping import Arrays
from bert_jax.data.text.text_files import read_bytes
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.data.tokenizers.wordpiece import WordPieceTokenizer
from bert_jax.models.config import BertConfig
from bert_jax.sharding import TABLES

_HEAD_COLUMNS = re.compile(r"attention/(query|key|value)/(kernel|bias)$")
_HEAD_ROWS = re.compile(r"attention/output/kernel$")
SLOT = re.compile(r"\[unused\d+\]$")  # left free in published vocabularies


def read_words(path: Path) -> list[str]:
    """Returns one word per line, in order, without empty lines. Raises UserError."""
    try:
        lines = read_bytes(path, "give a file with one word per line").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}: give one word a line") from None
    for number, line in enumerate(lines, 1):
        if len(line.split()) > 1:
            raise UserError(f"{path}:{number}: '{line.strip()}' has white space in it: give one word a line")
    words = [line.strip() for line in lines if line.strip()]
    if not words:
        raise UserError(f"{path} has no words: give one a line")
    return words


def extend_vocabulary(
    tokenizer: Tokenizer, parameters: Arrays, words: list[str]
) -> tuple[WordPieceTokenizer, Arrays, list[str]]:
    """Returns tokenizer and parameters that know each of `words` as one token, and what was done, for the report.

    The [unusedN] slots of the vocabulary are taken first, the rest is appended. A word that the tokenizer takes apart
    at punctuation or between CJK characters becomes an added token, matched before anything is split, as a whole word.
    A longer word that begins with a new one may be split otherwise than before; any other text is not.
    Raises UserError for a tokenizer that is not WordPiece, and for a word that it cannot hold as one token.
    """
    if not isinstance(tokenizer, WordPieceTokenizer):
        raise UserError("--extend_vocab: the tokenizer is SentencePiece; only a WordPiece vocabulary can be extended")
    plain, added, notes = _sort_out(tokenizer, words)
    new = [*plain, *added]
    slots = [i for i in range(tokenizer.vocab_size) if SLOT.match(tokenizer.token(i))][: len(new)]
    ids = [*slots, *range(tokenizer.vocab_size, tokenizer.vocab_size + len(new) - len(slots))]
    extended = _with_words(tokenizer, dict(zip(new, ids, strict=True)), added)
    given = list((plain | added).values())
    for word, number, found in zip(given, ids, extended.encode_words(given), strict=True):
        if found != [number]:
            raise UserError(f"--extend_vocab: '{word}' cannot be held as one token by this tokenizer; leave it out")
    pieces = tokenizer.encode_words(given)
    notes.insert(0, f"{len(new)} new words: {len(slots)} in [unusedN] slots, {len(new) - len(slots)} appended")
    if added:
        notes.append(f"{len(added)} of them are added tokens, which slows the tokenizer down: {', '.join(added)}")
    return extended, _with_rows(parameters, pieces, ids), notes


def extend_positions(parameters: Arrays, positions: int) -> tuple[Arrays, str]:
    """Returns parameters with as many positions, those there are repeated, and a note for the report. Fixed positions
    need no parameters."""
    name = "embeddings/position/embedding"
    if name not in parameters:
        return parameters, f"{positions} positions, computed"
    table = parameters[name]
    count = len(table)
    if positions < count:
        raise UserError(f"--max_position_embeddings={positions} is fewer than the {count} that the model has")
    if positions == count:
        return parameters, f"{positions} positions, as before"
    note = (
        f"{count} positions became {positions}: position i starts as i mod {count}; "
        "rows of up to the old length give what they gave, longer ones need training"
    )
    return parameters | {name: table[np.arange(positions) % count]}, note


def fill_heads(parameters: Arrays, config: BertConfig) -> tuple[Arrays, BertConfig, str]:
    """Returns parameters and shape of the same model with as many heads as fill hidden_size, for formats that know no
    fewer, and a note for the report. A head that is added has zeros for kernels, and adds zero. Raises UserError if
    they do not fill it."""
    width, missing = config.head_width, config.hidden_size - config.attention_width
    if config.head_size is None:
        return parameters, config, ""
    if missing < 0 or missing % width:
        raise UserError(
            f"model.head_size is {width} and model.hidden_size {config.hidden_size}: heads of this size do not "
            "fill it, as this format needs; write another format"
        )

    def filled(name: str, x: np.ndarray) -> np.ndarray:
        axis = -1 if _HEAD_COLUMNS.search(name) else -2 if _HEAD_ROWS.search(name) else None
        if axis is None:
            return x
        return np.pad(x, [(0, missing if i == x.ndim + axis else 0) for i in range(x.ndim)])

    count = config.hidden_size // width
    note = f"heads: {config.num_attention_heads} of {width} became {count}, as this format needs; the new ones add 0"
    shape = replace(config, num_attention_heads=count, head_size=None)
    return {name: filled(name, x) for name, x in parameters.items()}, shape, note


def _sort_out(tokenizer: WordPieceTokenizer, words: list[str]) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Returns {new entry: word as it was given} for the vocabulary and for added tokens, and notes on other words."""
    backend = tokenizer.backend
    known = backend.get_vocab(with_added_tokens=True)
    plain, added, there, again = {}, {}, [], []
    for word, splits in zip(words, tokenizer.split_words(words), strict=True):
        if not splits:
            raise UserError(f"--extend_vocab: nothing is left of {word!r} once the tokenizer has cleaned it")
        if len(splits) == 1:
            entry, target = splits[0], plain
        elif tokenizer.original:
            raise UserError(
                f"--extend_vocab: '{word}' is {len(splits)} words ({' '.join(splits)}) to the rules of "
                "google-research/bert; leave it out, or convert to Hugging Face first and extend that"
            )
        else:
            entry, target = word, added
        if entry in known:
            there.append(word)
        elif entry in target:
            again.append(word)
        else:
            target[entry] = word
    notes = [f"already in the vocabulary: {', '.join(there)}"] if there else []
    notes += [f"given more than once: {', '.join(again)}"] if again else []
    return plain, added, notes


def _with_words(tokenizer: WordPieceTokenizer, numbers: dict[str, int], added: dict[str, str]) -> WordPieceTokenizer:
    state = json.loads(tokenizer.backend.to_str())
    taken = set(numbers.values())
    vocab = state["model"]["vocab"]
    # An added token keeps its number only if the vocabulary has it too: reading the file assigns numbers again.
    vocab |= {token["content"]: token["id"] for token in state["added_tokens"]}
    state["model"]["vocab"] = {token: i for token, i in vocab.items() if i not in taken} | numbers
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    backend.add_tokens([tokenizers.AddedToken(token, single_word=True, normalized=True) for token in added])
    return WordPieceTokenizer(backend, "the extended vocabulary", tokenizer.original)


def _with_rows(parameters: Arrays, pieces: list[list[int]], ids: list[int]) -> Arrays:
    """Returns the parameters with a row for each of `ids`: the mean of the rows of its pieces, as often as they occur
    in it."""
    extended = dict(parameters)
    for name in {*TABLES, "heads/mlm/bias"} & parameters.keys():
        old = parameters[name]
        added = max(max(ids, default=-1) + 1 - len(old), 0)
        new = np.concatenate([old, np.zeros((added, *old.shape[1:]), old.dtype)])
        for number, row in zip(ids, pieces, strict=True):
            new[number] = old[row].mean(axis=0)
        extended[name] = new
    return extended
