"""Phases of one run: other batches, rows and masks, one schedule, and the same bits however often it is interrupted."""

import json

import jax
import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint
from bert_jax.training.loop import train
from bert_jax.training.observer import Observer
from bert_jax.training.throughput import MEASURED, Throughput

PHASES = "0.25: batch_size=8 sequence_length=16 mask_rate=0.3; 0.75: batch_size=8; 1: batch_size=16"


def run(config, workdir, *observers):
    return train(Pretraining.with_data(config, None), config, workdir, observers)


def lines(workdir, split):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == split]


def curve(workdir, split):
    return [{name: x for name, x in line.items() if name not in MEASURED} for line in lines(workdir, split)]


def assert_same_run(workdir, other):
    saved, expected = (read_checkpoint(find_checkpoint(str(folder))) for folder in (workdir, other))
    for name, value in jax.device_get(saved.parameters).items():
        np.testing.assert_array_equal(value, expected.parameters[name], err_msg=name)
    assert [curve(workdir, split) for split in ("train", "eval")] == [curve(other, split) for split in ("train", "eval")]
    assert saved.run["data"] == expected.run["data"]


@pytest.fixture
def phased(small_config):
    small_config.train.update(steps=8, log_every=3, phases=PHASES)
    small_config.eval.update(every=8)
    small_config.checkpoint.update(every=8, keep=10)
    return small_config


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    made = {}

    def make(config):
        if not made:
            made["workdir"] = tmp_path_factory.mktemp("phases")
            run(config, made["workdir"], Throughput())
        return made["workdir"]

    return make


def test_each_phase_reports_its_own_tokens_and_evaluations_are_those_of_the_config(phased, uninterrupted):
    workdir = uninterrupted(phased)
    found = lines(workdir, "train")
    assert [line["step"] for line in found] == [2, 3, 6, 8]  # every 3 steps, and where a phase ends
    tokens = [line["tokens_per_second"] * line["step_seconds"] for line in found]
    np.testing.assert_allclose(tokens, [8 * 16, 8 * 32, 8 * 32, 16 * 32], rtol=1e-4)
    rows = [line["sequences_per_second"] * line["step_seconds"] for line in found]
    np.testing.assert_allclose(rows, [8, 8, 8, 16], rtol=1e-4)
    rates = [line["learning_rate"] for line in found]
    assert rates[0] < max(rates) and rates[2] > rates[3]  # one schedule: warm-up of 2 steps, then it falls
    phased.train.update(phases="", steps=1)
    plain = Pretraining.with_data(phased, None)
    assert plain.phases()[0].task is plain


class Stopped(Exception):
    pass


class StopAt(Observer):
    def __init__(self, step):
        self.step = step

    def begin(self, task, state, mesh):
        self.now = int(state.step)

    def after_step(self, sums):
        self.now += 1
        if self.now == self.step + 1:
            raise Stopped
        return False


@pytest.mark.parametrize("saved_at", [2, 4, 6])  # between phases, inside one, and between two that share a dataset
def test_a_run_in_phases_resumes_to_the_same_bits(phased, uninterrupted, tmp_path, saved_at):
    expected = uninterrupted(phased)
    phased.checkpoint.every = saved_at
    with pytest.raises(Stopped):
        run(phased, tmp_path, StopAt(saved_at + 1))
    phased.checkpoint.every = 8
    assert run(phased, tmp_path).step == 8
    report = {2: (), 4: (4,), 6: ()}[saved_at]  # a report ends at a checkpoint that was planned
    if not report:
        assert_same_run(tmp_path, expected)
    else:
        saved, other = (read_checkpoint(find_checkpoint(str(folder))) for folder in (tmp_path, expected))
        for name, value in jax.device_get(saved.parameters).items():
            np.testing.assert_array_equal(value, other.parameters[name], err_msg=name)
