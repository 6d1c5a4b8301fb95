"""A step with a number that is not finite, or far above the last ones, is undone and its batch left out."""

import json
import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.sharding import make_mesh, place, to_mesh
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training import step as steps
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint
from bert_jax.training.diagnosis import first_not_finite
from bert_jax.training.guard import Guard
from bert_jax.training.loop import train
from bert_jax.training.optimizer import make_optimizer, make_schedule
from tests.processes import finished, metrics


class Poisoned(Pretraining):
    """The loss of the batches with these marks is multiplied by `poison`. Both are arguments of the program, so that
    all tests share it."""

    poison, marks = 1.0, (-1, -1)

    def constants(self):
        return {"marks": np.asarray(self.marks, np.int32), "poison": np.float32(self.poison)}

    def sums(self, model, batch, key, constants):
        sums = super().sums(model, batch, key, {})
        is_bad = jnp.any(mark_of(batch) == constants["marks"])
        loss, weight = sums["mlm_loss"]
        return sums | {"mlm_loss": (loss * jnp.where(is_bad, constants["poison"], 1.0), weight)}

    def evaluate(self, model, batch, constants):
        return super().sums(model, batch, None, {}), {}


def mark_of(batch):
    """A number that tells the batches apart, masked or not: where the second sentences lie."""
    types = batch["token_type_ids"]
    return (types * jnp.arange(1, types.size + 1).reshape(types.shape)).sum()


@pytest.fixture
def run(small_config):
    """run(workdir, bad batches, poison) → the run's end; batches are numbered from 0."""
    corpus = prepare(small_config.data, small_config.data.seed, progress=False)
    small_config.train.update(steps=8, log_every=2)
    small_config.optimizer.decay_steps = 100
    small_config.eval.update(every=8, at_start=False)
    small_config.checkpoint.update(every=3, keep=10)

    def go(workdir, bad=(), poison=float("nan")):
        return train(poisoned(small_config, corpus, bad, poison), small_config, workdir)

    go.config = small_config
    return go


def poisoned(config, corpus, bad, poison=float("nan")):
    task = Poisoned.over(config, corpus)
    batches = task.train_batches(0, 0, 1)
    numbered = [int(mark_of(next(batches))) for _ in range(14)]
    batches.close()
    assert len(set(numbered)) == len(numbered)
    task.marks, task.poison = (*(numbered[number] for number in bad), -1, -1)[:2], poison
    return task


def content(workdir):
    saved = read_checkpoint(find_checkpoint(str(workdir)))
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return jax.device_get(saved.parameters), lines, saved.run


def assert_same(workdir, other):
    (ours, lines, _), (theirs, other_lines, _) = content(workdir), content(other)
    assert lines == other_lines
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_the_guard_changes_no_bit_of_a_run_that_stays_finite(run, tmp_path):
    run(tmp_path / "off")
    run.config.train.update(max_rollbacks=2, spike_factor=1000.0)
    run(tmp_path / "on")
    assert_same(tmp_path / "on", tmp_path / "off")
    assert content(tmp_path / "off")[2]["guard"] == {}
    guard = content(tmp_path / "on")[2]["guard"]
    assert guard["left_out"] == [] and len(guard["recent"]["loss"]) == 8


def test_one_bad_batch_costs_one_batch_and_the_next_takes_its_place(run, tmp_path, caplog):
    run.config.train.max_rollbacks = 2
    assert run(tmp_path / "run", [4]).step == 8
    assert "the loss is nan at step 5; its batch is in" in caplog.text
    assert "arises in the head or its loss (mlm_loss); batch 4 is left out" in caplog.text
    _, lines, record = content(tmp_path / "run")
    assert record["guard"]["left_out"] == [4] and record["data"]["step"] == 9
    assert [line["step"] for line in lines if line["split"] == "train"] == [2, 3, 4, 6, 8]
    assert all(np.isfinite(line["loss"]) for line in lines)
    with np.load(tmp_path / "run" / "bad_batches" / "batch_4.npz", allow_pickle=False) as file:
        assert file["input_ids"].shape == (16, 32) and int(file["update"]) == 4 and int(file["batch_number"]) == 4
        assert json.loads(str(file["data_position"]))["step"] == 4 and "nan" in str(file["problem"])


@pytest.mark.slow
def test_stopped_between_and_resumed_leaves_out_the_same(run, tmp_path):
    """Where the checkpoint is of before the bad batch, where it is of after it, and without an interruption."""
    run.config.train.max_rollbacks = 3
    run(tmp_path / "whole", [3, 7])
    for stop in (3, 6):
        run.config.train.steps = stop
        run(tmp_path / f"stopped_{stop}", [3, 7])
        run.config.train.steps = 8
        run(tmp_path / f"stopped_{stop}", [3, 7])
        ours, _, record = content(tmp_path / f"stopped_{stop}")
        assert record["guard"]["left_out"] == [3, 7] and record["data"]["step"] == 10
        for name, value in content(tmp_path / "whole")[0].items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)


@pytest.mark.slow
def test_a_bad_batch_at_the_beginning_of_a_phase(run, tmp_path, caplog):
    """The last checkpoint is of the phase before. Update 4 has the rows of the plain run's batch 2, which is marked."""
    run.config.train.update(max_rollbacks=2, phases="0.5: batch_size=8 mask_rate=0.3; 1:")
    assert run(tmp_path / "run", [2]).step == 8
    assert "arises in the head or its loss (mlm_loss); batch 4 is left out" in caplog.text
    _, lines, record = content(tmp_path / "run")
    assert record["guard"]["left_out"] == [4] and record["data"]["step"] == 9
    assert [line["step"] for line in lines if line["split"] == "train"] == [2, 3, 4, 6, 8]
    with np.load(tmp_path / "run" / "bad_batches" / "batch_4.npz", allow_pickle=False) as file:
        assert file["input_ids"].shape == (16, 32) and int(file["update"]) == 4


