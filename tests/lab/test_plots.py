"""Curves from a metrics.jsonl."""

import json
import time

import pytest

from bert_jax.config import UserError
from bert_jax.lab.plots import PICTURES, live_curves, plot_run, series
from bert_jax.training.metrics_log import read_metrics


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


def test_foreign_lines_are_left_out_with_one_warning(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1, "split": "train", "loss": 2.0}\n[1]\n\xff\n{"step": "1", "split": 2}\n{"step": 2, "sp'
    )
    assert read_metrics(path) == [{"step": 1, "split": "train", "loss": 2.0}]
    assert [message for message in caplog.messages if str(path) in message] == [
        f"{path}: 4 lines are no metrics and were left out"
    ]


def test_pictures_that_cannot_be_written_are_no_reason_to_fail(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 2.0}\n')
    (tmp_path / "plots").write_text("a file where the folder would be")
    assert plot_run(tmp_path) == []
    assert "the curves could not be drawn" in caplog.text


def test_live_curves_follow_the_metrics_to_their_last_line(tmp_path, monkeypatch):
    pytest.importorskip("IPython", reason="pip install -e '.[dev]'")
    shown = []
    monkeypatch.setattr("IPython.core.getipython.get_ipython", object)
    monkeypatch.setattr("IPython.display.DisplayHandle.display", lambda handle, text: None)
    monkeypatch.setattr("IPython.display.DisplayHandle.update", lambda handle, image: shown.append(image.data))
    path = tmp_path / "metrics.jsonl"
    with live_curves(tmp_path, "loss", seconds=0.01):
        path.write_text('{"step": 1, "split": "train", "loss": 2.0}\n')
        end = time.monotonic() + 60
        while not shown and time.monotonic() < end:
            time.sleep(0.01)
        assert len(shown) == 1
        path.write_text(path.read_text() + '{"step": 2, "split": "train", "loss": 1.0}\n')
    assert len(shown) == 2 and shown[0] != shown[1]
    assert all(picture.startswith(b"\x89PNG") for picture in shown)


def test_live_curves_need_a_notebook(tmp_path):
    with pytest.raises(UserError, match="draws into a notebook"), live_curves(tmp_path, "loss"):
        pass
