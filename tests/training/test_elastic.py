"""Another number of processes or devices in the middle of an epoch: no example twice, none lost, the same curve."""

import itertools
import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax import modes
from bert_jax.data.batching.batch_order import EpochOrder
from bert_jax.data.batching.batches import train_batches
from bert_jax.data.batching.items import Item, Part
from bert_jax.data.batching.reader import Share
from bert_jax.data.batching.shapes import Limits, packed_shapes, padded_shapes
from experiments.base import get_config
from tests.processes import ROOT, finished, metrics, run

COUNTS = st.integers(1, 8)


@given(st.lists(st.tuples(COUNTS, st.integers(0, 5)), min_size=1, max_size=4), COUNTS, st.integers(1, 40))
def test_rows_follow_each_other_whatever_the_processes(starts, rows_each, records):
    """`starts`: (number of processes, steps) of each start of a run, which reads rows of the endless sequence."""
    batch_size = rows_each * math.lcm(*(count for count, _ in starts))
    step, seen = 0, []
    for count, steps in starts:
        shares = [Share(batch_size, index, count, "train.batch_size") for index in range(count)]
        for batch in range(step, step + steps):
            seen += [position for share in shares for position in share.positions(batch)]
        step += steps
        whole = [*range(batch_size)]
        assert [row for share in shares for row in whole[share.of(batch_size)]] == whole
    assert seen == [*range(step * batch_size)]
    epochs, rest = divmod(len(seen), records)
    times = np.bincount([position % records for position in seen], minlength=records)
    assert sorted(times.tolist()) == [epochs] * (records - rest) + [epochs + 1] * rest


@pytest.mark.parametrize("packed", [False, True])
def test_every_example_once_an_epoch_when_the_number_of_processes_changes_in_its_middle(packed):
    lengths = [3 + number % 17 for number in range(41)]
    items = [
        Item((Part(np.full(n, number, np.int32), np.zeros(n, np.int32)),), {"labels": np.asarray(0, np.int32)}, {})
        for number, n in enumerate(lengths)
    ]
    config = get_config()
    config.data.update(sequence_length=32, prefetch=2)
    config.train.batch_size = 8
    order = EpochOrder(items, 8, config.seed, mixed=packed)
    limits = 8, Limits(4, 32)
    shapes = packed_shapes if packed else padded_shapes
    shapes = shapes(items, order.epoch(0), *limits, **({"multiple": 4} if packed else {}))
    read, step = [], 0
    for count, steps in ((2, 4), (1, 3), (4, 5)):  # 12 steps are two epochs of 6 batches
        readers = [
            train_batches(
                *(items, shapes, order, config), fingerprint="x", start_step=step, process_index=i, process_count=count
            )
            for i in range(count)
        ]
        for _ in range(steps):
            parts = [next(reader)["item_ids"] for reader in readers]
            read.append([number for part in parts for number in part[part >= 0].tolist()])
        step += steps
        assert {reader.state()["step"] for reader in readers} == {step}
        for reader in readers:
            reader.close()
    for epoch in (read[:6], read[6:]):
        assert sorted(itertools.chain(*epoch)) == [*range(41)]
    assert [sorted(batch) for batch in read] == [sorted(order(number).tolist()) for number in range(12)]


def losses(workdir):
    return [(line["step"], line["split"], line["loss"]) for line in metrics(workdir)]


def assert_same_curve(workdir, expected):
    found = losses(workdir)
    assert [line[:2] for line in found] == [line[:2] for line in expected]
    np.testing.assert_allclose([line[2] for line in found], [line[2] for line in expected], rtol=1e-5)


@pytest.fixture
def pretraining(small_config):
    """A run of 8 steps, on the meshes and until the steps that a test sets."""
    small_config.model.dtype = "float32"
    small_config.train.log_every = 1
    small_config.eval.every = small_config.checkpoint.every = 2
    small_config.model.layers = "scan"
    small_config.mesh.smallest = 0
    return small_config


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_continues_on_one_and_on_four_times_two(pretraining, tmp_path):
    def train(name, steps, **mesh):
        config = pretraining.copy_and_resolve_references()
        config.mesh.update(mesh)
        config.train.steps = steps
        assert modes.train(config, tmp_path / name) == 0

    train("whole", 8, data=8)
    train("parts", 2, data=8)
    train("parts", 4, data=1)
    train("parts", 6, data=4, fsdp=2)
    train("parts", 8, data=1, fsdp=2, tensor=2)
    assert_same_curve(tmp_path / "parts", losses(tmp_path / "whole"))


