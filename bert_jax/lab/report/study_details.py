"""What the results of a study rest on: curves, what differs between levels, cost, environment, and every run."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bert_jax.config import Json, UserError
from bert_jax.lab.plots import series
from bert_jax.lab.provenance import facts, read_environments
from bert_jax.lab.records import COMPLETE, FAILED, PRUNED, STALE, STATUSES, WAITING, RunRecord, StudyRecord
from bert_jax.lab.report import cost, study_figures
from bert_jax.lab.report.documents import Block, Folded, Part, Picture, Text
from bert_jax.lab.report.study_figures import Curves, Scale
from bert_jax.lab.study import Study
from bert_jax.tasks.sections import PROBLEM, Cell, Table
from bert_jax.tasks.task import LOWER_IS_BETTER
from bert_jax.training.metrics_log import Record, read_metrics

_PRETRAINING = ("mlm_loss", "mlm_accuracy", "nsp_accuracy")
_DAMAGED, _UNKNOWN = "cannot be read", "as the base"


def describe_details(record: StudyRecord) -> list[Part]:
    """Returns the parts of the report that stand behind the results."""
    environments = {run.key: _environments(run) for run in record.runs if run.folder.is_dir()}
    open_runs = [run for run in record.runs if run.status not in (COMPLETE, PRUNED)]
    return [
        Part(
            "Curves", _curves(record), "On validation: the mean over complete runs, with the 95 % t interval as a band."
        ),
        Part("What differs between the levels", _keys(record)),
        Part("Cost", _cost(record, environments), cost.ASSUMPTION),
        Part("Environment", _environment(record, environments)),
        Part("Runs that do not count", [_table_of_open_runs(open_runs)] if open_runs else []),
        Part("Every run", [Folded(f"all {len(record.runs)} runs", [table_of_runs(record)])] if record.runs else []),
    ]


def without_results_that_lack_the_metric(record: StudyRecord) -> StudyRecord:
    """Returns the record in which a complete run whose metric is missing or not finite has failed."""
    search, runs = record.study.search, []
    for run in record.runs:
        names = [search.metric] if search else record.study.columns(run.stage).values()
        lacking = [name for name in names if (value := run.metric(name)) is None or not math.isfinite(value)]
        is_bad = lacking and run.status == COMPLETE
        runs.append(replace(run, status=FAILED, error=f"{lacking[0]} is missing or not finite") if is_bad else run)
    return replace(record, runs=runs)


def table_of_runs(record: StudyRecord) -> Table:
    """Returns a row per run: where it is, how it fared, its results."""
    axes = list(dict.fromkeys(axis for run in record.runs for axis in run.levels))
    names = metric_names(record)
    header = ["stage", *axes, "status", "minutes", "attempts", *names]
    rows = []
    for run in record.runs:
        values = (run.result.get(split, {}).get(name) for split, _, name in (text.partition(".") for text in names))
        status = run.status if run.status == COMPLETE else Cell(run.status, PROBLEM)
        levels = [run.levels.get(axis, "") for axis in axes]
        shown = ("" if value is None else f"{value:.4g}" for value in values)
        rows.append([run.stage, *levels, status, f"{run.seconds / 60:.1f}", str(run.attempts), *shown])
    return Table(header, rows, range(2 + len(axes), len(header)))


def metric_names(record: StudyRecord) -> list[str]:
    """Returns the metrics of the study's stages, as SPLIT.METRIC, each once."""
    study = record.study
    return list(dict.fromkeys(metric for stage in study.metrics for metric in study.columns(stage).values()))


def _environments(run: RunRecord) -> list[Json]:
    """Returns what a run says of where it ran, the newest last: its own file, or else what the sweep has noted."""
    try:
        return read_environments(run.folder) or ([run.environment] if run.environment else [])
    except UserError:
        return [{"environment.json": {"": _DAMAGED}}]


def _curves(record: StudyRecord) -> list[Block]:
    """Returns a picture of the metrics that the study compares, and one for each of the other stages."""
    compared, blocks = [], []
    for stage in record.study.stages:
        runs = [run for run in record.of(stage.name) if run.status == COMPLETE]
        panels = list(_panels(stage.name, runs, record.study))
        if stage.name in record.study.metrics:
            compared += panels
        elif panels:
            name = f"curves-{stage.name}"
            blocks.append(Picture(study_figures.curves(panels, name), f"curves of the runs of {stage.name}", name))
    if compared:
        blocks.append(Picture(study_figures.curves(compared, "curves"), "curves of the metrics compared", "curves"))
    return blocks


def _panels(stage: str, runs: Sequence[RunRecord], study: Study) -> Iterator[Curves]:
    """Yields a panel for each setting of the axes that are neither the factor nor seeds, and each telling metric."""
    lines = {run.key: read_metrics(run.folder / "metrics.jsonl") for run in runs}
    for where in dict.fromkeys(_where(run, study.factor) for run in runs):
        some = [run for run in runs if _where(run, study.factor) == where]
        title = " · ".join([stage, *(f"{axis} = {label}" for axis, label in where)])
        for name in _telling([line for run in some for line in lines[run.key]], study.columns(stage).values()):
            drawn: dict[str, list] = {}
            for run in some:
                label = run.levels.get(study.factor, "all runs")
                drawn.setdefault(label, []).append(series(lines[run.key], "eval", name))
            yield Curves(f"{title}: {name.replace('_', ' ')}", drawn, _scale(name, drawn))


