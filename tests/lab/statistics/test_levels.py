"""The levels of a study: what counts as one value, what is not averaged, and the verdicts."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from bert_jax.lab.records import RunRecord, StudyRecord
from bert_jax.lab.statistics.differences import paired, welch
from bert_jax.lab.statistics.levels import compare_levels
from bert_jax.lab.study import Stage, Study, choice, grid, plan, seeds, values

OBJECTIVE = choice("objective", {"MLM + NSP": {}, "MLM": {"data.pairing": "none"}})
PRETRAIN = Stage("pretrain", "base.py", grid(OBJECTIVE, seeds(3)))


def record(study, value, status=lambda run: "complete"):
    """Returns the record of a study whose runs have `value(run)` as accuracy and loss, on validation and test."""
    runs = []
    for run in plan(study):
        number = value(run)
        result = {split: {"accuracy": number, "loss": number, "majority_accuracy": 0.5} for split in ("eval", "test")}
        place = run.stage, run.name, dict(run.levels), {}, Path("none")
        runs.append(RunRecord(*place, status(run), result=result, after=run.after))
    return StudyRecord(Path("none"), "study", "study.py", study, runs)


def study(*stages, metrics, baseline="MLM + NSP", factor="objective"):
    return Study("why?", stages, factor, baseline, metrics)


def of_seed(run):
    return 0.8 + 0.01 * int(run.levels["seed"]) + (0.1 if run.levels["objective"] == "MLM" else 0.0)


def test_each_level_is_compared_with_the_baseline():
    [found] = compare_levels(record(study(PRETRAIN, metrics={"pretrain": "test.accuracy"}), of_seed))
    base, level = found.levels
    assert (found.stage, found.metric, found.unit, found.where) == ("pretrain", "test.accuracy", "run", {})
    assert base.summary.values == pytest.approx((0.8, 0.81, 0.82)) and base.verdict is None and base.difference is None
    assert level.difference == welch(level.summary.values, base.summary.values)
    assert level.verdict.word == "better" and level.p_holm == level.difference.p and found.best == "MLM"
    assert level.aso == 0.0 and level.notes == ()


def test_a_lower_loss_is_better():
    [found] = compare_levels(record(study(PRETRAIN, metrics={"pretrain": "eval.loss"}), of_seed))
    assert found.levels[1].verdict.word == "worse" and found.best == "MLM + NSP" and found.levels[1].aso == 1.0


def test_a_stage_with_several_metrics_has_a_column_for_each():
    both = study(PRETRAIN, metrics={"pretrain": "test.accuracy, eval.loss"})
    found = compare_levels(record(both, of_seed))
    assert [(one.column, one.metric) for one in found] == [
        ("pretrain accuracy", "test.accuracy"),
        ("pretrain loss", "eval.loss"),
    ]
    alone = [compare_levels(record(study(PRETRAIN, metrics={"pretrain": one.metric}), of_seed))[0] for one in found]
    assert [x.levels[1].verdict.word for x in found] == ["better", "worse"]
    for one, other in zip(found, alone, strict=True):
        assert one.stage == other.stage == other.column == "pretrain" and one.levels[0] == other.levels[0]
        assert one.levels[1].difference == other.levels[1].difference
        assert one.levels[1].p_study == min(1.0, 2 * other.levels[1].p_study)  # two tests in the place of one


def test_fine_tunings_of_one_pretrained_model_are_one_value():
    tune = Stage("tune", "glue.py", grid(seeds(4)), after="pretrain")
    [found] = compare_levels(
        record(
            study(PRETRAIN, tune, metrics={"tune": "test.accuracy"}),
            lambda run: float(run.levels.get("pretrain.seed", 0)) + 0.1 * int(run.levels["seed"]),
        )
    )
    assert found.unit == "run of pretrain"
    assert [level.planned for level in found.levels] == [12, 12]
    assert found.levels[0].summary.values == pytest.approx((0.15, 1.15, 2.15))  # 0.15 is the mean of 0, 0.1, 0.2, 0.3
    assert found.levels[1].difference.test == "Welch"


def test_levels_that_start_from_the_same_runs_are_paired_by_them():
    pretrain = Stage("pretrain", "base.py", grid(seeds(3)))
    tune = Stage("tune", "glue.py", grid(values("optimizer.learning_rate", [1e-4, 3e-4]), seeds(2)), after="pretrain")
    noise = {("0.0001", 0): 0.0, ("0.0001", 1): 0.5, ("0.0003", 0): 0.02, ("0.0003", 1): 0.53}
    of = study(pretrain, tune, metrics={"tune": "test.accuracy"}, baseline="0.0001", factor="optimizer.learning_rate")

    def value(run):
        base = int(run.levels["pretrain.seed" if run.stage == "tune" else "seed"])
        lr = run.levels.get("optimizer.learning_rate", "")
        return base + noise.get((lr, int(run.levels["seed"])), 0.0) + (0.001 * base if lr == "0.0003" else 0.0)

    [found] = compare_levels(record(of, value))
    base, level = found.levels
    assert found.unit == "run of pretrain" and base.summary.values == pytest.approx((0.25, 1.25, 2.25))
    assert level.difference.test == "paired t" and level.difference == paired(level.summary.values, base.summary.values)
    assert level.difference.mean == pytest.approx(0.026) and level.verdict.word == "better"


def test_other_axes_are_compared_separately_and_corrected_together():
    points = grid(OBJECTIVE, choice("size", {"tiny": {}, "mini": {}}), seeds(3))
    found = compare_levels(record(study(Stage("a", "x.py", points), metrics={"a": "test.accuracy"}), of_seed))
    assert [one.where for one in found] == [{"size": "tiny"}, {"size": "mini"}]
    p = found[0].levels[1].difference.p
    assert [one.levels[1].p_holm for one in found] == [p, p]
    assert [one.levels[1].p_study for one in found] == pytest.approx([2 * p, 2 * p])


def test_failed_and_unfinished_runs_are_counted_and_never_averaged():
    statuses = {("MLM", "0"): "failed", ("MLM", "1"): "running", ("MLM + NSP", "2"): "waiting"}

    def status(run):
        return statuses.get((run.levels["objective"], run.levels["seed"]), "complete")

    [found] = compare_levels(record(study(PRETRAIN, metrics={"pretrain": "test.accuracy"}), of_seed, status))
    base, level = found.levels
    assert (base.complete, base.failed, base.unfinished) == (2, 0, 1) and base.summary.values == pytest.approx(
        (0.8, 0.81)
    )
    assert (level.complete, level.failed, level.unfinished) == (1, 1, 1) and level.summary.values == pytest.approx(
        (0.92,)
    )
    assert level.notes == ("1 of 3 runs failed", "1 of 3 runs are not finished")
    assert level.verdict.word == "can't tell" and "one run has no spread" in level.verdict.reason


def test_a_metric_that_is_not_finite_or_missing_is_a_failure():
    def value(run):
        return math.nan if run.levels["seed"] == "1" else of_seed(run)

    [found] = compare_levels(record(study(PRETRAIN, metrics={"pretrain": "test.accuracy"}), value))
    assert [(level.complete, level.failed, level.summary.n) for level in found.levels] == [(2, 1, 2), (2, 1, 2)]
    assert found.levels[0].notes == ("test.accuracy is missing or not finite in 1 of 3 runs, which count as failed",)
    [found] = compare_levels(record(study(PRETRAIN, metrics={"pretrain": "test.f1"}), of_seed))
    assert [(level.failed, level.summary) for level in found.levels] == [(3, None), (3, None)] and found.best is None


def test_zero_is_a_value():
    [found] = compare_levels(record(study(PRETRAIN, metrics={"pretrain": "test.accuracy"}), lambda run: 0.0))
    assert [level.complete for level in found.levels] == [3, 3]
    assert found.levels[1].verdict.reason == "all runs have the same value"
    assert [level.at_chance for level in found.levels] == [3, 3]  # 0 is below the majority's 0.5


def test_without_a_complete_run_of_the_baseline_there_is_no_verdict():
    def status(run):
        return "failed" if run.levels["objective"] == "MLM + NSP" else "complete"

    [found] = compare_levels(record(study(PRETRAIN, metrics={"pretrain": "test.accuracy"}), of_seed, status))
    assert found.levels[1].difference is None and found.comparisons == 1
    assert str(found.levels[1].verdict) == "can't tell, the baseline, MLM + NSP, has no complete run"


def test_without_a_baseline_there_are_means_and_nothing_is_compared():
    [found] = compare_levels(record(study(PRETRAIN, metrics={"pretrain": "test.accuracy"}, baseline=""), of_seed))
    assert [level.verdict for level in found.levels] == [None, None] and found.best == "MLM"


def test_a_study_without_a_factor_compares_nothing():
    assert (
        compare_levels(record(study(PRETRAIN, metrics={"pretrain": "eval.loss"}, factor="", baseline=""), of_seed))
        == []
    )


def test_from_ten_seeds_on_examples_are_resampled_too(tmp_path):
    def with_predictions(count, spoil=None):
        of = study(Stage("a", "x.py", grid(OBJECTIVE, seeds(count))), metrics={"a": "eval.accuracy"})
        random, runs = np.random.default_rng(0), []
        for run in plan(of):
            right = random.random(200) < (0.9 if run.levels["objective"] == "MLM" else 0.6)
            folder = tmp_path / str(count) / run.name
            (folder / "predictions").mkdir(parents=True, exist_ok=True)
            lines = [json.dumps({"label": "1", "prediction": {"label": str(int(x))}}) for x in right]
            (folder / "predictions" / "validation.jsonl").write_text("\n".join(lines[: spoil and -1]) + "\n")
            result = {"eval": {"accuracy": float(right.mean())}}
            runs.append(RunRecord("a", run.name, dict(run.levels), {}, folder, "complete", result=result))
        [found] = compare_levels(StudyRecord(tmp_path, "study", "study.py", of, runs))
        return found.levels

    base, level = with_predictions(10)
    assert base.multibootstrap is None and level.multibootstrap.mean == pytest.approx(level.difference.mean)
    assert level.multibootstrap.p < 0.001 and level.multibootstrap.low < 0.3 < level.multibootstrap.high
    assert with_predictions(9)[1].multibootstrap is None
    assert with_predictions(11, spoil=True)[1].multibootstrap is None  # not the predictions of this metric
