"""Rows made from chunks: what they contain, how often, and that they depend on (seed, epoch, index) alone."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import UserError
from bert_jax.data.pretraining.pairs import PairRows, PairSettings, _Draws, _truncate, shuffled

CLS, SEP = 1, 2
SENTENCE = 10_000  # token ids are 10,000 × (1 + document) + place in the document


def settings_for(pairing: str = "nsp", **changes) -> PairSettings:
    values = dict(sequence_length=32, random_next_rate=0.5, short_sequence_rate=0.1)
    values |= dict(cls_id=CLS, sep_id=SEP, vocab_size=10_000_000)
    return PairSettings(pairing=pairing, **{**values, **changes})


def instance(source: list[dict], settings: PairSettings, seed: int, position: int) -> dict[str, np.ndarray]:
    return PairRows(source, settings, seed)(position)


def make_source(documents: list[list[list[int]]]) -> list[dict]:
    """Documents of chunks of sentence lengths → records whose token ids tell document and place."""
    records = []
    for number, chunks in enumerate(documents):
        place = 0
        for index, lengths in enumerate(chunks):
            tokens = SENTENCE * (1 + number) + np.arange(place, place + sum(lengths))
            place += sum(lengths)
            records.append(
                {
                    "tokens": tokens,
                    "sentence_lengths": np.array(lengths),
                    "document": number,
                    "chunk_index": index,
                    "num_chunks": len(chunks),
                }
            )
    return records


SOURCE = make_source(
    [
        [[5, 7, 9, 11], [12, 20], [4, 4]],
        [[29]],
        [[8, 8, 8, 8], [10, 10, 10]],
        [
            [3],
        ],
        [[2, 3, 4]],
    ]
)


def parts(row: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """A and B of a row, after checking its frame."""
    ids, types, real = row["input_ids"], row["token_type_ids"], row["sequence_ids"]
    length = int(real.sum())
    assert (real[:length] == 1).all() and (ids[length:] == 0).all() and (types[length:] == 0).all()
    first, *others = np.flatnonzero(ids == SEP)
    assert ids[0] == CLS and ids[length - 1] == SEP and len(others) <= 1
    assert (types[: first + 1] == 0).all() and (types[first + 1 : length] == 1).all()
    assert (row["position_ids"] == np.arange(len(ids))).all()
    assert {str(row[key].dtype) for key in ("input_ids", "token_type_ids", "position_ids", "sequence_ids")} == {"int32"}
    return ids[1:first], ids[first + 1 : length - 1]


def test_label_tells_whether_b_comes_from_another_document():
    seen: Counter[int] = Counter()
    for position in range(1_000):
        row = instance(SOURCE, settings_for(), 7, position)
        a, b = parts(row)
        assert len(a) >= 1 and len(b) >= 1
        label = int(row["next_sentence_labels"][0])
        documents = (set(a // SENTENCE), set(b // SENTENCE))
        assert len(documents[0]) == len(documents[1]) == 1
        assert (documents[0] != documents[1]) == (label == 1)
        assert row["next_sentence_weights"] == 1
        assert (np.diff(a) == 1).all() and (np.diff(b) == 1).all()
        if label == 0:
            assert b[0] > a[-1]
        seen[label] += 1
    assert set(seen) == {0, 1}


def test_half_of_the_pairs_are_random_when_the_chunk_allows_both():
    source = make_source([[[6, 6, 6, 6, 6]] * 3 for _ in range(20)])
    count = 4_000
    labels = sum(int(instance(source, settings_for(), 3, i)["next_sentence_labels"][0]) for i in range(count))
    assert abs(labels - count / 2) < 4 * (count / 4) ** 0.5  # 4 standard deviations: 6 in 100,000


def test_a_lone_sentence_always_gets_a_random_partner():
    source = make_source([[[29]], [[29]]])
    assert all(instance(source, settings_for(), 0, i)["next_sentence_labels"] == 1 for i in range(50))


def test_every_token_is_seen_over_the_epochs():
    seen: set[int] = set()
    for position in range(60 * len(SOURCE)):
        a, b = parts(instance(SOURCE, settings_for(), 1, position))
        seen |= set(a.tolist()) | set(b.tolist())
    assert seen == {int(token) for record in SOURCE for token in record["tokens"]}


@pytest.mark.parametrize("pairing", ["nsp", "sop", "none"])
def test_an_epoch_starts_from_every_chunk_once(pairing: str):
    order = [shuffled(i, len(SOURCE), 5, epoch=2) for i in range(len(SOURCE))]
    assert sorted(order) == list(range(len(SOURCE)))
    assert order != [shuffled(i, len(SOURCE), 5, epoch=3) for i in range(len(SOURCE))]
    for i, record in enumerate(order):
        row = instance(SOURCE, settings_for(pairing), 5, 2 * len(SOURCE) + i)
        assert row["input_ids"][1] // SENTENCE == 1 + SOURCE[record]["document"]


@pytest.mark.parametrize("pairing", ["nsp", "sop", "none"])
def test_a_row_is_a_pure_function(pairing: str):
    rows = [instance(SOURCE, settings_for(pairing), 11, i) for i in range(64)]
    again = [instance(SOURCE, settings_for(pairing), 11, i) for i in reversed(range(64))][::-1]
    assert pickle.dumps(rows) == pickle.dumps(again)
    other = [instance(SOURCE, settings_for(pairing), 12, i) for i in range(64)]
    assert pickle.dumps(rows) != pickle.dumps(other)


def test_sop_swaps_half_of_the_neighbouring_parts():
    swapped = 0
    for position in range(1_000):
        row = instance(SOURCE, settings_for("sop"), 2, position)
        a, b = parts(row)
        label = int(row["next_sentence_labels"][0])
        assert a[0] // SENTENCE == b[0] // SENTENCE
        assert (b[0] < a[0]) == (label == 1)
        swapped += label
    assert 430 < swapped < 570  # 4.4 standard deviations


def test_sop_gives_no_label_to_a_single_token():
    row = instance(make_source([[[1]]]), settings_for("sop"), 0, 0)
    assert row["input_ids"][:3].tolist() == [CLS, SENTENCE, SEP] and row["next_sentence_weights"] == 0


def test_none_packs_one_full_segment():
    for position in range(200):
        row = instance(SOURCE, settings_for("none"), 2, position)
        a, b = parts(row)
        assert len(b) == 0 and (np.diff(a) == 1).all() and row["next_sentence_weights"] == 0
        record = SOURCE[shuffled(position % len(SOURCE), len(SOURCE), 2, position // len(SOURCE))]
        assert len(a) == min(30, len(record["tokens"]))


def test_random_part_goes_on_into_the_next_chunk():
    """At full length no pair is short of the target because a chunk ended, only because a document did."""
    source = make_source([[[10, 10, 9]] * 50 for _ in range(4)])
    for position in range(400):
        row = instance(source, settings_for(random_next_rate=1.0, short_sequence_rate=0.0), 1, position)
        _, b = parts(row)
        assert row["sequence_ids"].sum() == 32 or b[-1] % SENTENCE == 50 * 29 - 1


def test_nsp_with_one_document_is_an_error():
    with pytest.raises(UserError, match="second document"):
        for position in range(20):
            instance(make_source([[[9, 9, 9]] * 3]), settings_for(), 0, position)


def test_a_token_id_outside_the_vocabulary_names_the_record():
    with pytest.raises(UserError, match=r"token id \d+ .* record \d+ .* vocabulary of 30522"):
        instance(SOURCE, settings_for(vocab_size=30_522, pairing="none"), 0, 0)
        for position in range(1, 9):
            instance(SOURCE, settings_for(vocab_size=30_522, pairing="none"), 0, position)


@given(length_a=st.integers(1, 300), length_b=st.integers(1, 300), limit=st.integers(2, 300), seed=st.integers(0, 99))
def test_truncation_equals_the_originals_loop(length_a: int, length_b: int, limit: int, seed: int):
    a, b = _truncate(np.arange(length_a), np.arange(length_b), limit, _Draws(seed))
    want_a, want_b = length_a, length_b
    while want_a + want_b > limit:
        if want_a > want_b:
            want_a -= 1
        else:
            want_b -= 1
    assert (len(a), len(b)) == (want_a, want_b)
    assert (np.diff(a) == 1).all() and (np.diff(b) == 1).all()


@settings(max_examples=50)
@given(
    documents=st.lists(
        st.lists(st.lists(st.integers(1, 29), min_size=1, max_size=6), min_size=1, max_size=4), min_size=2, max_size=6
    ),
    pairing=st.sampled_from(["nsp", "sop", "none"]),
    length=st.sampled_from([8, 16, 32, 64]),
    position=st.integers(0, 10**12),
)
def test_any_source_gives_well_formed_rows(documents, pairing, length, position):
    source = make_source(documents)
    row = instance(source, settings_for(pairing, sequence_length=length), 0, position)
    assert all(row[key].shape == (length,) for key in ("input_ids", "token_type_ids", "position_ids", "sequence_ids"))
    a, b = parts(row)
    assert len(a) + len(b) <= length - 2


def test_draws_are_uniform():
    draws = _Draws(1, 2, 3)
    counts = Counter(draws.between(2, 11) for _ in range(20_000))
    assert set(counts) == set(range(2, 12))
    assert sum((n - 2_000) ** 2 / 2_000 for n in counts.values()) < 33.7  # chi square, 9 degrees: 1 in 10,000
    heads = [draws.heads(100) for _ in range(2_000)]
    assert abs(np.mean(heads) - 50) < 0.5 and abs(np.std(heads) - 5) < 0.4
    assert max(draws.heads(3) for _ in range(100)) == 3
