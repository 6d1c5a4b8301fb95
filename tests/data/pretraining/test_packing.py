"""Packed rows: every pair whole, in one row, where it fits; a pure function of the row's number."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.config import UserError
from bert_jax.data.pretraining.packing import ROWS_TOGETHER, PackedRows, Packing, first_fit, prediction_budgets
from bert_jax.data.pretraining.pairs import PairRows, PairSettings
from experiments.base import get_config

CLS, SEP = 1, 2


def source_of(seed: int, documents: int) -> list[dict]:
    """Documents of one to four chunks; a document's last one is short."""
    rng, records = np.random.default_rng(seed), []
    for number in range(documents):
        count = int(rng.integers(1, 5))
        for index in range(count):
            lengths = rng.integers(3, 12, 8 if index + 1 < count else int(rng.integers(1, 8)))
            tokens = rng.integers(10, 1000, lengths.sum())
            record = {"tokens": tokens, "sentence_lengths": lengths, "document": number}
            records.append(record | {"chunk_index": index, "num_chunks": count})
    return records


def packed(pairing: str = "nsp", length: int = 48, seed: int = 5) -> PackedRows:
    data = get_config().data
    data.update(sequence_length=length, max_predictions_per_sequence=8)
    settings = PairSettings(length, pairing, 0.5, 0.1, CLS, SEP, 1000)
    return PackedRows(source_of(0, 60), settings, Packing.from_config(data), seed)


def unpacked_pairs(rows: PackedRows, first: int, count: int) -> list[tuple]:
    """What `count` pairs in rows of their own hold: (tokens and types, label, weight), sorted."""
    alone = PairRows(rows.source, rows._settings, rows._seed)
    pairs = [alone(first + i) for i in range(count)]
    return sorted(
        _contents(pair["input_ids"], pair["token_type_ids"], pair["sequence_ids"] == 1, pair) for pair in pairs
    )


def packed_pairs(row: dict[str, np.ndarray]) -> list[tuple]:
    pairs = []
    for number in range(row["sequence_ids"].max()):
        its = row["sequence_ids"] == number + 1
        places = np.flatnonzero(its)
        assert (np.diff(places) == 1).all() and places[0] == row["first_tokens"][number]
        np.testing.assert_array_equal(row["position_ids"][its], np.arange(len(places)))
        label = {name: row[name][number] for name in ("next_sentence_labels", "next_sentence_weights")}
        pairs.append(_contents(row["input_ids"], row["token_type_ids"], its, label))
    assert not any(row[name][len(pairs) :].any() for name in ("first_tokens", "next_sentence_weights"))
    assert not any(row[name][row["sequence_ids"] == 0].any() for name in ("input_ids", "token_type_ids"))
    return pairs


def _contents(ids, types, its, label) -> tuple:
    labels = label["next_sentence_labels"].item(), label["next_sentence_weights"].item()
    return ids[its].tolist(), types[its].tolist(), *labels


@pytest.mark.parametrize("pairing", ["nsp", "sop", "none"])
def test_a_stretch_of_pairs_is_in_its_rows_each_pair_once_and_unchanged(pairing: str):
    rows = packed(pairing)
    assert rows.pairs_together > ROWS_TOGETHER
    for stretch in (0, 7):
        contents = [packed_pairs(rows(stretch * ROWS_TOGETHER + place)) for place in range(ROWS_TOGETHER)]
        found = sorted(pair for row in contents for pair in row)
        expected = unpacked_pairs(rows, stretch * rows.pairs_together, rows.pairs_together)
        left_out = Counter(map(str, expected)) - Counter(map(str, found))
        assert not Counter(map(str, found)) - Counter(map(str, expected)) and left_out.total() < 0.01 * len(expected)
        assert rows.first_pair(stretch * ROWS_TOGETHER + 3) == stretch * rows.pairs_together


def test_hardly_a_place_is_padding():
    rows = packed()
    real = np.mean([rows(place)["sequence_ids"] > 0 for place in range(2 * ROWS_TOGETHER)])
    pairs = PairRows(rows.source, rows._settings, 5)
    alone = np.mean([pairs(i)["sequence_ids"] > 0 for i in range(2000)])
    assert alone < 0.87 and real > 0.96
    # Rows are not left in the order in which they were filled: any 64 of them hold about as much.
    counts = np.asarray([rows(place)["sequence_ids"].max() for place in range(ROWS_TOGETHER)])
    means = counts.reshape(-1, 64).mean(1)
    assert means.max() < 1.5 * means.min()


def test_a_row_is_a_function_of_its_number(short_stretches: int):
    rows = packed()
    numbers = [0, 5 * short_stretches, 1, short_stretches, 2 * short_stretches, 3 * short_stretches, 10**9, 1]
    first = [rows(number) for number in numbers]  # more stretches than are kept
    fresh = pickle.loads(pickle.dumps(rows))
    assert pickle.dumps([fresh(number) for number in reversed(numbers)][::-1]) == pickle.dumps(first)
    assert pickle.dumps(packed(seed=6)(0)) != pickle.dumps(first[0])


@given(
    lengths=st.lists(st.integers(3, 64), min_size=1, max_size=60),
    rows=st.integers(1, 12),
    sequences=st.integers(1, 5),
    predictions=st.integers(10, 12),
)
def test_first_fit_keeps_to_the_room_and_leaves_out_only_what_fits_nowhere(lengths, rows, sequences, predictions):
    packing = Packing(64, sequences, predictions, prediction_budgets(0.15, 20, 64))
    members = first_fit(lengths, rows, packing)
    placed = [number for row in members for number in row]
    assert len(members) == rows and len(placed) == len(set(placed))
    free = []
    for row in members:
        tokens = 64 - sum(lengths[number] for number in row)
        budget = predictions - sum(packing.budgets[lengths[number]] for number in row)
        free.append((tokens, budget, sequences - len(row)))
        assert min(free[-1]) >= 0
    for number in set(range(len(lengths))) - set(placed):
        length, budget = lengths[number], packing.budgets[lengths[number]]
        assert not any(length <= tokens and budget <= most and more for tokens, most, more in free)


def test_the_longest_pairs_go_first():
    packing = Packing(64, 4, 12, prediction_budgets(0.15, 20, 64))
    assert first_fit([4, 60, 32, 64, 32], 3, packing) == [[3], [1, 0], [2, 4]]


def test_room_is_that_of_the_unpacked_row_where_pairs_are_long():
    data = get_config().data
    packing = Packing.from_config(data)  # 128 tokens, 20 predictions
    assert (packing.length, packing.sequences, packing.predictions) == (128, 8, 20)
    assert packing.budgets[[1, 10, 30, 50, 128]].tolist() == [1, 2, 4, 8, 19]  # Python's round: 1.5 → 2, 4.5 → 4
    data.max_predictions_per_sequence = 5  # two pairs of 64 tokens still fit
    packing = Packing.from_config(data)
    assert packing.predictions == 19 and packing.budgets.max() == 5


def test_a_token_id_outside_the_vocabulary_is_an_error():
    rows = packed()
    rows._settings = PairSettings(48, "nsp", 0.5, 0.1, CLS, SEP, 500)
    with pytest.raises(UserError, match=r"token id \d+ .* record \d+ .* vocabulary of 500"):
        for number in range(20):
            rows(number)
