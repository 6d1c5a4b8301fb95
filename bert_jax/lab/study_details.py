"""What the results of a study rest on: curves, what differs between levels, cost, environment, and every run."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bert_jax.config import UserError
from bert_jax.lab import cost, study_figures
from bert_jax.lab.documents import Block, Folded, Part, Picture, Text
from bert_jax.lab.plots import series
from bert_jax.lab.provenance import read_environments
from bert_jax.lab.records import COMPLETE, STATUSES, RunRecord, StudyRecord
from bert_jax.lab.study_figures import Curves, Scale
from bert_jax.tasks.sections import PROBLEM, Cell, Table
from bert_jax.training.evaluation import LOWER_IS_BETTER
from bert_jax.training.metrics_log import Record, read_metrics

_MOST_PANELS = 3  # of curves per stage
_PRETRAINING = ("mlm_loss", "mlm_accuracy", "nsp_accuracy")
_DAMAGED = "cannot be read"


def describe_details(record: StudyRecord) -> list[Part]:
    """Returns the parts of the report that stand behind the results."""
    environments = {run.key: _environments(run) for run in record.runs if run.folder.is_dir()}
    open_runs = [run for run in record.runs if run.status != COMPLETE]
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
    return list(dict.fromkeys(record.study.metrics.values()))


def _environments(run: RunRecord) -> list[dict[str, Any]]:
    """Returns what a run says of where it ran, the newest last: its own file, or else what the sweep has noted."""
    try:
        return read_environments(run.folder) or ([run.environment] if run.environment else [])
    except UserError:
        return [{"environment.json": {"": _DAMAGED}}]


def _curves(record: StudyRecord) -> list[Block]:
    """Returns a picture for each stage with its most telling metrics, a panel for each setting of the other axes."""
    factor, blocks = record.study.factor, []
    for stage in record.study.stages:
        runs = [run for run in record.of(stage.name) if run.status == COMPLETE]
        lines = {run.key: read_metrics(run.folder / "metrics.jsonl") for run in runs}
        panels = []
        for where in dict.fromkeys(_where(run, factor) for run in runs):
            some = [run for run in runs if _where(run, factor) == where]
            names = _telling(
                [line for run in some for line in lines[run.key]], record.study.metrics.get(stage.name, "")
            )
            title = " · ".join([stage.name, *(f"{axis} = {label}" for axis, label in where)])
            panels += [_panel(title, name, some, lines, factor) for name in names]
        if panels:
            image = study_figures.curves(panels, f"curves-{stage.name}")
            blocks.append(Picture(image, f"curves of the runs of {stage.name}", f"curves-{stage.name}"))
    return blocks


def _panel(title: str, name: str, runs: Sequence[RunRecord], lines: Mapping[str, list[Record]], factor: str) -> Curves:
    drawn: dict[str, list] = {}
    for run in runs:
        drawn.setdefault(run.levels.get(factor, "all runs"), []).append(series(lines[run.key], "eval", name))
    largest = max((abs(x) for some in drawn.values() for _, values in some for x in values), default=0.0)
    factor_of = 100.0 if largest <= 1 and not name.endswith(LOWER_IS_BETTER) else 1.0
    shown = name.replace("_", " ") + (", ×100" if factor_of > 1 else "")
    return Curves(f"{title}: {shown}", drawn, Scale(factor_of, 1, shown))


def _where(run: RunRecord, factor: str) -> tuple[tuple[str, str], ...]:
    """Returns the levels of a run on axes that are neither the factor nor seeds."""
    return tuple((k, v) for k, v in run.levels.items() if k != factor and k.rpartition(".")[2] != "seed")


def _telling(lines: Iterable[Record], metric: str) -> list[str]:
    """Returns the metrics of validation whose curves are drawn: the study's, those of pretraining, BLiMP's, the
    loss."""
    found = {name for line in lines if line["split"] == "eval" for name in line}
    blimp = sorted((name for name in found if name.startswith("blimp")), key=len)[:1]
    names = [metric.partition(".")[2], *(name for name in _PRETRAINING if name in found), *blimp, "loss"]
    return [name for name in dict.fromkeys(names) if name in found][:_MOST_PANELS]


def _keys(record: StudyRecord) -> list[Block]:
    """Returns the options that a level sets, with the values of all levels: those of config.json for a level that
    leaves it at the base experiment's."""
    factor = record.study.factor
    of_factor = [run for run in record.runs if factor in run.levels and run.status != "stale"]
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


def _value(run: RunRecord, key: str, config: Any) -> str:
    if key in run.overrides:
        return str(run.overrides[key])
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return "as the base" if config is None else str(config)


def _cost(record: StudyRecord, environments: Mapping[str, list[dict[str, Any]]]) -> list[Block]:
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


def _environment(record: StudyRecord, environments: Mapping[str, list[dict[str, Any]]]) -> list[Block]:
    """Returns a column per environment in which runs were made, with what differs between them first."""
    begun = [run for run in record.runs if environments.get(run.key)]
    counted = Counter(json.dumps(_facts(environments[run.key][-1]), sort_keys=True) for run in begun)
    if not counted:
        return []
    found = [json.loads(text) for text, _ in counted.most_common(4)]
    keys = sorted({key for facts in found for key in facts}, key=_order)
    rows = [[key, *(facts.get(key, "–") for facts in found)] for key in keys]
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


_FIRST = ("code commit", "code changes", "code version", "devices kind", "devices count", "machine processor")


def _order(key: str) -> tuple[int, str]:
    return (_FIRST.index(key) if key in _FIRST else len(_FIRST), key)


def _facts(entry: Mapping[str, Any]) -> dict[str, str]:
    """Returns what a reader wants to know of an environment, flat; hashes are cut, data is each run's own."""
    facts = {}
    for group, content in entry.items():
        if group in ("time", "step", "data"):
            continue
        items = content.items() if isinstance(content, dict) else [("", content)]
        facts |= {f"{group} {name}".strip(): str(value) for name, value in items if value not in ("", {}, None)}
    facts.pop("code hash", None)
    if "code commit" in facts:
        facts["code commit"] = facts["code commit"][:12]
        facts["code changes"] = f"not committed: {facts['code changes'][:12]}" if "code changes" in facts else "none"
    return facts


def _table_of_open_runs(runs: Sequence[RunRecord]) -> Table:
    rows = [[run.key, Cell(run.status, PROBLEM), run.error or STATUSES[run.status], str(run.attempts)] for run in runs]
    return Table(["run", "status", "reason", "attempts"], rows, {3})
