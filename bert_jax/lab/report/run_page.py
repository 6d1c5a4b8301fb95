"""The page of one run: its scores, its curves, where its time went, and what its task says of each example.

A run with predictions writes predictions/validation.jsonl and report.html when it ends.
"""

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bert_jax.config import Json
from bert_jax.convert.model_card import limits, works
from bert_jax.lab import plots
from bert_jax.lab.provenance import facts, read_environments
from bert_jax.lab.report.documents import Block, Code, Document, Folded, Part, Picture, Text, to_html
from bert_jax.tasks.sections import BY_LANGUAGE, Confusions, Report, Scatter, Section, Table, ThresholdCurve
from bert_jax.tasks.task import LOWER_IS_BETTER
from bert_jax.training.energy import described, energy_of
from bert_jax.training.metrics_log import read_metrics

_KEYS = (
    *("task", "init_from", "seed", "data.train", "data.validation", "data.sequence_length", "data.long_texts"),
    *("train.epochs", "train.batch_size", "optimizer.learning_rate", "checkpoint.best_metric"),
    *("model.num_hidden_layers", "model.hidden_size"),
)
ENERGY_NOTE = "From the first state of each start to its end. What no counter measured is an estimate of the power."


def write_report(
    report: Report,
    metrics: Mapping[str, float],
    config: ConfigDict,
    workdir: Path,
    overrides: Mapping[str, object] | None,
) -> Path:
    """Writes the predictions and the page of an evaluation of validation, and returns the page's path. `overrides` are
    the keys set on the command line."""
    folder = workdir / "predictions"
    folder.mkdir(exist_ok=True)
    with (folder / "validation.jsonl").open("w", encoding="utf-8") as file:
        for record in report.records:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    page = workdir / "report.html"
    page.write_text(to_html(describe_run(report, metrics, config, workdir, overrides)), encoding="utf-8")
    logging.info("report: %s", page)
    return page


def describe_run(
    report: Report | None,
    metrics: Mapping[str, float],
    config: ConfigDict,
    workdir: Path,
    overrides: Mapping[str, object] | None = None,
) -> Document:
    """Returns the document of a run; `report` is its task's part, if it has one, and `metrics` those on validation."""
    settings = [[key, str(functools.reduce(lambda group, name: group[name], key.split("."), config))] for key in _KEYS]
    command = " ".join(f"--config.{key}={value}" for key, value in (overrides or {}).items())
    records, starts = read_metrics(workdir / "metrics.jsonl"), read_environments(workdir)
    evaluations = [line for line in records if line["split"] == "eval"]
    told = _languages(report)  # in a table of their own
    names = [name for name in metrics if name.partition("/")[0] not in told]
    values = [[name, f"{metrics[name]:.4f}", *_best_of(name, evaluations)] for name in names]
    curve, time = plots.learning_curve(records, config.checkpoint.best_metric), plots.where_time_went(records)
    environment = [[name, text] for name, text in facts(starts[-1]).items()] if starts else []
    data = [[name, str(digest)] for name, digest in (starts[-1].get("data", {}) if starts else {}).items()]
    cost = [[name, text] for name, text in described(energy_of(records)).items()]
    parts = [
        Part(
            "Best checkpoint on validation",
            [Table(["metric", "value", "best of the run", "at step"], values, {1, 2, 3})] if values else [],
        ),
        Part("Before and after", *_before_and_after(records, metrics)),
        Part("Run", [Table(["key", "value"], settings)]),
        Part("Set on the command line", [Code(command)] if command else []),
        Part("Learning curve", [Picture(curve, "learning curve", "curve")] if curve else []),
        *(Part(section.title, *_drawn(section)) for section in (report.sections if report else ())),
        Part("Where the time went", [Picture(time, "where the time went", "time")] if time else []),
        Part("Energy", [Table(["", "all starts"], cost)] if cost else [], ENERGY_NOTE),
        Part("Environment", [Table(["", "newest start"], environment)] if environment else []),
        Part("Data", [Table(["", "hash of what was read"], data)] if data else []),
        Part("Limits", [Text(limit) for limit in limits(config.to_dict(), evaluated=bool(values))]),
        Part("How to cite", [Text(work) for work in works(config.to_dict())]),
        Part("Config", [Folded("all keys", [Code(json.dumps(config.to_dict(), indent=2))])]),
    ]
    return Document(f"{config.task}: {workdir.name}", parts)


def _before_and_after(records: list[Json], metrics: Mapping[str, float]) -> tuple[list[Block], str]:
    """Returns a table of the MLM losses of all text and of each corpus, of a run that has several: before the first
    step and of the best checkpoint. That of general text says what was forgotten."""
    before = next((line for line in records if line["split"] == "eval" and line["step"] == 0), {})
    names = [name for name in metrics if name.endswith("mlm_loss") and name in before]
    if not any("/" in name for name in names):
        return [], ""
    rows = []
    for name in sorted(names, key=lambda name: ("/" in name, name)):
        pair = float(before[name]), float(metrics[name])
        change = f"{pair[1] - pair[0]:+.4f}".replace("-", "−")
        rows.append([name.removesuffix("mlm_loss").rstrip("/") or "all", *(f"{value:.4f}" for value in pair), change])
    note = "The loss of masked tokens in nats; lower is better. Vocabularies that differ make losses that differ."
    return [Table(["corpus", "before", "after", "change"], rows, {1, 2, 3})], note


def _best_of(name: str, evaluations: Sequence[Mapping[str, object]]) -> tuple[str, str]:
    """Returns the best value of a metric in all evaluations of a run, and its step."""
    choose = min if name.endswith(LOWER_IS_BETTER) else max
    found = [(line[name], line["step"]) for line in evaluations if name in line]
    value, step = choose(found, key=itemgetter(0)) if found else ("", "")
    return f"{value:.4f}" if found else "", str(step)


def _languages(report: Report | None) -> set[Any]:
    """Returns the languages that the report has scores of."""
    tables = (section.body for section in (report.sections if report else ()) if section.title == BY_LANGUAGE)
    return {row[0] for table in tables if isinstance(table, Table) for row in table.rows}


def _drawn(section: Section) -> tuple[list[Block], str]:
    """Returns the blocks of a section, and its note."""
    match section.body:
        case Table() as table:
            return [table], section.note
        case Confusions() as counts:
            png, explanation = plots.confusion_matrix(*counts)
            return [Picture(png, "confusion matrix", "confusions")], section.note or explanation
        case Scatter() as points:
            return [Picture(plots.scatter(*points), "predicted against given numbers", "scatter")], section.note
        case ThresholdCurve() as curve:
            return [Picture(plots.threshold_curve(*curve), "threshold curve", "thresholds")], section.note
        case _:
            return [Text(section.note, "note")] if section.note else [], ""
