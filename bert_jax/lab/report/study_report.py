"""The report of a study as a document: what was found, in words, tables and pictures, and what it rests on.

Only complete runs are in a mean; every other run is counted where it is missing, and listed with its reason.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from bert_jax.lab.records import COMPLETE, FAILED, PRUNED, STALE, RunRecord, StudyRecord
from bert_jax.lab.report import study_figures
from bert_jax.lab.report.documents import Beside, Block, Document, Part, Picture, Text, Titled, Verdicts
from bert_jax.lab.report.study_details import describe_details, not_seeds, without_results_that_lack_the_metric
from bert_jax.lab.report.study_figures import Scale
from bert_jax.lab.statistics.differences import BETTER as IS_BETTER
from bert_jax.lab.statistics.differences import UNKNOWN, Difference, Verdict, holm, summary, verdict, welch
from bert_jax.lab.statistics.differences import WORSE as IS_WORSE
from bert_jax.lab.statistics.levels import Comparison, Level, compare_levels
from bert_jax.lab.statistics.resampling import expected_best
from bert_jax.tasks.sections import BEST, BETTER, PROBLEM, UNCLEAR, WORSE, Cell, Table
from bert_jax.tasks.task import LOWER_IS_BETTER

MINUS, NOTHING = "−", "–"
_IN_BRACKETS = "In brackets: the difference of the means ± half of its 95 % interval, in the units of the table below."
_MOST_TRIALS = 20  # of a search, the best ones
_RESAMPLED = "seeds × examples"
_BUDGETS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500)  # numbers of trials
_KINDS = {IS_BETTER: BETTER, IS_WORSE: WORSE, UNKNOWN: UNCLEAR}


def describe_study(record: StudyRecord) -> Document:
    """Returns the report of a study."""
    record = without_results_that_lack_the_metric(record)
    study, comparisons = record.study, compare_levels(record)
    scales = [scale_of(one.metric, _values(one)) for one in comparisons]
    parts = [
        Part("What was found", [Verdicts([*_missing(record), *_found(comparisons, scales)])], _IN_BRACKETS),
        Part("Results", _results(record, comparisons, scales), _explained(comparisons)),
        Part("Differences from the baseline", _differences(comparisons, scales), _how_tested(comparisons)),
        Part("Orderings that the source reports", _orderings(record, comparisons, scales)),
        *describe_details(record),
    ]
    statuses = Counter(run.status for run in record.runs)
    counted = ", ".join(f"{count} {status}" for status, count in statuses.items())
    return Document(study.question or record.name, parts, f"Study {record.name} · {record.file} · runs: {counted or 0}")


def scale_of(metric: str, values: Iterable[float]) -> Scale:
    """Returns how a metric is shown: scores between −1 and 1 as in papers, times 100."""
    split, _, name = metric.partition(".")
    words = {"eval": "validation", "last": "validation at the last step", "test": "test"}
    label = f"{words.get(split, split)} {name.replace('_', ' ')}"
    largest = max((abs(value) for value in values), default=0.0)
    if largest <= 1 and not name.endswith(LOWER_IS_BETTER):
        return Scale(100.0, 1, f"{label}, ×100")
    return Scale(1.0, 3 if largest < 10 else 2 if largest < 100 else 1, label)


def column_title(comparison: Comparison) -> str:
    return " · ".join([comparison.column, *(f"{axis} = {label}" for axis, label in comparison.where.items())])


def number(value: float, scale: Scale, *, signed: bool = False) -> str:
    """Returns a number as it is shown, with a real minus sign."""
    if not math.isfinite(value):
        return NOTHING
    text = f"{scale.factor * value:{'+' if signed else ''}.{scale.decimals}f}"
    return text.replace("-", MINUS)


def with_half(value: float, half: float, scale: Scale, *, signed: bool = False) -> str:
    """Returns "mean ± half"; the mean alone where there is no interval."""
    shown = number(value, scale, signed=signed)
    return f"{shown} ± {number(half, scale)}" if math.isfinite(half) else shown


def finite(run: RunRecord, metric: str) -> float | None:
    """Returns the metric of a complete run; None without one, or if it is not finite."""
    value = run.metric(metric)
    return value if value is not None and math.isfinite(value) else None


def _values(comparison: Comparison) -> list[float]:
    return [value for level in comparison.levels if level.summary for value in level.summary.values]


def _missing(record: StudyRecord) -> list[Cell]:
    """Returns a line about runs that are in no mean."""
    statuses = Counter(run.status for run in record.runs if run.status not in (COMPLETE, STALE, PRUNED))
    if not statuses:
        return []
    counted = ", ".join(f"{count} {status}" for status, count in statuses.items())
    named = sum(run.status != STALE for run in record.runs)
    text = f"{statuses.total()} of {named} runs are in no figure below: {counted}."
    return [Cell(text, PROBLEM, "“Runs that do not count” lists them with their reasons.")]


def _found(comparisons: Sequence[Comparison], scales: Sequence[Scale]) -> list[Cell]:
    """Returns a statement for each level and verdict: what is better or worse first, then what cannot be told."""
    told: dict[tuple[str, str], list[tuple[Comparison, Scale, Level]]] = {}
    for comparison, scale in zip(comparisons, scales, strict=True):
        for level in comparison.levels:
            if level.verdict is not None:
                told.setdefault((level.label, level.verdict.word), []).append((comparison, scale, level))
    if not told:
        text = "No levels were compared: the study names no factor and baseline, or no run is complete."
        return [Cell(text, UNCLEAR)]
    ordered = sorted(told.items(), key=lambda item: item[0][1] == UNKNOWN)
    return [_statement(label, word, found) for (label, word), found in ordered]


def _statement(label: str, word: str, found: Sequence[tuple[Comparison, Scale, Level]]) -> Cell:
    """Returns what is said of a level in all columns that have the same verdict."""
    baseline = found[0][0].baseline
    if word == UNKNOWN:
        titles = _listed([column_title(comparison) for comparison, *_ in found])
        reasons = (f"{column_title(one)}: {_open(level, scale)}" for one, scale, level in found)
        return Cell(f"{label} can’t be told from {baseline} on {titles}", UNCLEAR, "; ".join(reasons))
    shown = _listed([f"{column_title(one)} ({_shift(level, scale)})" for one, scale, level in found])
    tests = [level.difference for *_, level in found if level.difference]
    counts = _listed(dict.fromkeys(f"{test.n} against {test.n_baseline} values" for test in tests))
    said = _p(max(level.p_holm for *_, level in found))
    note = f"{_listed(dict.fromkeys(test.test for test in tests))}, {counts}; p {said} after Holm’s correction"
    return Cell(f"{label} is {word} than {baseline} on {shown}", _KINDS[word], note.replace("p 0", "p ≤ 0"))


def _shift(level: Level, scale: Scale) -> str:
    found = level.difference
    return NOTHING if found is None else with_half(found.mean, found.half, scale, signed=True)


def _open(level: Level, scale: Scale) -> str:
    """Returns what is known of a difference that cannot be told from chance."""
    reason = "" if level.verdict is None else _reason(level.verdict, scale)
    return reason if level.difference is None else f"{_shift(level, scale)}, {reason}"


def _reason(said: Verdict, scale: Scale) -> str:
    visible = "" if said.visible is None else f", those at hand show {number(said.visible, scale)} or more"
    return said.reason + visible


def _listed(labels: Iterable[str]) -> str:
    *first, last = labels
    return f"{', '.join(first)} and {last}" if first else last


def _explained(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return "Mean ± half of the 95 % t interval over runs."
    units = sorted({one.unit for one in comparisons} - {"run"})
    text = "Mean ± half of the 95 % t interval over seeds; the best mean of a column is bold."
    return text + "".join(f" Where runs start from one {unit}, their mean counts as one value." for unit in units)


def _results(record: StudyRecord, comparisons: Sequence[Comparison], scales: Sequence[Scale]) -> list[Block]:
    """Returns the table of means, beside the source's own, and the picture of their intervals."""
    published, found = record.study.published, _table(comparisons, scales) if comparisons else _plain_table(record)
    blocks: list[Block] = [Titled("This study", found) if published else found] if found else []
    blocks += _expected_best(record)
    if published:
        rows = [[label, *(NOTHING if x is None else f"{x:g}" for x in row)] for label, row in published.rows.items()]
        columns = range(1, 1 + len(published.columns))
        blocks.append(Titled(published.title, Table([record.study.factor, *published.columns], rows, columns)))
        blocks = [Beside(blocks), Text(f"Published: {published.source}", "note")]
    drawn = [(one, scale) for one, scale in zip(comparisons, scales, strict=True) if any(x.summary for x in one.levels)]
    if drawn:
        image = study_figures.intervals(
            [one for one, _ in drawn], [column_title(one) for one, _ in drawn], [scale for _, scale in drawn]
        )
        blocks.append(Picture(image, "means and intervals of the levels in each column of the table", "intervals"))
        blocks.append(Text("Small dots: one value each. Large dot and bar: mean and its 95 % interval.", "note"))
    return blocks


