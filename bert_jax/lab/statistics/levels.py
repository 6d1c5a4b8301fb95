"""The levels of a study's factor compared with its baseline, stage by stage: what a report shows.

for comparison in compare_levels(read_study("runs/objectives")):
    for level in comparison.levels:
        print(comparison.stage, level.label, level.summary, level.verdict)
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bert_jax.lab.records import COMPLETE, FAILED, RunRecord, StudyRecord
from bert_jax.lab.statistics.differences import (
    ALPHA,
    UNKNOWN,
    Difference,
    Summary,
    Verdict,
    holm,
    paired,
    summary,
    verdict,
    welch,
)
from bert_jax.lab.statistics.resampling import FEWEST_SEEDS, Bootstrapped, almost_stochastic_order, multibootstrap
from bert_jax.tasks.task import LOWER_IS_BETTER

Scores = dict[str, np.ndarray]  # independent run → the score of each example
_OF_EXAMPLES = "eval.accuracy"  # the mean of scores of examples that runs keep


@dataclass(frozen=True)
class Level:
    """A level of the study's factor in one comparison. Of runs that start from one and the same run of the stage that
    varies the factor, the mean counts as one value."""

    label: str
    planned: int  # runs that the study names
    complete: int
    failed: int  # failed, or complete with a metric that is missing or not finite; never in the summary
    unfinished: int  # running, interrupted or waiting
    at_chance: int  # of the complete ones, those no better than always guessing the most frequent class
    summary: Summary | None  # None without a complete run
    difference: Difference | None = None  # from the baseline; None for the baseline itself
    p_holm: float = math.nan  # corrected for the levels of this comparison
    p_study: float = math.nan  # corrected for all comparisons of the study
    aso: float | None = None  # almost stochastic order, see `resampling.py`; below 0.5 the level is better
    verdict: Verdict | None = None
    multibootstrap: Bootstrapped | None = None  # over seeds × examples: of accuracy on validation, from 10 seeds on
    notes: tuple[str, ...] = ()  # what a reader must know of the runs


@dataclass(frozen=True)
class Comparison:
    """The levels of a study's factor, by the metric of one stage, with all other axes but seeds at one setting."""

    stage: str
    column: str  # the stage, with the metric where it has several
    metric: str  # SPLIT.METRIC
    where: dict[str, str]  # other axis → label
    higher_is_better: bool
    baseline: str
    unit: str  # what counts as one value: "run", or "run of <stage>"
    levels: tuple[Level, ...]  # in the study's order

    @property
    def comparisons(self) -> int:
        """The number of tests that p_holm is corrected for."""
        return max(1, sum(level.difference is not None for level in self.levels))

    def pairs(self, level: Level) -> int | None:
        """Returns the number of pairs in a level's difference, if its mean or the baseline's is of more values."""
        sizes = [one.summary.n for one in self.levels if one.summary and one.label in (level.label, self.baseline)]
        found = level.difference
        return found.n if found and found.test != "Welch" and found.n < max(sizes) else None

    @property
    def best(self) -> str | None:
        """The label of the best mean; None without one."""
        sign = 1 if self.higher_is_better else -1
        means = {level.label: sign * level.summary.mean for level in self.levels if level.summary}
        return max(means, key=lambda label: means[label], default=None)


def compare_levels(record: StudyRecord) -> list[Comparison]:
    """Returns the comparisons of a study: for each metric of a stage, and each setting of the axes that are neither the
    factor nor seeds, every level with the baseline. Without a factor, or for a stage that it does not reach, none.
    """
    study, found = record.study, []
    by_key = {run.key: run for run in record.runs}
    for stage in study.metrics:
        runs = [run for run in record.of(stage) if study.factor in run.levels]
        others = [_others(run, study.factor) for run in runs]
        for where in [dict(items) for items in dict.fromkeys(tuple(other.items()) for other in others)]:
            chosen = [run for run, other in zip(runs, others, strict=True) if other == where]
            for column, metric in study.columns(stage).items():
                found.append(_compare(chosen, by_key, study.factor, study.baseline, (stage, column), metric, where))
    return _corrected_for_study(found)


