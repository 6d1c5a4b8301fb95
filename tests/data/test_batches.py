"""Batches by length: every item once an epoch, few shapes, little padding, and the same rows after a restart."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.config import UserError
from bert_jax.data.batches import (
    Item,
    Part,
    TrainBatches,
    choose_shapes,
    ordered_batches,
    shapes_worth_their_programs,
)
from experiments.base import get_config


def make_items(sizes):
    """One item a tuple of lengths; token ids say which item and part they come from."""
    items = []
    for number, lengths in enumerate(sizes):
        parts = tuple(
            Part(np.full(length, 100 * number + place, np.int32), np.ones(length, np.int32))
            for place, length in enumerate(lengths)
        )
        tokens = {"marks": np.arange(lengths[0], dtype=np.int32)}
        items.append(Item(parts, {"labels": np.asarray(number % 3, np.int32)}, tokens))
    return items


def make_config(batch_size=4, max_length=64, buckets=4):
    config = get_config()
    config.data.update(sequence_length=max_length, buckets=buckets, prefetch=2)
    config.train.batch_size = batch_size
    return config


def epochs(items, config, count, start=0, **process):
    shapes = choose_shapes(items, config.train.batch_size, config.data.buckets, config.data.sequence_length)
    batches = TrainBatches(items, shapes, config, fingerprint="x", start_step=start, **process)
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def numbers(batches):
    return [sorted(batch["item_ids"][batch["item_weights"] > 0].tolist()) for batch in batches]


def test_every_item_once_an_epoch_and_another_order_in_the_next():
    items = make_items([(n,) for n in range(3, 33)])  # 30 items, 8 batches, the last of an epoch with two rows
    config = make_config()
    batches = epochs(items, config, 16)
    first, second = numbers(batches[:8]), numbers(batches[8:])
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == list(range(30))
    assert sorted(map(len, first)) == [2, *[4] * 7]
    assert first != second
    # Items of like length share a batch: within 50 batches all are sorted, so a batch spans four lengths.
    assert all(max(batch) - min(batch) == len(batch) - 1 for batch in first)


def test_a_row_holds_its_item_and_nothing_else():
    items = make_items([(5, 3), (7,), (2, 9, 4)])
    batch = epochs(items, make_config(batch_size=4), 1)[0]
    assert batch["input_ids"].shape == (4, 3, 12)  # the longest has 9; lengths are multiples of 4
    for row, number in enumerate(batch["item_ids"][:3]):
        item = items[number]
        assert batch["labels"][row] == number % 3
        np.testing.assert_array_equal(
            batch["marks"][row, 0, : len(item.parts[0].ids)], np.arange(len(item.parts[0].ids))
        )
        assert batch["part_weights"][row].sum() == len(item.parts)
        for place, part in enumerate(item.parts):
            size = len(part.ids)
            np.testing.assert_array_equal(batch["input_ids"][row, place, :size], part.ids)
            assert batch["sequence_ids"][row, place].tolist() == [1] * size + [0] * (batch["input_ids"].shape[2] - size)
    assert batch["item_ids"][3] == -1 and batch["item_weights"].tolist() == [1, 1, 1, 0]
    assert batch["sequence_ids"][3].sum() == 0


def test_resuming_in_the_middle_of_an_epoch_gives_the_same_rows():
    items = make_items([(n % 17 + 2,) for n in range(41)])
    config = make_config()
    through, resumed = epochs(items, config, 20), epochs(items, config, 7, start=13)
    for one, other in zip(through[13:], resumed, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one)


def test_processes_share_out_the_same_batches():
    items = make_items([(n % 17 + 2,) for n in range(41)])
    config = make_config()
    whole = epochs(items, config, 12)
    halves = [epochs(items, config, 12, process_index=i, process_count=2) for i in range(2)]
    for batch, *parts in zip(whole, *halves, strict=True):
        for key in batch:
            np.testing.assert_array_equal(batch[key], np.concatenate([part[key] for part in parts]))


def test_evaluation_gives_every_item_once_the_longest_first():
    items = make_items([(n % 17 + 2,) for n in range(41)])
    config = make_config()
    shapes = choose_shapes(items, 4, 4, 64)
    batches = list(ordered_batches(items, shapes, 8, config.data))
    assert sorted(itertools.chain(*numbers(batches))) == list(range(41))
    lengths = [batch["input_ids"].shape[2] for batch in batches]
    assert lengths == sorted(lengths, reverse=True) and {*lengths} <= {length for _, length in shapes}


def test_a_batch_that_the_processes_cannot_share_is_an_error():
    with pytest.raises(UserError, match=r"train\.batch_size = 4 is not a multiple of the 3 processes"):
        epochs(make_items([(3,)] * 9), make_config(), 1, process_index=0, process_count=3)


@given(
    st.lists(st.lists(st.integers(2, 60), min_size=1, max_size=5), min_size=1, max_size=60),
    st.integers(1, 8),
    st.integers(1, 6),
)
def test_few_shapes_that_fit_every_batch(sizes, max_shapes, batch_size):
    items = make_items(sizes)
    shapes = choose_shapes(items, batch_size, max_shapes, 60)
    assert 1 <= len(shapes) <= max_shapes
    assert all(length <= 60 for _, length in shapes)
    assert shapes[-1][0] >= max(map(len, sizes)) and shapes[-1][1] >= max(max(lengths) for lengths in sizes)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 3))
def test_no_other_choice_of_lengths_pads_less(lengths, number):
    """With batches of one item a batch is as long as its item; all choices of lengths are tried."""
    items = make_items([(length,) for length in lengths])
    rounded = [-(-length // 4) * 4 for length in lengths]
    rounded.append(max(rounded))  # the length that fits any batch counts once more
    chosen = [length for _, length in choose_shapes(items, 1, number, 64)]
    cost = lambda lengths: sum(min(bound for bound in lengths if bound >= length) for length in rounded)  # noqa: E731
    choices = itertools.combinations(sorted(set(rounded)), min(number, len(set(rounded))))
    assert cost(chosen) == min(cost(choice) for choice in choices if max(choice) == max(rounded))


def test_a_shape_that_saves_less_than_it_costs_is_not_made():
    items = make_items([(8,)] * 40 + [(16,)] * 40)
    # In batches of four 10 batches of 8 are padded to 16 by one shape alone: 320 tokens of an epoch.
    assert choose_shapes(items, 4, 4, 64) == [(1, 8), (1, 16)]
    assert choose_shapes(items, 4, 4, 64, worth=319) == [(1, 8), (1, 16)]
    assert choose_shapes(items, 4, 4, 64, worth=321) == [(1, 16)]


def test_an_evaluation_uses_no_more_programs_than_pay():
    items = make_items([(8,)] * 16 + [(16,)] * 8 + [(32,)] * 4)
    shapes = [(1, 8), (1, 16), (1, 32), (1, 64)]  # that of 64 is of training only
    # Batches of four, sorted: one of 32, two of 16, four of 8 tokens. Without the shape of 16 two cost 64 more each.
    few = lambda worth: shapes_worth_their_programs(shapes, items, 4, worth=worth)  # noqa: E731
    assert few(0) == few(127) == [(1, 8), (1, 16), (1, 32)]
    assert few(129) == [(1, 8), (1, 32)]
    assert few(385) == [(1, 32)]
    several = make_items([(4, 4, 4), (30,)])
    assert shapes_worth_their_programs([(1, 32), (3, 8), (3, 32)], several, 2, worth=0) == [(3, 32)]