def _plain_table(record: StudyRecord) -> Table | None:
    """Returns the means of a study that compares no levels, a row for each setting of all axes but seeds; or the best
    trials of a search. None without a metric."""
    search, rows = record.study.search, []
    metrics = [(stage, metric) for stage in record.study.metrics for metric in record.study.columns(stage).values()]
    for stage, metric in [(record.study.stages[0].name, search.metric)] if search else metrics:
        groups: dict[str, list[RunRecord]] = {}
        for run in record.of(stage):
            groups.setdefault(", ".join(f"{k} = {v}" for k, v in not_seeds(run.levels)) or "all runs", []).append(run)
        scale = scale_of(metric, [x for run in record.of(stage) if (x := finite(run, metric)) is not None])
        rows += [_plain_row(stage, label, group, metric, scale) for label, group in groups.items()]
    if search:
        sign = -1 if search.direction == "max" else 1
        rows = sorted(rows, key=lambda row: math.inf if row[0] is None else sign * row[0])[:_MOST_TRIALS]
    header = ["stage", "runs" if search is None else "trial", "metric", "mean" if search is None else "value"]
    return Table(header, [row[1:] for row in rows], {3}) if rows else None


def _plain_row(stage: str, label: str, runs: Sequence[RunRecord], metric: str, scale: Scale) -> list:
    """Returns the mean, to sort by, and the cells of a row."""
    values = [x for run in runs if (x := finite(run, metric)) is not None]
    note = f"{len(values)} of {len(runs)} runs" if len(values) < len(runs) else _runs(len(runs))
    if not values:
        return [None, stage, label, scale.name, Cell(NOTHING, PROBLEM, note)]
    found = summary(values)
    return [found.mean, stage, label, scale.name, Cell(with_half(found.mean, found.half, scale), "", note)]


