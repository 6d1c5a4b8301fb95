"""[CLS] a [SEP] b [SEP] by hand, and which tokens of too long texts remain."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.config import UserError
from bert_jax.data.tokenizers.rows import kept_ranges, pair_lengths, row_length
from bert_jax.data.tokenizers.wordpiece import WordPieceTokenizer, make_wordpiece


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"], "test", True, None, True)


@pytest.mark.parametrize(
    ("a", "b", "options", "ids", "type_ids"),
    [
        ([5, 6], None, {}, [2, 5, 6, 3], [0, 0, 0, 0]),
        ([5, 6], [7], {}, [2, 5, 6, 3, 7, 3], [0, 0, 0, 0, 1, 1]),
        ([], None, {}, [2, 3], [0, 0]),
        ([], [], {}, [2, 3, 3], [0, 0, 1]),
        ([5, 6, 7, 5], None, {"max_length": 4, "how": "tail"}, [2, 7, 5, 3], [0, 0, 0, 0]),
        ([5, 6, 7, 5], [7], {"max_length": 6}, [2, 5, 6, 3, 7, 3], [0, 0, 0, 0, 1, 1]),
        ([5, 6], [7, 6], {"max_length": 6}, [2, 5, 3, 7, 6, 3], [0, 0, 0, 1, 1, 1]),
        ([5], [7], {"max_length": 3}, [2, 3, 3], [0, 0, 1]),
    ],
)
def test_rows_by_hand(tokenizer, a, b, options, ids, type_ids):
    row = tokenizer.row(a, b, **options)
    assert row.ids.tolist() == ids and row.type_ids.tolist() == type_ids
    assert row.ids.dtype == row.type_ids.dtype == np.int32


def test_a_row_is_as_long_as_its_length_says(tokenizer):
    for length_b in (None, 0, 3):
        row = tokenizer.row([5] * 4, None if length_b is None else [6] * length_b)
        assert len(row.ids) == row_length(4, length_b)


def test_no_room_for_special_tokens(tokenizer):
    with pytest.raises(UserError, match=r"max_length 2 has no room for \[CLS\] and \[SEP\]: give at least 3"):
        tokenizer.row([5], [6], max_length=2)


@pytest.mark.parametrize(
    ("lengths", "room", "library", "original"),
    [
        ((5, 5), 7, (3, 4), (4, 3)),
        ((6, 5), 7, (4, 3), (4, 3)),
        ((5, 6), 7, (3, 4), (4, 3)),
        ((9, 2), 7, (5, 2), (5, 2)),
    ],
)
def test_the_longer_part_is_cut_first_and_the_odd_token_has_two_rules(lengths, room, library, original):
    assert pair_lengths(*lengths, room, original=False) == library
    assert pair_lengths(*lengths, room, original=True) == original


@pytest.mark.parametrize(
    ("length", "room", "how", "ranges"),
    [
        (511, 510, "head", [(0, 510)]),
        (511, 510, "tail", [(1, 511)]),
        (1000, 510, "head+tail", [(0, 128), (618, 1000)]),
        (1000, 126, "head+tail", [(0, 31), (905, 1000)]),  # 128 · 126 / 510 = 31.6
        (510, 510, "head+tail", [(0, 510)]),
        (9, 1, "head+tail", [(8, 9)]),
        (0, 5, "tail", []),
        (9, 0, "head+tail", []),
    ],
)
def test_truncation_by_hand(length, room, how, ranges):
    assert kept_ranges(length, room, how) == ranges


@given(st.integers(0, 300), st.integers(0, 60), st.sampled_from(["head", "tail", "head+tail"]))
def test_truncation_fills_the_room_in_order(length, room, how):
    kept = [i for start, end in kept_ranges(length, room, how) for i in range(start, end)]
    assert len(kept) == min(length, room) and kept == sorted(set(kept))
    assert all(0 <= i < length for i in kept)


def test_another_truncation_is_refused():
    with pytest.raises(UserError, match=r"truncation 'middle' is unknown: choose head, tail, head\+tail"):
        kept_ranges(9, 4, "middle")
