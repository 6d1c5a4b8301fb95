"""What a run says about its speed: operations, bytes, peak memory, the limit, and what is not counted as training."""

import json
import logging
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.models.config import BertConfig, training_bytes
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training import throughput
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint
from bert_jax.training.loop import train
from bert_jax.training.throughput import Programs, Roofline, Window, peak_bytes, state_traffic

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
    assert "1.6e+03 FLOP a byte where this machine turns at 2e+03" in str(memory)


def test_virtual_devices_share_what_was_measured(monkeypatch):
    monkeypatch.setattr(throughput, "_measured_bandwidth", lambda: 5e9)
    assert jax.device_count() == 8
    assert throughput.copy_bandwidth() == 5e9


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
    """What `Window` needs of a task."""

    tokens_per_step, flops_per_step = 32, 2e11

    def means(self, sums):
        return {"loss": float(sums["loss"][0] / sums["loss"][1])}


def batch_of(length):
    return {"input_ids": jnp.ones((2, length))}


def window_of(function):
    return Window(Counting(), 2, Programs(jax.jit(function, donate_argnums=0), ROOFLINE))  # pyright: ignore


def step(state, batch, key):
    return state + 1, {"loss": (jnp.sum(batch["input_ids"]) * key, jnp.float32(batch["input_ids"].size))}


def test_one_compilation_a_shape_and_its_peak(caplog):
    window, state = window_of(step), jnp.zeros(1000)
    caplog.set_level(logging.WARNING, "jax")  # main, which other tests call, silences it
    caplog.set_level(logging.INFO)  # the last call is the one that sets the handler's level
    with jax.log_compiles():
        for length in (4, 4, 4000, 4):
            state, sums = window.launch(state, batch_of(length), jnp.float32(2))
            window.add(sums)
    assert len([m for m in caplog.messages if m.startswith("Finished XLA compilation of jit(step)")]) == 2
    assert [m for m in caplog.messages if "batches of" in m] == [
        m for m in caplog.messages if "batches of 2×4:" in m or "batches of 2×4000:" in m
    ]
    assert sum("the limit is" in m for m in caplog.messages) == 1
    metrics = window.flush(4)
    assert metrics["loss"] == 2.0
    large, small = (window.programs.peak_bytes(batch_of(length)) or 0 for length in (4000, 4))
    assert metrics["peak_bytes"] == large > 4 * (1000 + 2 * 4000)
    state, sums = window.launch(state, batch_of(4), jnp.float32(2))
    window.add(sums)
    assert window.flush(5)["peak_bytes"] == small < 4 * (1000 + 2 * 4000)


def test_neither_compiling_nor_evaluating_is_training_time():
    def slow_to_compile(state, batch, key):
        time.sleep(0.5)  # while it is traced
        return step(state, batch, key)

    window = window_of(slow_to_compile)
    _, sums = window.launch(jnp.zeros(3), batch_of(4), jnp.float32(1))
    window.add(sums)
    with window.waiting():
        time.sleep(0.05)
    metrics = window.flush(1)
    assert 0.05 <= metrics["step_seconds"] < 0.45
    assert metrics["wait_share"] == pytest.approx(0.05 / metrics["step_seconds"], rel=0.2)
    assert metrics["tokens_per_second"] == pytest.approx(32 / metrics["step_seconds"])
    assert metrics["mfu"] == pytest.approx(0.1 / metrics["step_seconds"])
    window.add(sums)
    window.restart_clock()  # after an evaluation: what came before is reported, but no longer timed
    assert window.flush(2).keys() == {"loss", "peak_bytes"}


def test_a_step_on_a_cpu_begins_when_the_one_before_has_ended():
    """Two at a time would hold their temporary memory twice."""

    def slow(state, batch, key):
        return step(jax.lax.fori_loop(0, 20_000, lambda _, x: jnp.sin(x), state), batch, key)

    window, state = window_of(slow), jnp.zeros(1000)
    state, sums = window.launch(state, batch_of(4), jnp.float32(1))
    program, begun_early = window.programs.step, []

    def launch(*arguments):
        begun_early.append(not all(x.is_ready() for x in jax.tree.leaves(window.sums)))
        return program(*arguments)

    window.programs.step = launch  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(3):
        window.add(sums)
        state, sums = window.launch(state, batch_of(4), jnp.float32(1))
        assert not sums["loss"][0].is_ready()  # this one goes on after its launch
    assert begun_early == [False, False, False]


def test_a_loss_that_is_no_number_is_said():
    window = window_of(step)
    _, sums = window.launch(jnp.zeros(3), batch_of(4), jnp.float32(np.nan))
    window.add(sums)
    with pytest.raises(UserError, match="the loss is nan at step 7"):
        window.flush(7)


def test_a_run_logs_its_peak_and_its_limit(small_config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    small_config.train.steps = 2
    task = Pretraining.over(small_config, prepare(small_config.data, 0, progress=False))
    train(task, small_config, tmp_path)  # pyright: ignore[reportArgumentType]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train_line = next(line for line in lines if line["split"] == "train")
    parameters = read_checkpoint(find_checkpoint(str(tmp_path))).parameters
    held = 3 * sum(x.nbytes for x in parameters.values())  # with Adam's two moments
    assert held < train_line["peak_bytes"] < 100 * held
    assert any("the limit is" in message for message in caplog.messages)
    assert any("batches of 16×32: compiled in" in message for message in caplog.messages)
