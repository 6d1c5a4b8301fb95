"""Several seeds: what is summarised, and what is not overwritten."""

import json
import math
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from bert_jax.config import UserError
from bert_jax.lab.seeds import format_summary, summarise, train_seeds
from bert_jax.run import Result


def result(best, last, test, step=8, signal=None):
    found = [{"accuracy": value, "majority_accuracy": 0.5} if value is not None else {} for value in (last, best, test)]
    return Result(Path("x"), step, "done", *found, checkpoint=Path("x/checkpoints/4"), signal=signal)


def test_best_and_last_validation_and_test_are_kept_apart():
    report = summarise({"seed0": result(0.9, 0.5, 0.8), "seed1": result(0.7, 0.6, 0.6)}, "accuracy", "max")
    means = {split: metrics["accuracy"]["mean"] for split, metrics in report["splits"].items()}
    assert means == {"eval": pytest.approx(0.8), "eval_last": pytest.approx(0.55), "test": pytest.approx(0.7)}
    assert report["best"] == "seed0" and report["failed"] == []
    assert summarise({"a": result(0.4, 0.6, None), "b": result(0.7, 0.6, None)}, "accuracy", "max")["failed"] == ["a"]


def test_means_have_t_intervals_and_what_is_not_finite_is_counted():
    values = (0.7, 0.8, 0.9)
    report = summarise({f"seed{i}": result(x, x, x - 0.1) for i, x in enumerate(values)}, "accuracy", "max")
    found = report["splits"]["eval"]["accuracy"]
    half = 4.302653 * 0.1 / 3**0.5  # the 97.5 % quantile of t with 2 degrees of freedom
    assert (found["sd"], found["low"], found["high"]) == pytest.approx((0.1, 0.8 - half, 0.8 + half))
    assert report["best"] == "seed2" and report["test_of_best"] == pytest.approx(0.8)
    lines = format_summary(report).splitlines()
    assert lines[0].split()[:6] == ["eval", "accuracy", "0.8000", "±", "0.2484,", "sd"]
    assert "best on validation: seed2, 0.8000 on test" in lines[-1]
    assert summarise({"a": result(math.nan, 1, 1), "b": result(0.2, 1, 1)}, "accuracy", "max")["best"] == "b"
    broken = summarise({"a": result(0.7, 0.7, 0.7), "b": result(0.7, 0.7, math.nan)}, "accuracy", "max")
    test = broken["splits"]["test"]["accuracy"]
    assert test["mean"] == pytest.approx(0.7) and test["not_finite"] == 1
    assert "1 of 2 not finite" in format_summary(broken)


def test_a_majority_of_tokens_says_nothing_about_a_run_without_accuracy():
    pretrained = Result(Path("x"), 8, "done", *[{"mlm_accuracy": 0.1, "majority_accuracy": 0.5}] * 3, Path("x"))
    assert summarise({"seed0": pretrained}, "mlm_accuracy", "max")["failed"] == []


def test_without_validation_nothing_is_best():
    report = summarise({"seed0": result(None, None, 0.8), "seed1": result(None, None, 0.6)}, "accuracy", "max")
    assert report["best"] is None and report["splits"].keys() == {"test"}
    assert "no run was evaluated" in format_summary(report)


def test_a_stopped_run_stops_the_others(tmp_path):
    made = []

    def run(config, workdir):
        made.append((config.seed, config.seeds, workdir))
        return result(0.5, 0.5, 0.5, signal=15 if config.seed == 6 else None)

    config = ConfigDict(
        {"seed": 5, "seeds": 3, "checkpoint": {"best_metric": "accuracy", "best_mode": "max", "mirror": ""}}
    )
    assert train_seeds(config, tmp_path, run) == 128 + 15
    assert made == [(5, 1, tmp_path / "seed5"), (6, 1, tmp_path / "seed6")]
    assert not (tmp_path / "seeds.json").exists()


def test_the_workdir_of_a_single_run_stays_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "split": "train"}) + "\n")
    with pytest.raises(UserError, match=r"holds a single run; choose another --workdir for seeds=2"):
        train_seeds(ConfigDict({"seed": 0, "seeds": 2}), tmp_path, lambda *_: pytest.fail("ran"))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