def _expected_best(record: StudyRecord) -> list[Block]:
    """Returns what the best of n trials of a random search is expected to reach. A sampler that learns from earlier
    trials makes up none that could stand for others."""
    search = record.study.search
    if search is None or search.sampler != "random":
        return []
    ended = [run for run in record.of(record.study.stages[0].name) if run.status in (COMPLETE, FAILED, PRUNED)]
    chosen_by = [finite(run, search.metric) for run in ended]
    worst = (min if search.direction == "max" else max)((x for x in chosen_by if x is not None), default=None)
    if worst is None:
        return []
    values = [worst if x is None else x for x in chosen_by]
    mode = "min" if search.direction == "min" else "max"
    columns = {"": expected_best(values, mode=mode), ", biased": expected_best(values, mode=mode, replacement=True)}
    scale = scale_of(search.metric, values)
    budgets = [n for n in _BUDGETS if n < len(values)] + [len(values)]
    rows = [[str(n), *(number(float(column[n - 1]), scale) for column in columns.values())] for n in budgets]
    table = Table(["trials", *(f"{scale.name}{kind}" for kind in columns)], rows, range(3))
    replaced = sum(x is None for x in chosen_by)
    note = "The best of so many trials, chosen and measured by the same metric; “biased” draws trials with replacement."
    note += f" {replaced} failed or pruned trials count as the worst complete one." if replaced else ""
    return [Titled("Expected best of n trials", table), Text(note, "note")]


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _table(comparisons: Sequence[Comparison], scales: Sequence[Scale]) -> Table:
    labels = list(dict.fromkeys(level.label for one in comparisons for level in one.levels))
    header = [
        Cell(""),
        *(Cell(column_title(one), "", scale.name) for one, scale in zip(comparisons, scales, strict=True)),
    ]
    rows = []
    for label in labels:
        row = [Cell(label, "", "baseline" if label == comparisons[0].baseline else "")]
        for comparison, scale in zip(comparisons, scales, strict=True):
            level = next((level for level in comparison.levels if level.label == label), None)
            row.append(_mean(level, comparison, scale))
        rows.append(row)
    return Table(header, rows, range(1, len(header)))


def _mean(level: Level | None, comparison: Comparison, scale: Scale) -> Cell:
    if level is None:
        return Cell(NOTHING)
    note = f"{level.complete} of {level.planned} runs" if level.complete < level.planned else _runs(level.planned)
    note += "".join(f", {n} {word}" for n, word in ((level.failed, FAILED), (level.unfinished, "unfinished")) if n)
    if level.summary and level.summary.n < level.complete:
        note += f", {level.summary.n} value{'s' if level.summary.n > 1 else ''}"
    note += f", {level.at_chance} at chance" if level.at_chance else ""
    if level.summary is None:
        return Cell(NOTHING, PROBLEM, note)
    kind = BEST if level.label == comparison.best else ""
    return Cell(with_half(level.summary.mean, level.summary.half, scale), kind, note)


