"""What a run says about its speed: operations, bytes, peak memory, the limit, and what is not counted as training."""

import json
import logging
import time
from functools import wraps

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.models.config import BertConfig
from bert_jax.models.cost import training_bytes
from bert_jax.options import default_config
from bert_jax.sharding import make_mesh
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training import throughput
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint
from bert_jax.training.loop import train
from bert_jax.training.memory import peak_bytes
from bert_jax.training.step import TrainState, TrainStep, batch_shape, means
from bert_jax.training.throughput import Roofline, Throughput, state_traffic

ROOFLINE = Roofline(flops=8e12, bytes=4e9, peak=2e12, bandwidth=1e9)


def test_bytes_of_activations_by_hand():
    config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    # A token of a layer, in values: 6 × 4 projections, 4 × 4 + 2 × 2 × 8 attention, 2 × 4 + 2 × 16 feed-forward: 112.
    # 5 rows of 8 tokens, 2 layers, 2 bytes, and the backward pass twice the forward one.
    assert training_bytes(config, 5, 8, fused_attention=False) == 112 * 5 * 8 * 2 * 2 * 3
    assert training_bytes(config, 5, 8, fused_attention=True) == (112 - 32) * 5 * 8 * 2 * 2 * 3


def test_bytes_of_the_state_by_hand():
    # 100 of parameters: read twice by the passes and once by the update, written; gradients written, read twice.
    assert state_traffic(100, 200) == 4 * 100 + 3 * 100 + 2 * 200
    assert state_traffic(100, 200, accumulation=3) == 8 * 100 + 7 * 100 + 2 * 200


def test_the_limit_that_binds_is_named():
    assert ROOFLINE.intensity == 2000
    # 8 TFLOP at 2 TFLOP/s take 4 s, 4 GB at 1 GB/s as long: one more of either decides.
    products = Roofline(flops=9e12, bytes=4e9, peak=2e12, bandwidth=1e9)
    memory = Roofline(flops=8e12, bytes=5e9, peak=2e12, bandwidth=1e9)
    assert "the limit is matrix products, at 4.5 s" in str(products)
    assert "the limit is memory, at 5 s" in str(memory)
    assert "1.6e+03 FLOP per byte; this machine's limits meet at 2e+03" in str(memory)


def test_virtual_devices_share_what_was_measured(monkeypatch):
    monkeypatch.setattr(throughput, "_measured_bandwidth", lambda: 5e9)
    assert jax.device_count() == 8
    assert throughput.copy_bandwidth(mesh_of(-1)) == 5e9


def test_the_first_run_and_slow_ones_do_not_count(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 12.0, 20.0, 24.0])  # start and end of three runs
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    runs = []

    def run():
        runs.append(1)
        return jnp.zeros(())

    assert throughput._seconds(run, repeats=3) == 2.0
    assert len(runs) == 4


def test_peak_bytes_count_donated_memory_once():
    x = jax.ShapeDtypeStruct((1024,), jnp.float32)
    add = lambda x: x + 1  # noqa: E731
    assert peak_bytes(jax.jit(add).lower(x).compile()) == 2 * 4096
    assert peak_bytes(jax.jit(add, donate_argnums=0).lower(x).compile()) == 4096


class Counting:
    """What `Throughput` and `TrainStep` need of a task."""

    tokens_per_step, flops_per_step, bytes_per_step = 32, 2e11, 0
    config = ConfigDict({"train": {"batch_size": 2, "peak_tflops": 2.0, "accumulation": 1}})

    def means(self, sums):
        return {"loss": float(sums["loss"][0] / sums["loss"][1])}


def mesh_of(devices):
    config = default_config().mesh
    config.data = devices
    return make_mesh(config)


def batch_of(length):
    return {"input_ids": jnp.ones((2, length))}


KEY = jax.random.key(0)


class Run:
    """A loop without data: launches steps and tells a `Throughput` of them."""

    def __init__(self, function, state):
        self.watch, self.state, self.pending = Throughput(), TrainState(jnp.int32(0), {"w": state}, ()), []
        mesh = mesh_of(1)

        @wraps(function)
        def whole(state, constants, batch, key):
            changed, sums = function(state.parameters["w"], constants, batch, key)
            return TrainState(state.step + 1, {"w": changed}, ()), sums

        self.launch = TrainStep(jax.jit(whole, donate_argnums=0), mesh, self.watch)
        self.watch.begin(Counting(), TrainState(jnp.int32(0), {"w": jnp.zeros(5)}, ()), mesh)  # pyright: ignore

    def step(self, length, factor=2.0, wait=0.0):
        self.watch.before_batch()
        start = time.perf_counter()
        time.sleep(wait)
        self.waited = time.perf_counter() - start  # a busy machine sleeps longer
        self.watch.before_step(batch_of(length))
        self.state, sums = self.launch(self.state, {"factor": jnp.float32(factor)}, batch_of(length), KEY)
        self.pending.append(sums)
        self.watch.after_step(sums)
        return sums

    def report(self, step):
        metrics = means(Counting(), self.pending, step) | self.watch.report()  # pyright: ignore
        self.pending = []
        return metrics


