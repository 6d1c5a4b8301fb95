"""What fine-tuning on small sets needs of the loop: layer-wise rates, freezing, fresh layers, early stop, seeds."""

import json
import shutil

import jax
import numpy as np
import pytest

from bert_jax import modes
from bert_jax.config import UserError, validate
from bert_jax.training.checkpoint import find_checkpoint, read_checkpoint
from bert_jax.training.loop import _out_of_patience
from bert_jax.training.metrics_log import read_metrics
from bert_jax.training.optimizer import learning_rate_multipliers
from experiments import classify
from experiments.base import get_config

WORDS = ["red", "green", "blue", "warm", "cold"]
SHAPES = {
    "embeddings/word/embedding": (9, 4),
    "encoder/layers/output/kernel": (3, 8, 4),
    "pooler/kernel": (4, 4),
    "heads/classifier/bias": (2,),
}


def make_config(folder):
    rows = [
        {"text": f"{word} {other}", "label": "hot" if word == "red" else "not"} for word in WORDS for other in WORDS
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    config = classify.get_config()
    config.model.update(size="tiny", hidden_size=32, num_hidden_layers=3, intermediate_size=64, dtype="float32")
    config.model.layers = "scan"  # compiles faster
    config.data.update(train=str(folder / "train.jsonl"), validation=str(folder / "train.jsonl"), prefetch=2)
    config.data.update(vocab_file=str(folder / "vocab.txt"), sequence_length=8)
    config.train.update(epochs=2.0, batch_size=8, log_every=4, peak_tflops=1.0)
    config.eval.batch_size = 8
    config.mesh.data = 1
    return config


def parameters(workdir):
    return jax.device_get(read_checkpoint(find_checkpoint(str(workdir))).parameters)


def optimizer_with(**changes):
    optimizer = get_config().optimizer
    optimizer.update(changes)
    return optimizer


def test_learning_rates_fall_from_the_head_to_the_embeddings():
    found = learning_rate_multipliers(optimizer_with(layer_decay=0.5), SHAPES)
    assert {name: values.tolist() for name, values in found.items()} == {
        "embeddings/word/embedding": [1 / 16],
        "encoder/layers/output/kernel": [1 / 8, 1 / 4, 1 / 2],
        "pooler/kernel": [1],
        "heads/classifier/bias": [1],
    }


def test_what_is_new_has_a_learning_rate_of_its_own():
    rates = {"learning_rate": 1e-4, "head_learning_rate": 1e-3}
    found = learning_rate_multipliers(optimizer_with(**rates), SHAPES)
    np.testing.assert_allclose(np.concatenate(list(found.values())), [1, 1, 1, 1, 1, 10], rtol=1e-6)
    found = learning_rate_multipliers(
        optimizer_with(**rates, head="^encoder/layers/2/|^pooler", layer_decay=0.5), SHAPES
    )
    np.testing.assert_allclose(found["encoder/layers/output/kernel"], [1 / 8, 1 / 4, 5], rtol=1e-6)
    np.testing.assert_allclose(np.concatenate([found["pooler/kernel"], found["heads/classifier/bias"]]), [10, 1])
    with pytest.raises(UserError, match=r"optimizer\.head=hedas/ matches no parameter; names are embeddings/"):
        learning_rate_multipliers(optimizer_with(**rates, head="hedas/"), SHAPES)
    config = get_config()
    config.optimizer.update(learning_rate=0.0, head_learning_rate=1e-3)
    with pytest.raises(UserError, match=r"learning_rate is 0, of which optimizer\.head_learning_rate is a multiple"):
        validate(config, 1)


def test_frozen_names_and_one_that_matches_nothing():
    found = learning_rate_multipliers(optimizer_with(freeze="embeddings/|encoder/layers/[01]/"), SHAPES)
    assert [values.tolist() for values in found.values()] == [[0], [0, 0, 1], [1], [1]]
    with pytest.raises(UserError, match=r"optimizer\.freeze=embedings/ matches no parameter"):
        learning_rate_multipliers(optimizer_with(freeze="embedings/"), SHAPES)


def test_frozen_parameters_keep_their_bits_and_the_others_move(tmp_path):
    config = make_config(tmp_path)
    assert modes.train(config, tmp_path / "source") == 0
    config = make_config(tmp_path)
    config.init_from = str(tmp_path / "source")
    config.optimizer.freeze = "embeddings/|encoder/layers/0/"
    config.seed = 1
    assert modes.train(config, tmp_path / "run") == 0
    moments = json.loads((find_checkpoint(str(tmp_path / "run")) / "run" / "metadata").read_text())["checksums"]
    assert not any("embeddings/" in name for name in moments["optimizer"])  # nothing is kept for what is frozen
    assert any("encoder/layers/" in name for name in moments["optimizer"])
    before, after = parameters(tmp_path / "source"), parameters(tmp_path / "run")
    for name, value in before.items():
        if name.startswith("embeddings/"):
            np.testing.assert_array_equal(value, after[name], err_msg=name)
        elif name.startswith("encoder/layers/"):
            np.testing.assert_array_equal(value[0], after[name][0], err_msg=name)
            assert name.endswith("key/bias") or np.any(value[1:] != after[name][1:]), name  # softmax ignores that bias
        else:
            assert np.any(value != after[name]), name


def test_top_layers_and_pooler_start_anew(tmp_path):
    config = make_config(tmp_path)
    assert modes.train(config, tmp_path / "source") == 0
    config = make_config(tmp_path)
    config.init_from = str(tmp_path / "source")
    config.train.update(reinitialise_layers=2, epochs=0.25)
    config.optimizer.update(learning_rate=0.0, warmup_share=0.0)
    config.seed = 1
    assert modes.train(config, tmp_path / "run") == 0
    before, after = parameters(tmp_path / "source"), parameters(tmp_path / "run")
    kernel = "encoder/layers/output/kernel"
    np.testing.assert_array_equal(before[kernel][0], after[kernel][0])
    assert np.all(np.any(before[kernel][1:] != after[kernel][1:], axis=(1, 2)))
    assert np.any(before["pooler/kernel"] != after["pooler/kernel"])
    np.testing.assert_array_equal(before["heads/classifier/kernel"], after["heads/classifier/kernel"])
    config.train.reinitialise_layers = 4
    with pytest.raises(UserError, match="reinitialise_layers is 4; the model has 3 layers"):
        modes.train(config, tmp_path / "other")


def test_some_layers_are_taken(tmp_path):
    """The start of a student from its teacher's layers; it continues when it is started again."""
    config = make_config(tmp_path)
    assert modes.train(config, tmp_path / "source") == 0
    config = make_config(tmp_path)
    config.model.num_hidden_layers = None
    config.init_from = str(tmp_path / "source")
    config.train.update(take_layers="2, 0", epochs=0.25)
    config.optimizer.update(learning_rate=0.0, warmup_share=0.0)
    for _ in range(2):
        assert modes.train(config.copy_and_resolve_references(), tmp_path / "run") == 0
    before, after = parameters(tmp_path / "source"), parameters(tmp_path / "run")
    for name, value in before.items():
        taken = value[np.asarray([2, 0])] if name.startswith("encoder/layers/") else value
        np.testing.assert_array_equal(taken, after[name], err_msg=name)
    for wrong, message in (("0,3", "names layer 3; the model has 3 layers, from 0 to 2"), ("a", "must be numbers")):
        config.train.take_layers = wrong
        with pytest.raises(UserError, match=message):
            modes.train(config.copy_and_resolve_references(), tmp_path / "other")
    config.init_from = ""
    with pytest.raises(UserError, match="take_layers is for a warm start"):
        modes.train(config, tmp_path / "other")


@pytest.mark.parametrize(
    ("history", "mode", "ends"),
    [
        ([], "max", False),
        ([0.5, 0.6], "max", False),
        ([0.5, 0.6, 0.6], "max", False),
        ([0.6, 0.6, 0.5], "max", True),  # equal is not better
        ([0.6, 0.5, 0.7], "max", False),
        ([0.6, 0.7, 0.8], "min", True),
        ([0.6, 0.7, 0.5], "min", False),
    ],
)
def test_patience_of_two_evaluations(history, mode, ends):
    config = get_config()
    config.train.patience = 2
    config.checkpoint.best_mode = mode
    assert _out_of_patience(history, config) is ends


def test_a_run_that_learns_nothing_ends_early_and_stays_ended(tmp_path):
    config = make_config(tmp_path)
    config.train.update(epochs=9.0, patience=2)
    config.optimizer.learning_rate = 0.0
    assert modes.train(config, tmp_path / "run") == 0
    assert find_checkpoint(str(tmp_path / "run")).name == "12"  # three of nine epochs of four steps
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert modes.train(make_again(config, tmp_path), tmp_path / "run") == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == lines


def make_again(config, folder):
    again = make_config(folder)
    again.train.update(epochs=9.0, patience=2)
    again.optimizer.learning_rate = config.optimizer.learning_rate
    return again


def test_resumed_in_the_middle_of_an_epoch_it_computes_the_same_bits(tmp_path):
    config = make_config(tmp_path)
    config.checkpoint.update(every=3, keep=9)
    assert modes.train(config, tmp_path / "whole") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for step in ("6", "8"):
        shutil.rmtree(tmp_path / "resumed" / "checkpoints" / step)
    config = make_config(tmp_path)
    config.checkpoint.update(every=3, keep=9)
    assert modes.train(config, tmp_path / "resumed") == 0
    expected, found = parameters(tmp_path / "whole"), parameters(tmp_path / "resumed")
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)