def _differences(comparisons: Sequence[Comparison], scales: Sequence[Scale]) -> list[Block]:
    """Returns the table of tests: a row per level and column of the results."""
    header = ["column", "level", "difference", "effect (sd)", "p", "p (Holm)", "p (study)", "ASO"]
    has_examples = any(level.multibootstrap for one in comparisons for level in one.levels)
    header += [_RESAMPLED, "verdict"] if has_examples else ["verdict"]
    rows = []
    for comparison, scale in zip(comparisons, scales, strict=True):
        for level in comparison.levels:
            if level.verdict is None:
                continue
            said, found = level.verdict, level.difference
            shown: list[str | Cell] = [NOTHING] * 6
            if found is not None:
                numbers = (found.p, level.p_holm, level.p_study)
                pairs = comparison.pairs(level)
                shift = Cell(
                    with_half(found.mean, found.half, scale, signed=True), "", f"{pairs} pairs" if pairs else ""
                )
                shown = [shift, number(found.effect, Scale(1, 1, ""))]
                shown += [*map(_p, numbers), NOTHING if level.aso is None else f"{level.aso:.2f}"]
            shown += [_resampled(level, scale)] if has_examples else []
            last = Cell(said.word, _KINDS[said.word], _reason(said, scale) if said.word == UNKNOWN else "")
            rows.append([column_title(comparison), level.label, *shown, last])
    return [Table(header, rows, range(2, len(header) - 1))] if rows else []


def _resampled(level: Level, scale: Scale) -> str | Cell:
    """Returns the difference by the multibootstrap with its p-value."""
    found = level.multibootstrap
    if found is None:
        return NOTHING
    return Cell(with_half(found.mean, (found.high - found.low) / 2, scale, signed=True), "", f"p {_p(found.p)}")


def _p(value: float) -> str:
    if not math.isfinite(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _how_tested(comparisons: Sequence[Comparison]) -> str:
    tests = sorted({level.difference.test for one in comparisons for level in one.levels if level.difference})
    by = {"Welch": "Welch’s t test", "paired t": "the paired t test over common starting runs"}
    named = _listed(by.get(test, test) for test in tests) if tests else "nothing"
    resampled = f" “{_RESAMPLED}” is the multibootstrap: the interval if other examples had been drawn as well."
    has_examples = any(level.multibootstrap for one in comparisons for level in one.levels)
    return (
        f"Tested by {named}; the interval is that of the difference. Holm’s correction counts the levels of a column, "
        "“study” those of all columns; the verdict is by the first. ASO, almost stochastic order, is a second opinion "
        "that decides nothing: below 0.5 it speaks for the level, with few seeds only weakly."
    ) + (resampled if has_examples else "")


def _orderings(record: StudyRecord, comparisons: Sequence[Comparison], scales: Sequence[Scale]) -> list[Block]:
    """Returns a row for each ordering that the source lets expect: found, the opposite, or can't tell."""
    tested = [
        (better, worse, comparison, scale, _pair(comparison, better, worse))
        for better, worse, column in record.study.expected
        for comparison, scale in zip(comparisons, scales, strict=True)
        if column in (comparison.stage, comparison.column)
    ]
    p_values = holm([math.nan if found is None else found.p for *_, found in tested])
    rows, words = [], {IS_BETTER: ("found", BETTER), IS_WORSE: ("the opposite was found", WORSE)}
    for (better, worse, comparison, scale, found), p in zip(tested, p_values, strict=True):
        shown, cell = NOTHING, Cell(UNKNOWN, UNCLEAR, "a level has no complete run")
        if found is not None:
            said = verdict(found, p, comparison.higher_is_better, len(tested))
            shown = with_half(found.mean, found.half, scale, signed=True)
            cell = Cell(*words.get(said.word, (UNKNOWN, UNCLEAR)), _reason(said, scale))
        rows.append([f"{better} better than {worse}", column_title(comparison), shown, cell])
    if not rows:
        return []
    note = "p values are corrected for the orderings of this table (Holm)."
    return [Table(["expected", "column", "difference", "here"], rows, {2}), Text(note, "note")]


def _pair(comparison: Comparison, better: str, worse: str) -> Difference | None:
    """Returns the difference of two levels; with the baseline, as the table of differences has it."""
    by_label: Mapping[str, Level] = {level.label: level for level in comparison.levels}
    one, other = by_label.get(better), by_label.get(worse)
    if one is None or other is None or one.summary is None or other.summary is None:
        return None
    if worse == comparison.baseline:
        return one.difference
    if better == comparison.baseline and (found := other.difference) is not None:
        return replace(found, mean=-found.mean, low=-found.high, high=-found.low, effect=-found.effect)
    return welch(one.summary.values, other.summary.values)