def step(state, constants, batch, key):
    total = jnp.sum(batch["input_ids"]) * constants["factor"]
    return state + 1, {"loss": (total, jnp.float32(batch["input_ids"].size))}


def test_one_compilation_a_shape_and_its_peak(caplog):
    caplog.set_level(logging.WARNING, "jax")  # main, which other tests call, silences it
    caplog.set_level(logging.INFO)  # the last call is the one that sets the handler's level
    run = Run(step, jnp.zeros(1000))
    with jax.log_compiles():
        for length in (4, 4, 4000, 4):
            run.step(length)
    assert len([m for m in caplog.messages if m.startswith("Finished XLA compilation of jit(step)")]) == 2
    assert [m for m in caplog.messages if "batches of" in m] == [
        m for m in caplog.messages if "batches of 2×4:" in m or "batches of 2×4000:" in m
    ]
    assert sum("the limit is" in m for m in caplog.messages) == 1
    metrics = run.report(4)
    assert metrics["loss"] == 2.0
    large, small = (run.watch.peaks[batch_shape(batch_of(length))] for length in (4000, 4))
    assert metrics["peak_bytes"] == large > 4 * (1000 + 2 * 4000)
    run.step(4)
    assert run.report(5)["peak_bytes"] == small < 4 * (1000 + 2 * 4000)


def test_neither_compiling_nor_evaluating_is_training_time():
    def slow_to_compile(state, constants, batch, key):
        time.sleep(0.5)  # while it is traced
        return step(state, constants, batch, key)

    run = Run(slow_to_compile, jnp.zeros(3))
    run.step(4, wait=0.05)
    metrics = run.report(1)
    assert 0.05 <= metrics["step_seconds"] < 0.45
    assert metrics["wait_share"] == pytest.approx(run.waited / metrics["step_seconds"], rel=0.2)
    assert metrics["tokens_per_second"] == pytest.approx(32 / metrics["step_seconds"])
    assert metrics["mfu"] == pytest.approx(0.1 / metrics["step_seconds"])
    run.step(4)
    run.watch.restart_clock()  # after an evaluation: what came before is reported, but no longer timed
    assert run.report(2).keys() == {"loss", "peak_bytes"}


def test_mfu_counts_the_devices_of_the_mesh(monkeypatch):
    assert throughput.peak_flops(3.0, mesh_of(2))[0] == 2 * 3e12  # of eight devices
    monkeypatch.setattr(throughput, "_measured_flops", lambda: 5e9)
    assert throughput.peak_flops(0.0, mesh_of(2))[0] == 5e9  # virtual devices share what was measured


def test_a_step_on_a_cpu_begins_when_the_one_before_has_ended():
    """Two at a time would hold their temporary memory twice."""

    def slow(state, constants, batch, key):
        return step(jax.lax.fori_loop(0, 20_000, lambda _, x: jnp.sin(x), state), constants, batch, key)

    run = Run(slow, jnp.zeros(1000))
    sums, begun_early, program = run.step(4), [], run.launch.step

    def launch(*arguments):
        begun_early.append(not all(x.is_ready() for x in jax.tree.leaves(sums)))
        return program(*arguments)

    run.launch.step = launch  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(3):
        sums = run.step(4)
        assert not sums["loss"][0].is_ready()  # this one still runs after its launch
    assert begun_early == [False, False, False]


def test_a_loss_that_is_no_number_is_said():
    run = Run(step, jnp.zeros(3))
    run.step(4, factor=np.nan)
    with pytest.raises(UserError, match="the loss is nan at step 7"):
        run.report(7)


def test_a_run_logs_its_peak_and_its_limit(small_config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    small_config.train.steps = 2
    task = Pretraining.over(small_config, prepare(small_config.data, 0, progress=False))
    train(task, small_config, tmp_path, [Throughput()])  # pyright: ignore[reportArgumentType]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train_line = next(line for line in lines if line["split"] == "train")
    parameters = read_checkpoint(find_checkpoint(str(tmp_path))).parameters
    held = 3 * sum(x.nbytes for x in parameters.values())  # with Adam's two moments
    assert held < train_line["peak_bytes"] < 100 * held
    assert any("the limit is" in message for message in caplog.messages)
    assert any("batches of 16×32: waited" in message for message in caplog.messages)
