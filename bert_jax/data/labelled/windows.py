"""Texts longer than the model: what is cut off, which windows slide over the rest, which window speaks for a token.

`room` is what [CLS] and [SEP] (and a question) leave of the sequence length. A window is `(start, size)`, in tokens; it
is "max context" for a token if it shows most of what surrounds it (google-research/bert, run_squad.py). Answers and
entities come from that window alone, so nothing counts twice.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from bert_jax.config import UserError
from bert_jax.data.tokenizers.encoding import Tokenizer
from bert_jax.data.tokenizers.rows import Span

Window = tuple[int, int]


def sliding(length: int, room: int, stride: int) -> list[Window]:
    """Returns windows over `length` tokens, the start of each `stride` after the one before; the last one may be short.

    A stride over `room` counts as `room`, so that no token is left out. An empty text has no window.
    """
    _check_room(room)
    if stride < 1:
        raise UserError(f"data.window_stride {stride} never gets to the end of a text: give 1 or more tokens")
    windows: list[Window] = []
    start = 0
    while start < length:
        windows.append((start, min(room, length - start)))
        if start + room >= length:
            break
        start += min(room, stride)
    return windows


def max_context_mask(windows: Sequence[Window]) -> list[Bool[np.ndarray, " size"]]:
    """Returns `mask[w][i]`: whether window w is the one to trust for its i-th token: the window with the highest
    min(tokens left, tokens right) + 0.01 · size; of equals, the first.

    Every position that some window holds is True in exactly one. A window between much larger ones may have none.
    """
    end = max((start + size for start, size in windows), default=0)
    best, owner = np.full(end, -np.inf), np.full(end, -1)
    for index, (start, size) in enumerate(windows):
        left = np.arange(size)
        score = np.minimum(left, left[::-1]) + 0.01 * size
        held = slice(start, start + size)
        better = score > best[held]
        best[held] = np.where(better, score, best[held])
        owner[held] = np.where(better, index, owner[held])
    return [owner[start : start + size] == index for index, (start, size) in enumerate(windows)]


def chunks_of_words(word_lengths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Returns chunks `(first_word, last_word)`, both included, of whole words with at most `room` tokens in all.

    `word_lengths` in tokens. A word longer than `room` counts as `room`: the caller keeps its first pieces. Neighbours
    share up to half the room, so that a word has about a quarter of it as context on either side where it is scored.
    """
    _check_room(room)
    ends = np.cumsum(np.minimum(word_lengths, room), dtype=np.int64)
    begins = np.concatenate([[0], ends[:-1]])
    chunks: list[tuple[int, int]] = []
    first = 0
    while first < len(ends):
        last = int(np.searchsorted(ends, begins[first] + room, side="right")) - 1
        chunks.append((first, last))
        if last == len(ends) - 1:
            break
        shared = np.searchsorted(begins, ends[last] - room // 2)
        fitting = np.searchsorted(begins, ends[last + 1] - room)  # else the next chunk would show no new word
        first = int(max(shared, fitting))
    return chunks


def scored_words(chunks: Sequence[tuple[int, int]]) -> list[Bool[np.ndarray, " words"]]:
    """Returns for each chunk which of its words it is scored for: every word of the text in exactly one chunk."""
    return max_context_mask([(first, last - first + 1) for first, last in chunks])


def align_words(sentences: Sequence[Sequence[str]], tokenizer: Tokenizer) -> list[list[tuple[int, ...]]]:
    """Returns the token ids of each word of each sentence; the first stands for the word (Devlin et al., 5.3).

    Words are encoded one by one, each distinct word once, so pieces never reach over a word's end. A word that leaves
    nothing (a lone control character or accent) gets [UNK]: it must have a position, or its tag would not be scored.
    """
    vocabulary = list(dict.fromkeys(word for sentence in sentences for word in sentence))
    unknown = (tokenizer.unk_id,)
    pieces = {w: tuple(ids) or unknown for w, ids in zip(vocabulary, tokenizer.encode_words(vocabulary), strict=True)}
    return [[pieces[word] for word in sentence] for sentence in sentences]


def char_span_to_tokens(offsets: Sequence[Span], start: int, end: int) -> tuple[int, int] | None:
    """Returns the first and last token, both included, that show a character of `text[start:end]`, or None.

    `offsets` are those of one text, as in `Encoding`. A span that they hold only in part gives that part: take spans on
    the whole text, before it is cut into windows.
    """
    shown = [index for index, (begin, stop) in enumerate(offsets) if max(begin, start) < min(stop, end)]
    return (shown[0], shown[-1]) if shown else None


def _check_room(room: int) -> None:
    if room < 1:
        raise UserError(f"room for {room} tokens of text beside [CLS] and [SEP]: raise the maximum sequence length")