def _others(run: RunRecord, factor: str) -> dict[str, str]:
    return {axis: label for axis, label in run.levels.items() if axis != factor and axis.rpartition(".")[2] != "seed"}


def _compare(
    runs: Sequence[RunRecord],
    by_key: Mapping[str, RunRecord],
    factor: str,
    baseline: str,
    place: tuple[str, str],
    metric: str,
    where: dict[str, str],
) -> Comparison:
    """Returns the comparison of the runs of a stage, whose place in the table is (stage, column)."""
    higher = not metric.endswith(LOWER_IS_BETTER)
    groups = {label: [run for run in runs if run.levels[factor] == label] for label in _labels(runs, factor)}
    # An earlier stage may vary the factor: its runs are independent, those that start from one of them are not. If this
    # stage varies it, and starts from several runs, those are the independent ones, and levels are paired by them.
    sources = {run.key: _first_with(factor, run, by_key) for run in runs}
    are_shared = len({run.after for run in runs}) > 1 and all(sources[run.key] is run for run in runs)
    names = {run.key: run.after if are_shared else sources[run.key].key for run in runs}
    stages = {name.partition("/")[0] for name in names.values()}
    units = {label: _units(group, names, metric) for label, group in groups.items()}
    levels = [_level(label, group, units[label], metric) for label, group in groups.items()]
    levels = _judged([_compared(level, units, baseline, are_shared) for level in levels], units, baseline, higher)
    if metric == _OF_EXAMPLES:
        scores = {label: _scores(group, names) for label, group in groups.items() if len(units[label]) >= FEWEST_SEEDS}
        levels = [_resampled(level, scores, baseline, are_shared) for level in levels]
    unit = "run" if stages == {place[0]} else f"run of {', '.join(sorted(stages))}"
    return Comparison(*place, metric, where, higher, baseline, unit, tuple(levels))


def _labels(runs: Sequence[RunRecord], factor: str) -> list[str]:
    return list(dict.fromkeys(run.levels[factor] for run in runs))


def _first_with(factor: str, run: RunRecord, by_key: Mapping[str, RunRecord]) -> RunRecord:
    """Returns the first of the runs that lead to this one which has a level of the factor."""
    while (parent := by_key.get(run.after)) is not None and factor in parent.levels:
        run = parent
    return run


def _units(group: Sequence[RunRecord], names: Mapping[str, str], metric: str) -> dict[str, float]:
    """Returns the value of each independent run: the mean of those that belong to it."""
    found: dict[str, list[float]] = {}
    for run in group:
        if math.isfinite(value := _value(run, metric)):
            found.setdefault(names[run.key], []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in found.items()}


def _value(run: RunRecord, metric: str) -> float:
    """Returns the metric of a run; NaN if it has none."""
    value = run.metric(metric)
    return math.nan if value is None else value


def _level(label: str, group: Sequence[RunRecord], units: Mapping[str, float], metric: str) -> Level:
    complete = [run for run in group if run.status == COMPLETE]
    bad = [run.key for run in complete if not math.isfinite(_value(run, metric))]
    failed = sum(run.status == FAILED for run in group)
    stuck = sum(at_chance(run.result.get("eval", {})) for run in complete)
    unfinished = len(group) - len(complete) - failed
    notes = {
        f"{failed} of {len(group)} runs failed": failed,
        f"{metric} is missing or not finite in {len(bad)} of {len(group)} runs, which count as failed": bad,
        f"{unfinished} of {len(group)} runs are not finished": unfinished,
        f"{stuck} of {len(complete)} runs are no better than the most frequent class": stuck,
    }
    values = summary(list(units.values())) if units else None
    said = tuple(note for note, is_needed in notes.items() if is_needed)
    return Level(label, len(group), len(complete) - len(bad), failed + len(bad), unfinished, stuck, values, notes=said)


def at_chance(metrics: Mapping[str, float]) -> bool:
    """Returns whether a run learned nothing: its accuracy is no higher than that of always guessing one class."""
    if not {"accuracy", "majority_accuracy"} <= metrics.keys():
        return False
    return metrics["accuracy"] <= metrics["majority_accuracy"]


