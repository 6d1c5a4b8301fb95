"""The example of docs/own_task.py: a task in one file, trained and used as the documentation says."""

import json

import numpy as np

from bert_jax import modes
from bert_jax.data.labelled.examples import TextExample
from bert_jax.tasks.sections import classes
from docs.own_task import get_config


def test_the_example_learns_an_order_of_classes(tmp_path):
    words = {1: "awful", 2: "poor", 3: "fair", 4: "good", 5: "great"}
    rows = [{"review": f"{words[stars]} film", "stars": stars} for stars in words] * 6
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words.values(), "film"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    config = get_config()
    config.model.update(dtype="float32", hidden_dropout=0.0, attention_dropout=0.0)
    config.model.update(size="tiny", hidden_size=32, num_hidden_layers=1, intermediate_size=64, pooling="mean")
    config.data.update(train=str(tmp_path / "train.jsonl"), validation=str(tmp_path / "train.jsonl"), text="review")
    config.data.update(label="stars", vocab_file=str(tmp_path / "vocab.txt"))
    config.optimizer.learning_rate = 1e-2
    config.train.update(epochs=80.0, batch_size=15, peak_tflops=1.0)
    config.eval.update(every=160, batch_size=30)
    config.mesh.data = 1
    assert modes.train(config, tmp_path / "run") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "eval"][-1]
    assert last["accuracy"] == 1.0 and last["mean_absolute_error"] == 0.0


def test_numbers_of_numpy_in_a_prediction_are_numbers_in_the_report():
    prediction = {"label": "a", "probability": np.float64(0.75), "probabilities": {"a": 0.75, "b": np.float64(0.25)}}
    errors = classes(["a", "b"], [TextExample("rows:1", "a film", label="b")], [prediction])[-1]
    assert list(errors.body.rows) == [["rows:1", "a film", "b", "0.250", "a", "0.750"]]
