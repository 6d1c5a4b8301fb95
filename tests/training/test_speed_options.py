"""Muon, the average of the parameters, z-loss and the sampled softmax together in a run: resumed, on meshes, in
micro-batches, and the average against NumPy."""

import json

import jax
import numpy as np
import pytest

from bert_jax.config import UserError
from bert_jax.data.pretraining.prepare import prepare
from bert_jax.inference.open import open_model
from bert_jax.lab import doctor
from bert_jax.run import evaluate_checkpoint
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.checkpoint import describe_checkpoint, read_checkpoint
from bert_jax.training.loop import train
from bert_jax.training.observer import Observer
from bert_jax.training.programs import make_programs


@pytest.fixture
def config(small_config):
    small_config.optimizer.update(name="muon", muon_learning_rate=5e-3, weight_decay=0.1)
    small_config.train.update(ema_decay=0.6, z_loss=1e-3, sampled_softmax=64, log_every=1)
    small_config.model.update(dtype="float32", hidden_dropout=0.0, attention_dropout=0.0)
    small_config.train.steps = 6
    small_config.eval.every = small_config.checkpoint.every = 3
    return small_config


def over(config):
    return Pretraining.over(config, prepare(config.data, config.data.seed, progress=False))


def lines(workdir, split):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == split]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(config) → the workdir of a run with a checkpoint of every step, made once by the first test that asks."""
    made = []

    def run(config):
        if not made:
            made.append(tmp_path_factory.mktemp("whole"))
            config = config.copy_and_resolve_references()
            config.checkpoint.update(every=1, keep=10)
            train(over(config), config, made[0])
        return made[0]

    return run


def test_the_average_against_numpy(config, whole):
    workdir, task = whole(config), over(config)
    abstract, states = make_programs(task, config, Observer()).abstract, []
    for step in range(1, 7):
        saved = read_checkpoint(workdir / "checkpoints" / str(step), expected=abstract)
        states.append(jax.device_get((saved.parameters, saved.trained)))
    # The first update is made at learning rate 0: what it leaves is what the run began with.
    average = {name: x.astype(np.float64) for name, x in states[0][1].items()}
    for t, (learned, trained) in enumerate(states):
        decay = min(0.6, (1 + t) / (10 + t))
        for name in average:
            average[name] = decay * average[name] + (1 - decay) * trained[name]
            np.testing.assert_allclose(learned[name], average[name], atol=2e-6, err_msg=name)
    assert any(np.abs(states[5][0][name] - states[5][1][name]).max() > 1e-3 for name in average)
    for name, x in open_model(workdir / "checkpoints" / "6").parameters.items():
        np.testing.assert_array_equal(x, states[5][0][name])
    assert "are as saved and finite" in doctor._checkpoint(workdir / "checkpoints" / "6")


def test_what_the_metrics_are_of(config, whole):
    """Evaluations are of the average, over the whole vocabulary and without z-loss; the loss of a step has it."""
    workdir = whole(config)
    found = evaluate_checkpoint(over(config), config, str(workdir / "checkpoints" / "6"), "newest")[0]["validation"]
    logged = lines(workdir, "eval")[-1]
    assert logged["step"] == 6 and logged["mlm_loss"] == pytest.approx(found.metrics["mlm_loss"], rel=1e-5)
    assert logged["loss"] == pytest.approx(logged["mlm_loss"] + logged["nsp_loss"], rel=1e-5)
    assert "mlm_accuracy" in logged and "mlm_z_loss" not in logged
    step = lines(workdir, "train")[-1]
    expected = step["mlm_loss"] + step["nsp_loss"] + 1e-3 * step["mlm_z_loss"]
    assert step["loss"] == pytest.approx(expected, rel=1e-5) and "mlm_accuracy" not in step


def test_resumed_to_the_bit(config, whole, tmp_path):
    for steps in (3, 6):
        config.train.steps = steps
        train(over(config), config, tmp_path)
    expected, found = (
        describe_checkpoint(workdir / "checkpoints" / "6")[0]["checksums"] for workdir in (whole(config), tmp_path)
    )
    assert "trained" in found
    for item in ("parameters", "trained", "optimizer"):
        assert found[item] == expected[item]
    config.train.ema_decay = 0.0
    with pytest.raises(UserError, match=r"train\.ema_decay was 0\.6, is 0\.0"):
        train(over(config), config, tmp_path)


@pytest.mark.slow
def test_a_mesh_and_micro_batches_learn_the_same(config, whole, tmp_path):
    expected = whole(config)
    config.mesh.update(data=2, fsdp=2, tensor=2, smallest=0)
    config.model.update(layers="scan", remat="full")
    config.train.accumulation = 4
    train(over(config), config, tmp_path)
    for split, names in (("train", ("loss", "mlm_z_loss")), ("eval", ("loss", "mlm_loss"))):
        found, wanted = ([[x[name] for name in names] for x in lines(y, split)] for y in (tmp_path, expected))
        np.testing.assert_allclose(found, wanted, rtol=2e-5)