def _compared(level: Level, units: Mapping[str, Mapping[str, float]], baseline: str, are_shared: bool) -> Level:
    """Adds the difference from the baseline to a level that has values."""
    values, base = units[level.label], units.get(baseline, {})
    if level.label == baseline or not baseline:
        return level
    if not values or not base:
        missing = "this level" if not values else f"the baseline, {baseline},"
        return replace(level, verdict=Verdict(UNKNOWN, f"{missing} has no complete run"))
    both = [name for name in values if name in base] if are_shared else []
    if both:
        found = paired([values[name] for name in both], [base[name] for name in both])
    else:
        found = welch(list(values.values()), list(base.values()))
    return replace(level, difference=found)


def _judged(levels: list[Level], units: Mapping[str, Mapping[str, float]], baseline: str, higher: bool) -> list[Level]:
    """Adds corrected p-values, almost stochastic order and verdicts to the levels that have a difference."""
    tested = {level.label: level.difference.p for level in levels if level.difference}
    p_values = dict(zip(tested, holm(list(tested.values())), strict=True))
    judged = []
    for level in levels:
        if level.difference is None:
            judged.append(level)
            continue
        p, sign = p_values[level.label], 1 if higher else -1
        scores = [[sign * value for value in units[label].values()] for label in (level.label, baseline)]
        aso = almost_stochastic_order(*scores, alpha=ALPHA / len(tested))
        said = verdict(level.difference, p, higher, len(tested))
        judged.append(replace(level, p_holm=p, aso=aso, verdict=said))
    return judged


def _resampled(level: Level, scores: Mapping[str, Scores], baseline: str, are_shared: bool) -> Level:
    """Adds the multibootstrap to a level with enough seeds, if its runs and the baseline's kept their predictions."""
    of_level, of_baseline = scores.get(level.label), scores.get(baseline)
    if level.difference is None or not of_level or not of_baseline:
        return level
    names = list(of_level), list(of_baseline)
    if are_shared:
        names = ([name for name in of_level if name in of_baseline],) * 2
    rows = [[found[name] for name in some] for found, some in zip((of_level, of_baseline), names, strict=True)]
    if len({len(row) for side in rows for row in side}) > 1 or min(map(len, rows)) < FEWEST_SEEDS:
        return level
    return replace(level, multibootstrap=multibootstrap(*map(np.asarray, rows), paired=are_shared))


def _scores(group: Sequence[RunRecord], names: Mapping[str, str]) -> Scores:
    """Returns for each independent run which examples it has right, the mean over the runs that belong to it; {} if one
    did not keep its predictions."""
    found: dict[str, list[np.ndarray]] = {}
    for run in group:
        if not math.isfinite(value := _value(run, _OF_EXAMPLES)):
            continue
        scores = _right(run.folder / "predictions" / "validation.jsonl")
        # They are those of the metric only if they have its mean: a later evaluation may have replaced the file.
        if scores is None or abs(scores.mean() - value) > 1e-5:
            return {}
        found.setdefault(names[run.key], []).append(scores)
    same_length = len({len(row) for rows in found.values() for row in rows}) == 1
    return {name: np.mean(rows, axis=0) for name, rows in found.items()} if same_length else {}


def _right(path: Path) -> np.ndarray | None:
    """Returns 1 for each example whose predicted label is the right one, else 0; None if there is no such file."""
    try:
        records = [json.loads(line) for line in path.read_bytes().splitlines()] if path.is_file() else []
        scores = [float(record["prediction"]["label"] == record["label"]) for record in records]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return np.asarray(scores) if scores else None


def _corrected_for_study(comparisons: list[Comparison]) -> list[Comparison]:
    """Adds the p-values that are corrected for all comparisons of the study."""
    differences = (level.difference for one in comparisons for level in one.levels)
    p_values = iter(holm([found.p for found in differences if found]))
    return [
        replace(one, levels=tuple(replace(x, p_study=next(p_values)) if x.difference else x for x in one.levels))
        for one in comparisons
    ]
