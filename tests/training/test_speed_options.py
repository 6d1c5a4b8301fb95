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
from bert_jax.training.checkpoint import describe_checkpoint, on_one_device, read_checkpoint
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


@pytest.fixture
def whole(config, tmp_path):
    """The workdir of a run with a checkpoint of every step."""
    config.checkpoint.update(every=1, keep=10)
    train(over(config), config, tmp_path / "whole")
    return tmp_path / "whole"


def items(workdir, step):
    """Returns the parameters of a checkpoint that are used, and those that training continues from."""
    folder, task = workdir / "checkpoints" / str(step), over(open_model(workdir).config)
    abstract = make_programs(task, task.config, Observer()).abstract
    saved = read_checkpoint(folder, shardings=on_one_device, expected=abstract)
    return jax.device_get((saved.parameters, saved.trained))


def test_the_average_is_saved_evaluated_and_resumed(config, whole, tmp_path):
    steps = [items(whole, step) for step in range(1, 7)]
    # The first update is made at learning rate 0: what it leaves is what the run began with.
    average = {name: x.astype(np.float64) for name, x in steps[0][1].items()}
    for t, (learned, trained) in enumerate(steps):
        decay = min(0.6, (1 + t) / (10 + t))
        average = {name: decay * average[name] + (1 - decay) * trained[name] for name in average}
        for name, x in average.items():
            np.testing.assert_allclose(learned[name], x, atol=2e-6, err_msg=name)
    assert any(np.abs(steps[5][0][name] - steps[5][1][name]).max() > 1e-3 for name in average)

    opened = open_model(whole / "checkpoints" / "6")
    for name, x in opened.parameters.items():
        np.testing.assert_array_equal(x, steps[5][0][name])
    evaluation = evaluate_checkpoint(over(config), config, str(whole / "checkpoints" / "6"), "newest")[0]["validation"]
    logged = lines(whole, "eval")[-1]
    assert logged["step"] == 6 and logged["mlm_loss"] == pytest.approx(evaluation.metrics["mlm_loss"], rel=1e-5)
    assert "mlm_z_loss" not in logged and "mlm_accuracy" in logged
    at_work = lines(whole, "train")[-1]
    assert at_work["loss"] == pytest.approx(
        sum(at_work[f"{x}_loss"] for x in ("mlm", "nsp")) + 1e-3 * at_work["mlm_z_loss"], rel=1e-5
    )
    assert "mlm_accuracy" not in at_work

    config.train.steps = 3
    train(over(config), config, tmp_path / "halves")
    config.train.steps = 6
    train(over(config), config, tmp_path / "halves")
    sums = [
        describe_checkpoint(folder / "checkpoints" / "6")[0]["checksums"] for folder in (whole, tmp_path / "halves")
    ]
    for item in ("parameters", "trained", "optimizer"):
        assert sums[0][item] == sums[1][item]
    assert "are as saved and finite" in doctor._checkpoint(whole / "checkpoints" / "6")

    config.train.ema_decay = 0.0
    with pytest.raises(UserError, match=r"train\.ema_decay was 0\.6, is 0\.0"):
        train(over(config), config, whole)


@pytest.mark.parametrize(
    "changes", [{"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "mesh.smallest": 0}, {"train.accumulation": 4}]
)
def test_meshes_and_micro_batches_learn_the_same(config, tmp_path, changes):
    losses = []
    for name, changed in (("plain", {}), ("changed", changes)):
        config.update_from_flattened_dict(changed)
        train(over(config), config, tmp_path / name)
        losses.append([[line["loss"], line["mlm_z_loss"]] for line in lines(tmp_path / name, "train")])
        losses[-1] += [[line["loss"], line["mlm_loss"]] for line in lines(tmp_path / name, "eval")]
    np.testing.assert_allclose(*losses, rtol=2e-5)
