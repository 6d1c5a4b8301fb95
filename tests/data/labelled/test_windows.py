"""Windows over long texts: worked examples of the original's rules, and what holds for every text."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.config import UserError
from bert_jax.data.labelled.windows import (
    align_words,
    char_span_to_tokens,
    chunks_of_words,
    max_context_mask,
    scored_words,
    sliding,
)
from bert_jax.data.tokenizers.tokenizer import Tokenizer
from bert_jax.data.tokenizers.wordpiece import make_wordpiece

lengths, rooms = st.integers(0, 300), st.integers(1, 60)
word_lengths = st.lists(st.integers(1, 30), max_size=60)
any_windows = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 300)), min_size=1, max_size=6)


def max_context(windows: list[tuple[int, int]], position: int) -> int:
    """The only window that is trusted for a position."""
    masks = max_context_mask(windows)
    (index,) = (
        i for i, (start, _) in enumerate(windows) if masks[i][position - start :][:1].any() and start <= position
    )
    return index


def tokens_to_char_span(offsets, first: int, last: int) -> tuple[int, int]:
    return offsets[first][0], offsets[last][1]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    special, pieces = "[PAD] [UNK] [CLS] [SEP] [MASK]", "un ##aff ##able a b ##b ( ) $ 5 ##0 e fox ##es"
    return make_wordpiece(f"{special} {pieces}".split(), "test", True, None, True)


def test_sliding_by_hand():
    assert sliding(10, 4, 2) == [(0, 4), (2, 4), (4, 4), (6, 4)]  # the window from 8 on would show nothing new
    assert sliding(11, 4, 3) == [(0, 4), (3, 4), (6, 4), (9, 2)]
    assert sliding(9, 4, 100) == [(0, 4), (4, 4), (8, 1)]
    assert sliding(3, 4, 2) == [(0, 3)] and sliding(4, 4, 2) == [(0, 4)] and sliding(0, 4, 2) == []


@given(lengths, rooms, st.integers(1, 80))
def test_sliding_windows_show_every_token(length, room, stride):
    windows = sliding(length, room, stride)
    shown = [set(range(start, start + size)) for start, size in windows]
    assert set().union(*shown) == set(range(length))
    assert all(1 <= size <= room for _, size in windows)
    assert all(size == room for _, size in windows[:-1])
    assert all(not later <= earlier for earlier, later in pairwise(shown))
    assert [start for start, _ in windows] == [min(room, stride) * i for i in range(len(windows))]


def test_max_context_by_hand():
    # The example of run_squad.py: windows of 5 at 0, 3 and 6 over "the man went to the store and bought a gallon of".
    # "bought" (7) has 4 to the left and 0 to the right in the second, 1 and 3 in the third.
    windows = [(0, 5), (3, 5), (6, 5)]
    assert max_context(windows, 7) == 2
    assert max_context(windows, 3) == 0  # 1 and 0
    assert max_context(windows, 4) == 1  # 0 and 1
    assert [mask.tolist() for mask in max_context_mask(windows)] == [
        [True, True, True, True, False],
        [False, True, True, True, False],
        [False, True, True, True, True],
    ]


def test_of_equal_contexts_the_earlier_window_counts():
    assert max_context([(0, 4), (2, 4)], 2) == 0 and max_context([(2, 4), (0, 4)], 3) == 0  # 1 and 0; 1 and 0
    assert max_context([(0, 3), (2, 3)], 2) == 0 and max_context([(2, 3), (0, 3)], 2) == 0  # 0 and 0
    assert max_context([(0, 3), (2, 4)], 2) == 1  # 0 and 0, but 0.03 and 0.04
    with pytest.raises(ValueError, match="unpack"):
        max_context([(0, 3)], 3)


@given(any_windows)
def test_every_position_has_one_window_of_max_context(windows):
    masks = max_context_mask(windows)
    for position in range(max(start + size for start, size in windows)):
        scores = {
            w: min(position - start, start + size - 1 - position) + 0.01 * size
            for w, (start, size) in enumerate(windows)
            if start <= position < start + size
        }
        trusted = [w for w in scores if masks[w][position - windows[w][0]]]
        assert trusted == [w for w in scores if scores[w] == max(scores.values())][:1]
        if scores:
            assert max_context(windows, position) == trusted[0]
    assert [len(mask) for mask in masks] == [size for _, size in windows]


def test_chunks_by_hand():
    # Room 6. Words 0-2 fill it; the second chunk shares the 2 tokens of word 2 (half the room is 3) and adds word 3.
    assert chunks_of_words([2, 2, 2, 2, 2], 6) == [(0, 2), (2, 4)]
    assert chunks_of_words([1] * 10, 4) == [(0, 3), (2, 5), (4, 7), (6, 9)]
    assert chunks_of_words([3, 9, 3], 6) == [(0, 0), (1, 1), (2, 2)]  # the long word is cut to 6 and stands alone
    assert chunks_of_words([1, 1, 1, 5, 1], 6) == [(0, 2), (2, 3), (4, 4)]  # sharing more would leave word 3 no room
    assert chunks_of_words([4], 6) == [(0, 0)] and chunks_of_words([], 6) == []
    masks = [mask.tolist() for mask in scored_words([(0, 3), (2, 5)])]
    assert masks == [[True, True, True, False], [False, True, True, True]]  # words 2 and 3: 1 against 0, then 0, 1


@given(word_lengths, st.integers(1, 40))
def test_chunks_hold_whole_words_and_score_each_once(sizes, room):
    chunks = chunks_of_words(sizes, room)
    cut = np.minimum(sizes, room)
    assert all(0 <= first <= last < len(sizes) for first, last in chunks)
    assert all(cut[first : last + 1].sum() <= room for first, last in chunks)
    for (first, last), (next_first, next_last) in pairwise(chunks):
        assert first < next_first <= last + 1 and next_last > last
        assert cut[first : last + 2].sum() > room, "a chunk takes every word that fits"
        assert cut[next_first : last + 1].sum() <= room // 2
    scored = np.zeros(len(sizes), int)
    for (first, last), mask in zip(chunks, scored_words(chunks), strict=True):
        scored[first : last + 1] += mask
    assert (scored == 1).all()


@given(st.integers(5, 200), st.integers(8, 60))
def test_a_scored_word_has_context_on_both_sides(count, room):
    """Of words of one token: a quarter of the room, but for rounding, unless the text ends before that."""
    chunks = chunks_of_words([1] * count, room)
    for (first, last), mask in zip(chunks, scored_words(chunks), strict=True):
        for word in first + np.flatnonzero(mask):
            assert word - first >= min(word, room // 4 - 1)
            assert last - word >= min(count - 1 - word, room // 4 - 1)


def test_words_keep_their_pieces_to_themselves(tokenizer):
    sentences = [["Unaffable", "a", "\u200b", "($50)"], [], ["a", "??", "b"]]
    a, un, aff, able, unk = (tokenizer.id(token) for token in ["a", "un", "##aff", "##able", "[UNK]"])
    money = tuple(tokenizer.id(token) for token in ["(", "$", "5", "##0", ")"])
    # A zero-width space leaves nothing and becomes [UNK]; "??" is two unknown marks, "b" is never "##b".
    assert align_words(sentences, tokenizer) == [
        [(un, aff, able), (a,), (unk,), money],
        [],
        [(a,), (unk, unk), (tokenizer.id("b"),)],
    ]


def test_a_word_is_encoded_once(tokenizer, monkeypatch):
    asked: list[str] = []
    encode = type(tokenizer).encode_words
    monkeypatch.setattr(type(tokenizer), "encode_words", lambda self, texts: asked.extend(texts) or encode(self, texts))
    align_words([["a", "b", "a"], ["b", "fox"]], tokenizer)
    assert asked == ["a", "b", "fox"]


def test_spans_by_hand(tokenizer):
    text = "A  fox (unaffable), $50!"
    (row,) = tokenizer.encode([text])
    tokens = " ".join(tokenizer.token(i) for i in row.ids)
    assert tokens == "[CLS] a fox ( un ##aff ##able ) [UNK] $ 5 ##0 [UNK] [SEP]"

    def found(answer: str) -> tuple[int, int] | None:
        return char_span_to_tokens(row.offsets, text.index(answer), text.index(answer) + len(answer))

    assert found("A") == (1, 1), "[CLS] shows nothing"
    assert found("unaffable") == (4, 6) and found("naff") == (4, 5) and found("  fox ") == (2, 2)
    assert found("  ") is None and found("") is None
    assert tokens_to_char_span(row.offsets, 4, 6) == (8, 17) and text[8:17] == "unaffable"
    (pair,) = tokenizer.encode(["fox"], [text])
    assert char_span_to_tokens(pair.offsets[3:], 8, 17) == (3, 5)  # what follows [CLS] fox [SEP]
    assert char_span_to_tokens([(0, 2), (2, 6)], 4, 4) is None


texts = st.lists(st.sampled_from(["unaffable", "Foxes", "(a", "b)", "$50", "é", "\u200b", "漢", " "]), min_size=1)


@given(texts.map(" ".join), st.data())
def test_spans_and_back(tokenizer, text, data):
    (row,) = tokenizer.encode([text])
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    span = char_span_to_tokens(row.offsets, start, end)
    shown = {i for a, b in row.offsets for i in range(a, b)}
    if span is None:
        assert not shown & set(range(start, end))
    else:
        begin, stop = tokens_to_char_span(row.offsets, *span)
        assert shown & set(range(start, end)) <= set(range(begin, stop)), "covers the answer"
        assert char_span_to_tokens(row.offsets, begin, stop) == span, "and no token more"
    real = [i for i, special in enumerate(row.special_tokens_mask) if not special]
    if real:
        first = data.draw(st.sampled_from(real))
        last = data.draw(st.sampled_from([i for i in real if i >= first]))
        assert char_span_to_tokens(row.offsets, *tokens_to_char_span(row.offsets, first, last)) == (first, last)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sliding(9, -3, 1), "room for -3 tokens of text beside .* raise the maximum sequence length"),
        (lambda: sliding(9, 4, 0), "data.window_stride 0 never gets to the end"),
        (lambda: chunks_of_words([1], 0), "room for 0 tokens"),
    ],
)
def test_what_is_wrong_with_the_lengths(call, message):
    with pytest.raises(UserError, match=message):
        call()