def test_the_last_allowed_batch_is_followed_by_a_diagnosis(run, tmp_path):
    run.config.train.max_rollbacks = 1
    found = (
        r"the loss is inf at step 5; the first number that is not finite arises in the head or its loss \(mlm_loss\)"
    )
    with pytest.raises(UserError, match=rf"{found}; its batch is in .*batch_5\.npz, and train\.max_rollbacks=1 other"):
        run(tmp_path / "run", [4, 5], float("inf"))
    assert find_checkpoint(str(tmp_path / "run")).name == "3"
    run.config.train.max_rollbacks = 2  # as the message says, the run can continue with more of them
    assert run(tmp_path / "run", [4, 5], float("inf")).step == 8


def test_a_spike_is_left_out_and_does_not_raise_the_median(run, tmp_path, monkeypatch):
    monkeypatch.setattr("bert_jax.training.guard._LEAST", 3)
    run.config.train.update(max_rollbacks=2, spike_factor=20.0)
    run(tmp_path / "run", [4, 6], 1000.0)
    record = content(tmp_path / "run")[2]["guard"]
    assert record["left_out"] == [4, 6] and max(record["recent"]["loss"]) < 20
    run.config.train.max_rollbacks = 1
    with pytest.raises(UserError, match=r"the loss is .* at step 6, .* times the median of the 5 steps before; its ba"):
        run(tmp_path / "again", [4, 6], 1000.0)


def test_without_the_guard_the_message_names_it(run, tmp_path):
    with pytest.raises(UserError, match=r"the loss is nan at step 6; .*learn where it arose: --config.train.max_rollb"):
        run(tmp_path / "run", [4])


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        ({"encoder/layers/output/bias": (1, jnp.inf)}, "the parameter .*encoder/layers/output/bias.* is not finite"),
        ({"embeddings/layer_norm/scale": (slice(None), 3e38)}, "arises in the embeddings"),
        ({"encoder/layers/intermediate/bias": (1, 3e38)}, r"arises in layer 1 \(of 0 to 1\)"),
    ],
)
def test_where_the_first_number_arises(run, tmp_path, spoil, found):
    config = run.config
    task = Poisoned.over(config, prepare(config.data, config.data.seed, progress=False))
    mesh = make_mesh(config.mesh)
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, 8))
    state = steps.init_state(task, optimizer, 0, mesh)
    graphdef = steps.abstract_state(task, optimizer)[0]
    for name, (index, value) in spoil.items():
        state.parameters[name] = state.parameters[name].at[index].set(value)
    batches = task.train_batches(0, 0, 1)
    explain = partial(first_not_finite, task, graphdef, place(mesh, task.constants()), jax.random.key(0), mesh, ())
    assert re.search(found, explain(state, to_mesh(mesh, next(batches))))
    batches.close()


GUARDED = """
import json, os, sys
from pathlib import Path
from bert_jax.config import from_json_dict
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.training.loop import train
from bert_jax.training.processes import join_processes
from tests.training.test_guard import poisoned
join_processes(os.environ, 120)
config = from_json_dict(json.loads(Path(sys.argv[1]).read_text()))
corpus = prepare(config.data, config.data.seed, progress=False)
assert train(poisoned(config, corpus, [4], float("inf")), config, Path(sys.argv[2])).step == 8
"""


@pytest.mark.slow
def test_two_processes_leave_out_what_one_does(run, tmp_path):
    """Also with checkpoints by time, which the first process's clock decides for both."""
    run.config.train.max_rollbacks = 2
    run.config.mesh.data = -1
    run.config.checkpoint.update(every=6, minutes=1e-6)
    run.config.data.read_workers = 0
    (tmp_path / "config.json").write_text(json.dumps(run.config.to_dict()))
    for count in (1, 2):
        command = [sys.executable, "-c", GUARDED, str(tmp_path / "config.json"), str(tmp_path / str(count))]
        for status, text in finished(command, tmp_path / f"log{count}", count, devices_each=2 // count):
            assert status == 0, text[-3000:]
            assert "batch 4 is left out" in text and "going back to the last checkpoint" in text
    assert [line["step"] for line in metrics(tmp_path / "1") if line["split"] == "train"] == [2, 4, 6, 8]
    one, two = (metrics(tmp_path / count) for count in "12")
    assert [sorted(line) for line in one] == [sorted(line) for line in two]
    for line, other in zip(one, two, strict=True):
        np.testing.assert_allclose([*other.values()][2:], [*line.values()][2:], rtol=1e-5)
    for count in "12":
        record = content(tmp_path / count)[2]
        assert record["guard"]["left_out"] == [4] and record["data"]["step"] == 9
    files = [np.load(tmp_path / count / "bad_batches" / "batch_4.npz", allow_pickle=False) for count in "12"]
    np.testing.assert_array_equal(files[0]["input_ids"], files[1]["input_ids"])


def test_numbers_of_batches(small_config, tmp_path):
    guard = Guard(None, small_config.train, tmp_path, None)
    guard.resume({"left_out": [3, 4, 7]})
    assert [guard.batch_number(update) for update in range(7)] == [0, 1, 2, 5, 6, 8, 9]
    assert [guard.first_batch(update) for update in range(7)] == [0, 1, 2, 3, 6, 7, 9]
