"""Phases of one run: other batches, rows and masks, one schedule, and the same bits however often it is interrupted."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from bert_jax.config import read_config
from bert_jax.lab.replay import replay
from bert_jax.lab.report import cost
from bert_jax.models.config import bert_config
from bert_jax.models.cost import training_flops
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint
from bert_jax.training.guard import Guard
from bert_jax.training.loop import train
from bert_jax.training.metrics_log import MetricsLog, read_metrics
from bert_jax.training.observer import Observer
from bert_jax.training.programs import make_programs
from bert_jax.training.throughput import MEASURED, Throughput

PHASES = "0.25: batch_size=8 sequence_length=16 mask_rate=0.3; 0.75: batch_size=8; 1: batch_size=16"


@pytest.fixture
def phased(small_config):
    small_config.train.update(steps=8, log_every=3, phases=PHASES)
    small_config.eval.update(every=8)
    small_config.checkpoint.update(every=2, keep=10)
    return small_config


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    made = {}

    def make(config):
        if not made:
            made["workdir"] = tmp_path_factory.mktemp("phases")
            train(Pretraining.with_data(config, None), config, made["workdir"], [Throughput()])
        return made["workdir"]

    return make


def lines(workdir, split):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == split]


def assert_same_run(workdir, other):
    saved, expected = (read_checkpoint(find_checkpoint(str(folder))) for folder in (workdir, other))
    for name, value in jax.device_get(saved.parameters).items():
        np.testing.assert_array_equal(value, expected.parameters[name], err_msg=name)
    assert saved.run["data"] == expected.run["data"]
    for split in ("train", "eval"):
        ours, theirs = (
            [{name: x for name, x in line.items() if name not in MEASURED} for line in lines(folder, split)]
            for folder in (workdir, other)
        )
        assert ours == theirs


def test_each_phase_reports_its_own_tokens_under_one_schedule(phased, uninterrupted):
    found = lines(uninterrupted(phased), "train")
    assert [line["step"] for line in found] == [2, 3, 4, 6, 8]  # every 3 steps, at checkpoints, and where a phase ends
    tokens = [line["tokens_per_second"] * line["step_seconds"] for line in found]
    np.testing.assert_allclose(tokens, [8 * 16, 8 * 32, 8 * 32, 8 * 32, 16 * 32], rtol=1e-4)
    rows = [line["sequences_per_second"] * line["step_seconds"] for line in found]
    np.testing.assert_allclose(rows, [8, 8, 8, 8, 16], rtol=1e-4)
    rates = [line["learning_rate"] for line in found]  # a warm-up of 2 steps, then it falls: means over the steps
    np.testing.assert_allclose(rates[2:], [1e-3 * (1 - step / 100) for step in (3, 4.5, 6.5)], rtol=1e-4)


def test_the_cost_of_a_run_is_that_of_its_phases(phased, uninterrupted):
    folder = uninterrupted(phased)
    tokens, flops = cost._work(SimpleNamespace(folder=folder), read_metrics(folder / "metrics.jsonl"))
    assert tokens == pytest.approx(2 * 8 * 16 + 4 * 8 * 32 + 2 * 16 * 32, rel=1e-4)
    config = read_config(folder / "config.json")
    model = bert_config(config.model, config.data.vocab_size)
    shapes = (2, 8, 16, 5), (4, 8, 32, 5), (2, 16, 32, 5)  # 5 × 16/32 × 0.3/0.15 predictions are 5 again
    assert flops == pytest.approx(sum(count * training_flops(model, *shape) for count, *shape in shapes), rel=1e-4)


class Stopped(Exception):
    pass


class StopAfter(Observer):
    def __init__(self, step):
        self.step = step

    def begin(self, task, state, mesh):
        self.now = int(state.step)

    def after_step(self, sums):
        self.now += 1
        if self.now > self.step:
            raise Stopped
        return False


def test_a_run_in_phases_resumes_to_the_same_bits(phased, uninterrupted, tmp_path):
    """It is stopped after the checkpoints between two datasets, inside a phase, and between phases of one dataset."""
    for step in (2, 4, 6):
        task = Pretraining.with_data(phased, None)
        with pytest.raises(Stopped):
            train(task, phased, tmp_path, [StopAfter(step)])
    assert train(Pretraining.with_data(phased, None), phased, tmp_path).step == 8
    assert_same_run(tmp_path, uninterrupted(phased))
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    found = replay(Pretraining.with_data(phased, None), phased, tmp_path, 4)
    assert found == "steps 5 to 8 gave the bits of the checkpoint of step 8"


def test_a_phase_that_changes_nothing_has_the_program_of_the_plain_run(small_config):
    def programs():
        task = Pretraining.with_data(small_config, None)
        made = make_programs(task, small_config, Observer())
        shapes = made.abstract, made.constants, task.batch_shapes(training=True), made.key
        return [phase.launch.step.lower(*shapes).as_text() for phase in made.phases]

    [plain] = programs()
    small_config.train.phases = "0.5: mask_rate=0.3; 1: batch_size=16"
    first, second = programs()
    assert second == plain != first


def rows_of(task, step, count):
    """The first tokens of the rows of `count` batches from the one of `step` on."""
    phase = next(phase for phase in task.phases() if step < phase.end)
    batches = phase.task.train_batches(step, 0, 1)
    found = np.concatenate([next(batches)["input_ids"] for _ in range(count)])
    state = batches.state()
    batches.close()
    return found, state


def test_phases_of_one_dataset_read_on_where_the_ones_before_stopped(phased):
    phased.train.phases = "0.5: batch_size=8; 0.75: batch_size=8 sequence_length=16; 1: batch_size=16"
    task = Pretraining.with_data(phased, None)
    found = [rows_of(task, 0, 4)[0], rows_of(task, 6, 2)[0]]
    other, other_state = rows_of(task, 4, 2)
    second = task.phases()[1].task
    phased.train.update(phases="", batch_size=8)
    plain, state = rows_of(Pretraining.with_data(phased, None), 0, 8)
    np.testing.assert_array_equal(np.concatenate(found), plain)
    assert other.shape == (16, 16)
    parts = [next(second.train_batches(4, part, 2))["input_ids"] for part in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), other[:8])  # of two processes
    assert other_state["dataset"] != state["dataset"] and (other_state["epoch"], other_state["step"]) == (0, 6)


def test_rows_that_are_packed_for_another_mask_rate_leave_no_pair_out(phased):
    phased.data.packing = True
    phased.train.phases = "0.5: mask_rate=0.3; 1:"
    first, second = (phase.task for phase in Pretraining.with_data(phased, None).phases())
    begun = first.train_batches(4, 0, 1)  # of the first, after its 64 rows of 1,024 that share their pairs
    assert begun.state()["epoch"] == begun.state()["position"] == 0
    begun.close()
    assert (first.origin, second.origin) == (0, -4 * 16)  # none of them is read whole: the second begins with row 0


def test_an_epoch_is_a_mean_over_phases(phased):
    phased.train.phases = "0.5: batch_size=8; 1: batch_size=24"
    in_phases = Pretraining.with_data(phased, None).steps_per_epoch
    phased.train.phases = ""
    assert in_phases == Pretraining.with_data(phased, None).steps_per_epoch  # batches of 16, as their mean


def test_batches_that_were_left_out_are_not_read_in_the_next_phase(phased, tmp_path):
    """Two were left out before a phase that begins with update 4, and then its own first one."""
    guard = Guard(Pretraining.with_data(phased, None), phased.train, tmp_path, lambda *_: "")
    guard.left_out = [1, 2]
    assert guard.first_batch(4) == guard.batch_number(4) == 6
    guard.left_out = [1, 2, 6]
    assert (guard.first_batch(4), guard.batch_number(4)) == (6, 7)


def test_the_time_that_is_left_counts_what_steps_cost(tmp_path, monkeypatch, caplog):
    clock, said = iter((100.0, 130.0, 150.0)), caplog.at_level("INFO")
    monkeypatch.setattr("bert_jax.training.metrics_log.time.perf_counter", lambda: next(clock))
    log = MetricsLog(tmp_path, 0, 10, costs=[(5, 1.0), (10, 3.0)])
    with said:
        for step in (2, 5, 6):
            log.advance(step)
            log.record(step, "train", {"loss": 1.0})
    log.close()
    # From step 2, where the programs are compiled: 3 units of work take 30 s and 15 are left; then 6 take 50 s.
    assert [text.partition("ETA ")[2] for text in caplog.messages] == ["", "02:30", "01:40"]
