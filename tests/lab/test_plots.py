"""Curves from a metrics.jsonl."""

import json

from bert_jax.lab.plots import PICTURES, plot_run, series


def test_pictures_of_a_run(tmp_path):
    lines = [
        {"step": 0, "split": "eval", "mlm_loss": 9.0, "nsp_loss": 0.7, "mlm_accuracy": 0.0, "nsp_accuracy": 0.5,
         "unigram_entropy": 6.0, "majority_accuracy": 0.06},
        {"step": 10, "split": "train", "mlm_loss": 7.0, "nsp_loss": 0.7, "mlm_accuracy": 0.05, "nsp_accuracy": 0.5,
         "learning_rate": 1e-4, "tokens_per_second": 1000.0},
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    paths = plot_run(tmp_path)
    assert {path.name for path in paths} == {f"{name}.png" for name in PICTURES}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_no_metrics_no_pictures(tmp_path):
    assert plot_run(tmp_path) == []


def test_a_series_is_sorted_by_step_and_the_last_word_counts():
    records = [{"step": s, "split": "train", "loss": v} for s, v in ((4, 1.0), (2, 3.0), (4, 2.0))]
    assert series(records, "train", "loss") == ([2, 4], [3.0, 2.0])
