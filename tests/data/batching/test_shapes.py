"""Shapes of batches: few, each worth its program, the last of them fits everything."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.batching.batch_order import EpochOrder
from bert_jax.data.batching.items import Item, Part
from bert_jax.data.batching.shapes import Limits, Shape, arrange, fit, packed_shapes, padded_shapes


def make_items(sizes):
    """One item a tuple of lengths."""
    return [Item(tuple(Part(np.zeros(n, np.int32), np.zeros(n, np.int32)) for n in lengths)) for lengths in sizes]


def padded(items, batch_size, max_shapes, max_length, break_even=0.0):
    batches = EpochOrder(items, batch_size, 0, mixed=False).epoch(0)
    limits = Limits(max_shapes, max_length, break_even_tokens=break_even)
    return [shape[1:3] for shape in padded_shapes(items, batches, batch_size, limits)]


@given(
    st.lists(st.lists(st.integers(2, 60), min_size=1, max_size=5), min_size=1, max_size=60),
    st.integers(1, 8),
    st.integers(1, 6),
)
def test_few_shapes_that_fit_every_batch(sizes, max_shapes, batch_size):
    shapes = padded(make_items(sizes), batch_size, max_shapes, 60)
    assert 1 <= len(shapes) <= max_shapes
    assert all(length <= 60 for _, length in shapes)
    assert shapes[-1][0] >= max(map(len, sizes)) and shapes[-1][1] >= max(max(lengths) for lengths in sizes)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=60),
    st.integers(1, 8),
    st.integers(1, 6),
)
def test_few_shapes_of_two_lengths_that_fit_every_batch(sizes, max_shapes, batch_size):
    items = [
        Item((Part(np.zeros(n, np.int32), np.zeros(n, np.int32)),), target=np.zeros(t, np.int32)) for n, t in sizes
    ]
    order = EpochOrder(items, batch_size, 0, mixed=False)
    shapes = padded_shapes(items, order.epoch(0), batch_size, Limits(max_shapes, 64))
    assert 1 <= len(shapes) <= max_shapes
    assert shapes[-1][2:] == (max(n for n, _ in sizes), 1, max(t for _, t in sizes))
    for batch in [*order.epoch(0), *order.epoch(1)]:
        shape, rows = fit([items[i] for i in batch], shapes)
        assert sorted(itertools.chain(*rows)) == list(range(len(batch)))
        assert all(items[i].length <= shape.tokens and items[i].target_length <= shape.targets for i in batch)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 3))
def test_no_other_choice_of_lengths_pads_less(lengths, number):
    """With batches of one item a batch is as long as its item; all choices of lengths are tried."""
    items = make_items([(length,) for length in lengths])
    rounded = [-(-length // 4) * 4 for length in lengths]
    rounded.append(max(rounded))  # the length that fits any batch counts once more
    chosen = [length for _, length in padded(items, 1, number, 64)]
    cost = lambda lengths: sum(min(bound for bound in lengths if bound >= length) for length in rounded)  # noqa: E731
    choices = itertools.combinations(sorted(set(rounded)), min(number, len(set(rounded))))
    assert cost(chosen) == min(cost(choice) for choice in choices if max(choice) == max(rounded))


def test_a_shape_that_saves_less_than_it_costs_is_not_made():
    items = make_items([(8,)] * 40 + [(16,)] * 40)
    # In batches of four 10 batches of 8 are padded to 16 by one shape alone: 320 tokens of an epoch.
    assert padded(items, 4, 4, 64) == [(1, 8), (1, 16)]
    assert padded(items, 4, 4, 64, break_even=319) == [(1, 8), (1, 16)]
    assert padded(items, 4, 4, 64, break_even=321) == [(1, 16)]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=24), st.integers(1, 6), st.integers(1, 8), st.integers(1, 80))
def test_rows_are_shared_within_bounds_or_not_at_all(lengths, rows, places, tokens):
    items = make_items([(length,) for length in lengths])
    found = arrange(items, Shape(rows, 1, tokens, places))
    if found is None:
        return
    assert sorted(itertools.chain(*found)) == list(range(len(items))) and len(found) == rows
    assert all(len(row) <= places and sum(lengths[i] for i in row) <= tokens for row in found)


@given(st.lists(st.integers(2, 60), min_size=1, max_size=200), st.integers(2, 24), st.integers(1, 4), st.integers(1, 8))
def test_packed_shapes_hold_every_batch_and_suit_the_devices(lengths, batch_size, multiple, max_shapes):
    batch_size *= multiple
    items = make_items([(length,) for length in lengths])
    batches = EpochOrder(items, batch_size, 0, mixed=True).epoch(0)
    shapes = packed_shapes(items, batches, batch_size, Limits(max_shapes, 60), multiple=multiple)
    assert 1 <= len(shapes) <= max_shapes and shapes[-1].items == 1 == shapes[-1].parts
    assert all(shape.rows % multiple == 0 and shape.tokens <= 1.5 * max(lengths) + 4 for shape in shapes)
    assert shapes[-1].tokens <= 60
    for batch in [*batches, *EpochOrder(items, batch_size, 7, mixed=True).epoch(3)]:
        fit([items[i] for i in batch], shapes)  # would raise StopIteration


def test_texts_of_mixed_lengths_fill_their_rows():
    """Of lengths as those of SST-2, log-normal with a mean of 13; batches of 32."""
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(2.3, 0.7, 2000)), 3, 66).astype(int)
    items = make_items([(length,) for length in lengths.tolist()])
    batches = EpochOrder(items, 32, 0, mixed=True).epoch(0)
    shapes = packed_shapes(items, batches, 32, Limits(8, 128, crossover_length=500, break_even_tokens=20_000))
    used = [fit([items[i] for i in batch], shapes)[0] for batch in EpochOrder(items, 32, 1, mixed=True).epoch(1)]
    assert len(shapes) == 2 and used.count(shapes[-1]) <= 1  # one program for all of the next epoch, but for a stray
    assert lengths.sum() / sum(shape.cost() for shape in used) > 0.85


def test_rows_are_longer_than_any_text_where_two_make_a_bad_fit():
    """Rows of the longest, 128, would be 88 % real."""
    lengths = np.random.default_rng(0).integers(40, 129, 2000)
    items = make_items([(length,) for length in lengths.tolist()])
    batches = EpochOrder(items, 32, 0, mixed=True).epoch(0)
    shapes = packed_shapes(items, batches, 32, Limits(8, 128, crossover_length=500, break_even_tokens=20_000))
    used = [fit([items[i] for i in batch], shapes)[0] for batch in EpochOrder(items, 32, 1, mixed=True).epoch(1)]
    assert 128 < shapes[0].tokens <= 192 and used.count(shapes[-1]) <= 1
    assert lengths.sum() / sum(shape.cost() for shape in used) > 0.95