COUNTING = """
import hashlib, json, os
from bert_jax.tasks.pretraining import Pretraining

class Counting(Pretraining):
    # Writes which rows each step has read: their digests, in order, of each part of the batch.
    def train_batches(self, start_step, number, count):
        return Reader(super().train_batches(start_step, number, count), number)

class Reader:
    def __init__(self, reader, number):
        self.reader, self.state, self.close, self.number = reader, reader.state, reader.close, number

    def __next__(self):
        step = self.reader.state()["step"]
        batch = next(self.reader)
        rows = zip(batch["input_ids"], batch["sequence_ids"])
        digests = [hashlib.sha1(ids.tobytes() + sequences.tobytes()).hexdigest()[:12] for ids, sequences in rows]
        with open(os.environ["COUNTING"] + f".{self.number}", "a") as file:
            file.write(json.dumps([step, digests]) + chr(10))
        return batch
"""


@pytest.mark.slow
def test_two_processes_then_one_then_four_read_every_row_once(pretraining, command_line, tmp_path, monkeypatch):
    (tmp_path / "counting_task.py").write_text(COUNTING)

    def train(name, start, steps, count, devices_each, **mesh):
        config = pretraining.copy_and_resolve_references()
        config.mesh.update({"data": -1} | mesh)
        config.train.steps = steps
        (tmp_path / "rows" / name).mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("COUNTING", str(tmp_path / "rows" / name / str(start)))
        command = [*command_line(config, tmp_path / name), "--config.task=counting_task.Counting"]
        run(["env", f"PYTHONPATH={tmp_path}:{ROOT}", *command], tmp_path / name, count, devices_each)

    def rows(name):
        """{step: the rows of its batch, in order}"""
        found = {}
        for file in sorted((tmp_path / "rows" / name).iterdir()):  # by start, then by part of the batch
            for step, digests in map(json.loads, file.read_text().splitlines()):
                found[step] = found.get(step, []) + digests
        return found

    train("whole", 0, 8, 1, 2)
    train("parts", 0, 2, 2, 1)
    train("parts", 2, 4, 1, 2)
    train("parts", 4, 6, 4, 1, data=2, fsdp=2)
    train("parts", 6, 8, 2, 2, data=1, fsdp=2, tensor=2)
    expected = rows("whole")
    assert rows("parts") == expected and sorted(expected) == [*range(8)]
    assert all(len({*batch}) == len(batch) == 16 for batch in expected.values())
    assert_same_curve(tmp_path / "parts", losses(tmp_path / "whole"))


PERMUTED = """
import os
import jax
import numpy as np
from jax.experimental import multihost_utils
from bert_jax.backend import backend_of
from bert_jax.sharding import Mesh, to_mesh
from bert_jax.training.processes import join_processes, joined, parts_of_batch
join_processes(os.environ, 120)
devices = np.asarray(jax.devices())
batch = {"ids": np.arange(24).reshape(8, 3), "weights": np.arange(8.0)}
orders = ([0, 2, 1, 3], (4, 1, 1)), ([2, 0, 1, 3], (2, 1, 2)), ([0, 2, 3, 1], (1, 2, 2)), ([3, 2, 1, 0], (2, 2, 1))
for order, axes in orders:
    placed = devices[np.asarray(order)].reshape(axes)
    mesh = Mesh(jax.sharding.Mesh(placed, ("data", "fsdp", "tensor")), backend_of(placed.flat[0]))
    numbers, count = parts_of_batch(mesh.rows())
    size = 8 // count
    mine = joined([{k: v[size * n : size * (n + 1)] for k, v in batch.items()} for n in numbers])
    for name, whole in to_mesh(mesh, mine).items():
        found = multihost_utils.process_allgather(whole, tiled=True)
        np.testing.assert_array_equal(found, batch[name])
    print(axes, numbers, count)
print("all in place")
"""


@pytest.mark.slow
def test_rows_are_where_they_belong_on_a_mesh_whose_neighbours_are_of_several_processes(tmp_path):
    for status, text in finished([sys.executable, "-c", PERMUTED], tmp_path / "permuted", 2, 2):
        assert status == 0 and "all in place" in text, text[-3000:]