def _scale(name: str, drawn: Mapping[str, list]) -> Scale:
    largest = max((abs(x) for some in drawn.values() for _, values in some for x in values), default=0.0)
    return Scale(100.0 if largest <= 1 and not name.endswith(LOWER_IS_BETTER) else 1.0, 1, name)


def not_seeds(levels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Returns the levels on axes that are not seeds."""
    return tuple((axis, label) for axis, label in levels.items() if axis.rpartition(".")[2] != "seed")


def _where(run: RunRecord, factor: str) -> tuple[tuple[str, str], ...]:
    return tuple((axis, label) for axis, label in not_seeds(run.levels) if axis != factor)


def _telling(lines: Iterable[Record], metrics: Iterable[str]) -> list[str]:
    """Returns the metrics of validation whose curves are drawn: those that are compared, or else those of pretraining
    and BLiMP, or else the loss."""
    found = {name for line in lines if line["split"] == "eval" for name in line}
    blimp = sorted((name for name in found if name.startswith("blimp")), key=len)[:1]
    names = [metric.partition(".")[2] for metric in metrics] or [*_PRETRAINING, *blimp]
    return [name for name in dict.fromkeys(names) if name in found] or [name for name in ("loss",) if name in found]


def _keys(record: StudyRecord) -> list[Block]:
    """Returns the options that a level sets, with the values of all levels: those of config.json for a level that
    leaves it at the base experiment's."""
    factor = record.study.factor
    of_factor = [run for run in record.runs if factor in run.levels and run.status != STALE]
    first = {run.levels[factor]: run for run in reversed(of_factor)}
    first = {label: first[label] for label in dict.fromkeys(run.levels[factor] for run in of_factor)}
    keys = dict.fromkeys(key for run in first.values() for key in run.overrides)
    configs = {label: _config(run) for label, run in first.items()}
    rows = []
    for key in keys:
        values = [_value(run, key, configs[label]) for label, run in first.items()]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return [Table(["option", *first], rows)] if rows else []


def _config(run: RunRecord) -> Mapping[str, Any]:
    try:
        found = json.loads((run.folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _value(run: RunRecord, key: str, config: object) -> str:
    if key in run.overrides:
        return str(run.overrides[key])
    for name in key.split("."):
        config = config.get(name, _UNKNOWN) if isinstance(config, dict) else _UNKNOWN
    return str(config)


def _cost(record: StudyRecord, environments: Mapping[str, list[Json]]) -> list[Block]:
    """Returns a row per stage: all its runs, failed and stale ones included, since they were paid for."""
    header = ["stage", "runs begun", "device hours", "tokens", "FLOP", "energy (estimate)"]
    stages = list(dict.fromkeys(run.stage for run in record.runs))
    costs = [cost.total((r for r in record.runs if r.stage == stage), environments) for stage in stages]
    if not any(one.runs for one in costs):
        return []
    rows = [_cost_row(stage, one) for stage, one in zip(stages, costs, strict=True)]
    rows += [_cost_row("all", sum(costs, cost.Cost()))] if len(stages) > 1 else []
    return [Table(header, rows, range(1, len(header)))]


def _cost_row(stage: str, spent: cost.Cost) -> list[str]:
    energy = f"{spent.watt_hours / 1000:.3g} kWh" if spent.watt_hours >= 1000 else f"{spent.watt_hours:.3g} Wh"
    return [stage, str(spent.runs), f"{spent.device_hours:.2f}", _large(spent.tokens), _large(spent.flops), energy]


def _large(number: float) -> str:
    """Returns a number with three digits and a prefix, as 1.23 G."""
    if not number:
        return "–"
    power = min(max(int(math.log10(number)) // 3, 0), 7)
    return f"{number / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P', 'E', 'Z'][power]}".strip()


def _environment(record: StudyRecord, environments: Mapping[str, list[Json]]) -> list[Block]:
    """Returns a column per environment in which runs were made, with what differs between them first."""
    begun = [run for run in record.runs if environments.get(run.key)]
    counted = Counter(json.dumps(facts(environments[run.key][-1])) for run in begun)
    if not counted:
        return []
    found = [json.loads(text) for text, _ in counted.most_common(4)]
    keys = dict.fromkeys(key for one in found for key in one)
    rows = [[key, *(one.get(key, "–") for one in found)] for key in keys]
    blocks: list[Block] = []
    differing = [row for row in rows if len(set(row[1:])) > 1]
    if len(counted) > 1:
        text = (
            f"The runs were made in {len(counted)} environments, which differ in {', '.join(r[0] for r in differing)}."
        )
        blocks.append(Text(text, PROBLEM))
        rows = [*differing, *(row for row in rows if row not in differing)]
    header = ["", *(f"{count} runs" for _, count in counted.most_common(4))]
    return [*blocks, Table(header, rows)]


def _table_of_open_runs(runs: Sequence[RunRecord]) -> Table:
    """Returns a row per run; those whose turn has not come yet share one per stage."""
    rows, statuses = [], {run.key: run.status for run in runs}
    patient = [run for run in runs if run.status == WAITING and statuses.get(run.after) != FAILED]
    for run in (run for run in runs if run not in patient):
        rows.append([run.key, Cell(run.status, PROBLEM), run.error or STATUSES[run.status], str(run.attempts)])
    for stage, count in Counter(run.stage for run in patient).items():
        rows.append([stage, Cell(WAITING, PROBLEM), f"{count} runs have not started", "0"])
    return Table(["run", "status", "reason", "attempts"], rows, {3})
