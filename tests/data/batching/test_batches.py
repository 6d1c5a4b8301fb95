"""Batches: every item once an epoch, few shapes, little padding, and the same rows after a restart."""

import itertools

import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.data.batching.batch_order import EpochOrder, sorted_batches
from bert_jax.data.batching.batches import ordered_batches, train_batches
from bert_jax.data.batching.items import Item, Part
from bert_jax.data.batching.shapes import Limits, packed_shapes, padded_shapes
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


def epochs(items, config, count, start=0, packed=False, **process):
    size = config.train.batch_size
    limits = size, Limits(config.data.buckets, config.data.sequence_length)
    order = EpochOrder(items, size, config.seed, mixed=packed)
    some = EpochOrder(items, size, 0, mixed=packed).epoch(0)
    shapes = packed_shapes(items, some, *limits, multiple=2) if packed else padded_shapes(items, some, *limits)
    batches = train_batches(items, shapes, order, config, fingerprint="x", start_step=start, **process)
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def numbers(batches):
    return [sorted(batch["item_ids"][batch["item_weights"] > 0].tolist()) for batch in batches]


@pytest.mark.parametrize("packed", [False, True])
def test_every_item_once_an_epoch_and_another_order_in_the_next(packed):
    items = make_items([(n,) for n in range(3, 33)])  # 30 items, 8 batches
    batches = epochs(items, make_config(), 16, packed=packed)
    first, second = numbers(batches[:8]), numbers(batches[8:])
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == list(range(30))
    assert first != second
    if packed:  # one each of the eight longest, of the next eight, …, and of the last six
        assert sorted(map(len, first)) == [3] * 2 + [4] * 6
        assert all([(29 - i) // 8 for i in reversed(batch)] == list(range(len(batch))) for batch in first)
    else:  # within 50 batches all are sorted, so a batch spans four lengths; the last of an epoch has two rows
        assert sorted(map(len, first)) == [2, *[4] * 7]
        assert all(max(batch) - min(batch) == len(batch) - 1 for batch in first)


def test_a_row_holds_its_item_and_nothing_else():
    items = make_items([(5, 3), (7,), (2, 9, 4)])
    batch = epochs(items, make_config(batch_size=4), 1)[0]
    assert batch["input_ids"].shape == (4 * 3, 12)  # the longest has 9; lengths are multiples of 4
    assert batch["part_weights"].shape == (4, 3) and batch["first_tokens"].tolist() == [[0]] * 4
    for group, number in enumerate(batch["item_ids"][:3, 0]):
        item = items[number]
        assert batch["labels"][group, 0] == number % 3
        np.testing.assert_array_equal(
            batch["marks"][3 * group, : len(item.parts[0].ids)], np.arange(len(item.parts[0].ids))
        )
        assert batch["part_weights"][group].sum() == len(item.parts)
        for row in range(3):
            ids = item.parts[row].ids.tolist() if row < len(item.parts) else []
            padding = [0] * (12 - len(ids))
            assert batch["input_ids"][3 * group + row].tolist() == ids + padding
            assert batch["sequence_ids"][3 * group + row].tolist() == [1] * len(ids) + padding
    assert batch["item_ids"][3, 0] == -1 and batch["item_weights"].tolist() == [[1], [1], [1], [0]]
    assert batch["sequence_ids"][3 * 3 :].sum() == 0


def test_items_that_share_a_row_lie_one_after_the_other():
    items = make_items([(n % 9 + 2,) for n in range(64)])
    for batch in epochs(items, make_config(batch_size=16), 4, packed=True):
        assert batch["item_ids"].shape[1] > 1 and batch["input_ids"].shape[0] < 16
        for row, places in enumerate(batch["item_ids"]):
            expected = {name: [] for name in ("input_ids", "token_type_ids", "position_ids", "sequence_ids", "marks")}
            for place, number in enumerate(places[places >= 0]):
                (part,), size = items[number].parts, items[number].length
                assert batch["first_tokens"][row, place] == len(expected["input_ids"])
                assert batch["labels"][row, place] == number % 3 and batch["item_weights"][row, place] == 1
                expected["input_ids"] += part.ids.tolist()
                expected["token_type_ids"] += part.type_ids.tolist()
                expected["position_ids"] += range(size)
                expected["sequence_ids"] += [place + 1] * size
                expected["marks"] += range(size)
            for name, values in expected.items():
                assert batch[name][row].tolist() == values + [0] * (batch[name].shape[1] - len(values)), name


@pytest.mark.parametrize("packed", [False, True])
def test_resuming_in_the_middle_of_an_epoch_gives_the_same_rows(packed):
    items = make_items([(n % 17 + 2,) for n in range(41)])
    config = make_config()
    through = epochs(items, config, 20, packed=packed)
    for one, other in zip(through[13:], epochs(items, config, 7, start=13, packed=packed), strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("packed", [False, True])
def test_processes_share_out_the_same_batches(packed):
    items = make_items([(n % 17 + 2,) * (1 if packed else n % 3 + 1) for n in range(81)])
    config = make_config(batch_size=8)
    whole = epochs(items, config, 12, packed=packed)
    assert packed or {len(batch["input_ids"]) for batch in whole} >= {8 * 3}  # parts of items, never apart
    halves = [epochs(items, config, 12, packed=packed, process_index=i, process_count=2) for i in range(2)]
    for batch, *parts in zip(whole, *halves, strict=True):
        for key in batch:
            np.testing.assert_array_equal(batch[key], np.concatenate([part[key] for part in parts]))


@pytest.mark.parametrize("packed", [False, True])
def test_evaluation_gives_every_item_once(packed):
    items = make_items([(n % 17 + 2,) for n in range(41)])
    config = make_config()
    config.eval.batch_size = 8
    order = sorted_batches(items, 8, mixed=packed)
    shapes = (packed_shapes if packed else padded_shapes)(items, order, 8, Limits(4, 64))
    batches = list(ordered_batches(items, shapes, order, config))
    assert sorted(itertools.chain(*numbers(batches))) == list(range(41))
    lengths = [batch["input_ids"].shape[1] for batch in batches]
    assert {*lengths} <= {shape.tokens for shape in shapes}
    assert packed or lengths == sorted(lengths, reverse=True)  # the longest first


def test_a_batch_that_the_processes_cannot_share_is_an_error():
    with pytest.raises(UserError, match=r"train\.batch_size = 4 is not a multiple of the 3 processes"):
        epochs(make_items([(3,)] * 9), make_config(), 1, process_index=0, process_count=3)
