"""Batches for prediction: each item gets its own output, from few programs and with little padding."""

import itertools
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.backend import GPU, use_backend
from bert_jax.config import UserError
from bert_jax.data.batching.items import Item, Part
from bert_jax.inference.batching import Batching, ladder


def items_of(lengths, parts=None):
    """Item i is made of tokens i + 1, so that the sum of a row's tokens names it."""
    return [
        Item(tuple(Part(np.full(n, i + 1, np.int32), np.zeros(n, np.int32)) for _ in range(count)))
        for i, (n, count) in enumerate(zip(lengths, parts or itertools.repeat(1), strict=False))
    ]


class Program:
    """Remembers the shapes that it would have been compiled for."""

    def __init__(self):
        self.shapes = []

    def __call__(self, batch):
        groups, parts = batch["part_weights"].shape
        self.shapes.append((groups, parts, batch["input_ids"].shape[1]))
        return {"total": jnp.asarray(batch["input_ids"].reshape(groups, -1).sum(axis=1))}

    @property
    def places(self):
        return sum(rows * parts * length for rows, parts, length in self.shapes)


@given(st.integers(8, 2048))
def test_lengths_are_few_and_rise_to_the_longest(longest):
    lengths = ladder(longest)
    assert len(lengths) <= 8 and lengths[-1] == longest
    assert all(one < other <= max(2.6 * one, one + 8) for one, other in itertools.pairwise(lengths))
    assert all(length % 8 == 0 for length in lengths[:-1])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40), st.lists(st.integers(1, 3), min_size=40, max_size=40))
def test_each_item_gets_its_own_output(lengths, parts):
    program = Program()
    found = Batching(40, 8).run(program, items_of(lengths, parts))["total"]
    assert [int(x) for x in found] == [(i + 1) * n * parts[i] for i, n in enumerate(lengths)]
    assert {shape[0] for shape in program.shapes} <= {1, 8} and {shape[1] for shape in program.shapes} <= {1, 2, 4}


@given(st.lists(st.lists(st.integers(2, 512), max_size=300), min_size=1, max_size=12), st.sampled_from([1, 4, 64]))
def test_never_more_than_eight_lengths_whatever_comes(calls, batch_size):
    program, texts = Program(), Batching(512, batch_size)
    for lengths in calls:
        found = texts.run(program, items_of(lengths))
        assert len(found["total"]) == len(lengths)
    for alone in (True, False):
        assert len({length for rows, _, length in program.shapes if (rows == 1) == alone}) <= 8
    rows = {
        length: {r for r, _, other in program.shapes if other == length and r > 1} for _, _, length in program.shapes
    }
    assert all(len(different) <= 1 for different in rows.values()), "one program a length"


def test_a_batch_on_a_cpu_has_2048_tokens_and_elsewhere_as_many_as_asked_for():
    texts = Batching(512, 64)
    assert [texts.rows(1, length) for length in (16, 32, 64, 512)] == [64, 64, 32, 4]
    assert texts.rows(4, 512) == 2
    with use_backend(GPU):
        assert Batching(512, 64).rows(1, 512) == 64


def test_little_padding_on_texts_of_mixed_length():
    """Half of them sentences, half articles: at most an eighth of the places is padding; the same texts again need no
    new program."""
    random = np.random.default_rng(0)
    short, long = random.integers(4, 40, 400), np.minimum(random.integers(80, 700, 400), 512)
    texts, program, lengths = Batching(512, 64), Program(), [*short.tolist(), *long.tolist()]
    texts.run(program, items_of(lengths))
    assert sum(lengths) / program.places > 0.88
    shapes = set(program.shapes)
    texts.run(program, items_of(lengths[::-1]))
    assert set(program.shapes) == shapes


def test_no_program_for_little():
    """32 and 40 tokens: one length for both. One of 16 among texts of 512 would save a lot."""
    texts = Batching(512, 4)
    texts.run(Program(), items_of([40] * 20 + [33] * 20))
    assert texts.lengths == [40]
    texts.run(Program(), items_of([512] * 20 + [10] * 200))
    assert texts.lengths == [16, 40, 512]


@pytest.mark.parametrize(("count", "singles"), [(1, 1), (4, 4), (5, 0), (8, 0), (9, 1)])
def test_a_few_are_run_one_by_one(count, singles):
    program = Program()
    Batching(64, 8).run(program, items_of([20] * count))
    assert [shape for shape in program.shapes if shape[0] == 1] == [(1, 1, 24)] * singles


def test_declared_lengths_are_compiled_once_and_used_alone():
    program, texts = Program(), Batching(64, 8)
    texts.warm_up(program, [16, 32])
    assert sorted(program.shapes) == [(rows, 1, length) for rows in (1, 2, 8) for length in (16, 32)]
    known = set(program.shapes)
    for lengths in ([5] * 20, [30], [9, 31] * 10, [1]):
        texts.run(program, items_of(lengths))
    assert set(program.shapes) == known
    texts.run(program, items_of([40]))
    assert set(program.shapes) - known == {(1, 1, 64)}
    with pytest.raises(UserError, match="a length to warm up is 65; it can be 1 to 64 tokens"):
        texts.warm_up(program, [65])


def test_threads_share_the_lengths():
    texts, programs, wrong = Batching(512, 4), [Program() for _ in range(8)], []

    def work(number):
        random = np.random.default_rng(number)
        for _ in range(20):
            lengths = random.integers(1, 513, 30).tolist()
            found = texts.run(programs[number], items_of(lengths))["total"]
            wrong.extend(i for i, n in enumerate(lengths) if int(found[i]) != (i + 1) * n)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(texts.lengths) <= 8
    shapes = {shape for program in programs for shape in program.shapes if shape[0] > 1}
    assert {length for _, _, length in shapes} <= set(texts.lengths)


def test_declared_programs_are_chosen_by_the_padding_that_they_cost():
    program, texts = Program(), Batching(64, 16)
    texts.warm_up(program, [16, 64])
    for lengths, expected in (
        ([5], [(1, 16)]),
        ([60, 5], [(1, 64), (1, 16)]),
        ([5] * 3, [(4, 16)]),  # three rows of their own would cost 3 · (16 + 32), this one batch 4 · 16 + 32
        ([60] * 4 + [5] * 3, [(4, 64), (4, 16)]),
        ([5] * 20, [(16, 16), (4, 16)]),
    ):
        program.shapes.clear()
        found = texts.run(program, items_of(lengths))["total"]
        assert [int(x) for x in found] == [(i + 1) * n for i, n in enumerate(lengths)]
        assert sorted(((rows, n) for rows, _, n in program.shapes), reverse=True) == sorted(expected, reverse=True)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=9))
@settings(max_examples=30, deadline=None)
def test_batches_of_any_shape_cost_least(lengths):
    """Against every way to cut the sorted texts: a batch costs its places, and 32 for itself."""
    program, texts = Program(), Batching(64, 4, any_shape=True)
    found = texts.run(program, items_of(lengths))["total"]
    assert [int(x) for x in found] == [(i + 1) * n for i, n in enumerate(lengths)]
    assert all(rows <= 4 for rows, _, _ in program.shapes)
    falling = sorted(lengths, reverse=True)

    def least(start):
        if start == len(falling):
            return 0
        ends = range(start + 1, min(start + 4, len(falling)) + 1)
        return min((end - start) * falling[start] + 32 + least(end) for end in ends)

    assert program.places + 32 * len(program.shapes) == least(0)
