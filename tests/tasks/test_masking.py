"""Masking on the device: shares, budgets, whole words, spans."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.pretraining.packing import Packing, prediction_budgets
from bert_jax.tasks.masking import mask_tokens

PAD, CLS, SEP, MASK, V = 0, 2, 3, 4, 1000


def masking(**changes) -> SimpleNamespace:
    """Returns options of `config.data`, given without their prefixes."""
    options = {"mask_rate": 0.15, "mask_share": 0.8, "random_share": 0.1, "mask_unit": "token"}
    names = {"rate": "mask_rate", "unit": "mask_unit", "max_predictions": "max_predictions_per_sequence"}
    changes = {names.get(name, name): value for name, value in changes.items()}
    return SimpleNamespace(**{"max_predictions_per_sequence": 20, **options, **changes})


def rows(batch: int, length: int, real: int | None = None, seed: int = 0):
    """[CLS] words [SEP] words [SEP] padding; the pieces 500–999 continue a word."""
    real = length if real is None else real
    ids = np.random.default_rng(seed).integers(10, V, (batch, length)).astype(np.int32)
    ids[:, 0], ids[:, real // 2], ids[:, real - 1], ids[:, real:] = CLS, SEP, SEP, PAD
    return ids, (np.arange(length)[None] < real).astype(np.int32) * np.ones((batch, 1), np.int32)


CONTINUES = np.arange(V) >= 500
TOKENIZER = SimpleNamespace(mask_id=MASK, cls_id=CLS, sep_id=SEP, vocab_size=V, is_continuation=CONTINUES)


def masked(ids, sequence_ids, numbers, seed=0, packing=None):
    ids, sequence_ids = jnp.asarray(ids), jnp.asarray(sequence_ids)
    out = mask_tokens(ids, sequence_ids, numbers, TOKENIZER, jax.random.key(seed), packing=packing)
    return jax.tree.map(np.asarray, out)


def test_shares_over_a_hundred_thousand_tokens():
    ids, sequence_ids = rows(800, 128)
    out = masked(ids, sequence_ids, masking())
    weights = out["masked_weights"] > 0
    assert weights.sum() == 800 * 19  # round(0.15 · 128) = round(19.2)
    labels = out["masked_labels"][weights]
    shown = np.take_along_axis(out["input_ids"], out["masked_positions"], 1)[weights]
    n = len(labels)
    # Five standard deviations of a binomial; a random token is by chance the same one once in a thousand.
    assert abs(np.mean(shown == MASK) - 0.8) < 5 * np.sqrt(0.8 * 0.2 / n)
    assert abs(np.mean(shown == labels) - 0.1) < 5 * np.sqrt(0.1 * 0.9 / n) + 1e-3
    randoms = shown[(shown != MASK) & (shown != labels)]
    assert randoms.min() < 5 and randoms.max() > V - 5  # from the whole vocabulary, special tokens included
    # Every place in the row is as likely as any other.
    places = np.bincount(out["masked_positions"][weights], minlength=128)
    assert places[[0, 64, 127]].sum() == 0
    expected = n / 125
    assert abs(np.delete(places, [0, 64, 127]) - expected).max() < 5 * np.sqrt(expected)


def test_labels_are_what_was_there_and_all_else_is_untouched():
    ids, sequence_ids = rows(16, 64, real=50)
    out = masked(ids, sequence_ids, masking())
    weights = out["masked_weights"] > 0
    np.testing.assert_array_equal(
        np.take_along_axis(ids, out["masked_positions"], 1)[weights], out["masked_labels"][weights]
    )
    chosen = np.zeros_like(ids, bool)
    for row, (places, w) in enumerate(zip(out["masked_positions"], weights, strict=True)):
        assert (np.diff(places[w]) > 0).all()  # in order, none twice
        chosen[row, places[w]] = True
    np.testing.assert_array_equal(out["input_ids"][~chosen], ids[~chosen])
    assert (out["masked_positions"][~weights] == 0).all() and (out["masked_labels"][~weights] == 0).all()


@pytest.mark.parametrize("real", [4, 10, 30, 50, 128, 190, 350, 390])
def test_budget_rounds_like_the_original(real):
    # Python's round of a float64: 1.5 → 2, 4.5 → 4, 7.5 → 8, and 0.15 × 190 is a little under 28.5
    ids, sequence_ids = rows(2, 400, real=real)
    weights = masked(ids, sequence_ids, masking(max_predictions=80))["masked_weights"]
    assert (weights.sum(1) == max(1, round(0.15 * real))).all()


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_never_more_than_p(unit):
    ids, sequence_ids = rows(8, 128)
    out = masked(ids, sequence_ids, masking(unit=unit, max_predictions=7, rate=0.5))
    assert out["masked_positions"].shape == (8, 7)
    assert (out["masked_weights"].sum(1) <= 7).all()


def test_a_row_of_one_word_over_the_budget_still_predicts():
    ids = np.full((2, 40), 600, np.int32)  # pieces of one word, as a sentence of Chinese is under SentencePiece
    ids[:, 0], ids[:, 1], ids[:, -1] = CLS, 10, SEP
    out = masked(ids, np.ones_like(ids), masking(unit="word"))
    assert (out["masked_weights"].sum(1) == 6).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), rate=st.floats(0.2, 0.6))
def test_words_are_taken_whole(seed, rate):
    ids, sequence_ids = rows(4, 48, seed=seed)
    ids[:, 2::4] %= 500  # no word is over the budget
    ids[ids < 10] = 10
    ids[:, 0], ids[:, 24], ids[:, 47] = CLS, SEP, SEP
    out = masked(ids, sequence_ids, masking(unit="word", rate=rate, max_predictions=30), seed)
    for row in range(4):
        taken = set(out["masked_positions"][row][out["masked_weights"][row] > 0].tolist())
        for place in taken:
            after = place + 1
            if after < 48 and CONTINUES[ids[row, after]] and ids[row, after] not in (CLS, SEP):
                assert after in taken
            before_is_word = place > 0 and ids[row, place - 1] not in (CLS, SEP)
            if CONTINUES[ids[row, place]] and before_is_word:
                assert place - 1 in taken


def test_a_piece_after_sep_is_a_word_of_its_own():
    ids = np.asarray([[CLS, 10, SEP, 700, 11, SEP]], np.int32)
    seen = set()
    for seed in range(30):
        out = masked(ids, np.ones_like(ids), masking(unit="word", rate=0.01), seed)
        seen.add(tuple(out["masked_positions"][0][out["masked_weights"][0] > 0].tolist()))
    assert seen == {(1,), (3,), (4,)}


def test_spans_are_longer_than_chance_and_use_the_budget():
    ids, sequence_ids = rows(200, 128)
    ids = np.where(ids >= 500, ids - 450, ids)  # every piece a word
    runs = {}
    for unit in ("token", "span"):
        out = masked(ids, sequence_ids, masking(unit=unit))
        assert (out["masked_weights"].sum(1) == 19).all()
        starts = [np.sum(np.diff(row[:19]) != 1) + 1 for row in out["masked_positions"]]
        runs[unit] = 19 / np.mean(starts)
    # Independent tokens: mean run 1/(1 − 0.15) ≈ 1.17. SpanBERT's truncated geometric lengths have mean 3.8;
    # the last span is cut by the budget, and spans are cut at special tokens.
    assert 1.1 < runs["token"] < 1.25
    assert 2.8 < runs["span"] < 4.5


def test_a_function_of_the_key():
    ids, sequence_ids = rows(4, 64)
    one, again, other = (masked(ids, sequence_ids, masking(), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one["input_ids"], again["input_ids"])
    assert (one["masked_positions"] != other["masked_positions"]).any()


def test_a_row_of_padding_predicts_nothing():
    ids = np.zeros((2, 16), np.int32)
    out = masked(ids, np.zeros_like(ids), masking())
    assert out["masked_weights"].sum() == 0


def packed_row(lengths: list[int], length: int) -> tuple[np.ndarray, np.ndarray]:
    ids, sequence_ids = np.zeros((2, 1, length), np.int32)
    start = 0
    for number, real in enumerate(lengths):
        ids[0, start : start + real] = rows(1, real, seed=number)[0]
        sequence_ids[0, start : start + real] = number + 1
        start += real
    return ids, sequence_ids


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_a_sequence_has_its_own_budget_wherever_it_is(unit):
    lengths, length = [40, 10, 5, 60], 128  # 6, 2 (round(1.5)), 1 (round(0.75)) and 9 predictions
    ids, sequence_ids = packed_row(lengths, length)
    ids, sequence_ids = np.tile(ids % 500, (50, 1)), np.tile(sequence_ids, (50, 1))  # every piece a word
    packing = Packing(length, 5, 18, prediction_budgets(0.15, 20, length))
    m = masking(unit=unit)
    out = masked(ids, sequence_ids, m, packing=packing)
    weights, positions = out["masked_weights"] > 0, out["masked_positions"]
    assert positions.shape == (50, 18) and weights.all()
    of = np.take_along_axis(sequence_ids, positions, 1)
    assert all(np.bincount(row).tolist() == [0, 6, 2, 1, 9] for row in of)
    assert len({tuple(row) for row in positions[:, :6]}) > 40  # drawn anew for every row
    alone = masked(ids[:, :40], sequence_ids[:, :40], m)
    assert (alone["masked_weights"].sum(1) == 6).all()
    np.testing.assert_array_equal(np.take_along_axis(ids, positions, 1), out["masked_labels"])


def test_a_word_over_its_budget_is_cut_in_its_own_sequence_only():
    ids = np.full((1, 60), 600, np.int32)  # pieces of one word
    ids[0, [0, 40]], ids[0, [1, 41]], ids[0, [39, 59]] = CLS, 10, SEP
    sequence_ids = np.where(np.arange(60) < 40, 1, 2)[None].astype(np.int32)
    packing = Packing(60, 2, 9, prediction_budgets(0.15, 20, 60))
    out = masked(ids, sequence_ids, masking(unit="word"), packing=packing)
    chosen = out["masked_positions"][out["masked_weights"] > 0]
    assert np.bincount(sequence_ids[0, chosen]).tolist() == [0, 6, 3]
