"""Every mode on one, two and eight devices, with the same results."""

import json

import numpy as np
import pytest

from bert_jax import modes
from bert_jax.training.observer import LEDGER
from experiments import classify

WORDS = ["red", "green", "blue", "warm", "cold"]
DEVICES = (1, 2, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    pairs = [(word, other) for word in WORDS for other in WORDS]
    rows = [{"text": f"{word} {other}", "label": "hot" if word == "red" else "not"} for word, other in pairs]
    for name, part in (("train", rows), ("validation", rows[::2]), ("test", rows[1::2])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    return folder


def labelled(folder, devices):
    config = classify.get_config()
    config.model.update(size="tiny", hidden_size=32, num_hidden_layers=2, intermediate_size=64, dtype="float32")
    config.model.update(hidden_dropout=0.0, attention_dropout=0.0, layers="scan")
    config.data.update({split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")})
    config.data.update(vocab_file=str(folder / "vocab.txt"), sequence_length=8, packing=False, buckets=1)
    config.train.update(epochs=1.0, batch_size=8, log_every=1, peak_tflops=1.0)
    config.eval.batch_size = 8
    config.mesh.data = devices
    return config


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["split"], line["loss"]) for line in lines if line["split"] != LEDGER]


def assert_alike(workdir, other):
    found, expected = losses(workdir), losses(other)
    assert [line[:2] for line in found] == [line[:2] for line in expected]
    np.testing.assert_allclose([line[2] for line in found], [line[2] for line in expected], rtol=2e-5)


@pytest.fixture(scope="module")
def tuned(folder):
    """Trained from scratch on each number of devices: {devices: workdir}."""
    workdirs = {devices: folder / f"scratch{devices}" for devices in DEVICES}
    for devices, workdir in workdirs.items():
        assert modes.train(labelled(folder, devices), workdir) == 0
    return workdirs


@pytest.mark.parametrize("devices", DEVICES)
def test_from_scratch_and_the_test_of_the_best_checkpoint(tuned, devices):
    assert [line[1] for line in losses(tuned[devices])][-2:] == ["eval", "test"]
    assert_alike(tuned[devices], tuned[1])


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow), 8])
def test_warm_started_resumed_and_evaluated(folder, tuned, tmp_path, devices):
    def warm():
        config = labelled(folder, devices)
        config.init_from = str(tuned[1])
        config.train.reinitialise_layers = 1
        config.optimizer.decay_steps = 100
        return config

    config = warm()
    assert modes.train(config, tmp_path / "whole") == 0
    last = config.train.steps
    config = warm()
    config.train.update(steps=last - 1, epochs=None)
    config.eval.every = config.checkpoint.every = last
    expected = losses(tmp_path / "whole")
    assert modes.train(config, tmp_path / "parts") == 0
    config = warm()
    config.train.update(steps=last, epochs=None)
    config.eval.every = config.checkpoint.every = last
    assert modes.train(config, tmp_path / "parts") == 0
    assert losses(tmp_path / "parts")[-3:] == expected[-3:]
    config = warm()
    assert modes.evaluate(config, tmp_path / "whole") == 0
    for line, again in zip(losses(tmp_path / "whole")[-2:], expected[-2:], strict=True):
        np.testing.assert_allclose(line[2], again[2], rtol=1e-6)


@pytest.mark.parametrize("devices", DEVICES)
def test_predicted_and_embedded(folder, tuned, tmp_path, devices):
    """The checkpoint of each number of devices, read where there are eight."""
    workdir, config = tuned[devices], labelled(folder, devices)
    source = str(folder / "test.jsonl")
    assert modes.predict(config, workdir, input=source, output=str(tmp_path / "out.jsonl")) == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 12
    assert modes.embed(config, workdir, input=source, output=str(tmp_path / "out.npy")) == 0
    assert np.load(tmp_path / "out.npy").shape == (12, 32)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow), 8])
def test_a_second_phase_of_pretraining_and_filled_masks(small_config, tmp_path, devices, capsys):
    small_config.model.update(dtype="float32", layers="scan")
    small_config.train.steps = 2
    small_config.mesh.data = devices
    first = small_config.copy_and_resolve_references()
    assert modes.train(first, tmp_path / "first") == 0
    second = small_config.copy_and_resolve_references()
    second.init_from = str(tmp_path / "first")
    second.data.update(sequence_length=48)  # as phase2_512.py: longer rows, parameters of the first phase
    assert modes.train(second, tmp_path / "second") == 0
    assert losses(tmp_path / "second")[0][2] < losses(tmp_path / "first")[0][2]
    assert modes.fill_mask(second, tmp_path / "second", text=["the [MASK] of"], top_k=2) == 0
    assert "mask 1:" in capsys.readouterr().out