def test_two_seeds_and_what_is_said_of_them(tmp_path, capsys):
    config = make_config(tmp_path)
    config.seeds, config.seed = 2, 5
    config.optimizer.learning_rate = 0.0
    assert modes.train(config.copy_and_resolve_references(), tmp_path / "runs") == 0
    logs = [read_metrics(tmp_path / "runs" / f"seed{i}" / "metrics.jsonl") for i in (5, 6)]
    last = [[line for line in log if line["split"] == "eval"][-1] for log in logs]
    losses = [line["loss"] for line in last]
    assert losses[0] != losses[1]
    report = json.loads((tmp_path / "runs" / "seeds.json").read_text())
    figures = report["splits"]["eval_last"]["loss"]
    np.testing.assert_allclose(figures["mean"], np.mean(losses))
    np.testing.assert_allclose(figures["sd"], np.std(losses, ddof=1))
    lines = (tmp_path / "runs" / "metrics.jsonl").read_text().splitlines()
    summary = json.loads(lines[-1])
    assert [json.loads(line)["split"] for line in lines] == ["eval", "eval_last"] and summary["accuracy"] == np.mean(
        [line["accuracy"] for line in last]
    )
    assert "no better than the commonest class: seed5, seed6" in capsys.readouterr().out  # 80 % are "not"
    config.seeds = 1
    with pytest.raises(UserError, match="holds the runs of several seeds"):
        modes.train(config, tmp_path / "runs")
