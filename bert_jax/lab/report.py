"""The page of results of a run with predictions: predictions/validation.jsonl and report.html.

The page is one file that needs no other and no network: style and pictures are inside.
"""

import base64
import html
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bert_jax.lab import report_plots
from bert_jax.lab.plots import read_metrics
from bert_jax.tasks.sections import Confusions, Marked, Report, Scatter, Section, Table, ThresholdCurve

_KEYS = (
    *("task", "init_from", "seed", "data.train", "data.validation", "data.sequence_length", "data.long_texts"),
    *("train.epochs", "train.batch_size", "optimizer.learning_rate", "checkpoint.best_metric"),
    *("model.num_hidden_layers", "model.hidden_size"),
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse } td, th { padding: .25rem .7rem; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #bbb } td { border-bottom: 1px solid #e4e4e4; overflow-wrap: anywhere }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
img { max-width: 100% } pre { background: #f6f6f6; padding: .8rem; overflow-x: auto } .note { color: #666 }
mark { background: #fde2dd } b { color: #1c6b3c }
"""


def write_report(
    report: Report,
    metrics: Mapping[str, float],
    config: ConfigDict,
    workdir: Path,
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the page of an evaluation of validation and returns its path.

    `overrides` are the keys set on the command line.
    """
    folder = workdir / "predictions"
    folder.mkdir(exist_ok=True)
    with (folder / "validation.jsonl").open("w", encoding="utf-8") as file:
        for record in report.records:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    parts = [_summary(config, metrics, overrides or {})]
    curve = report_plots.learning_curve(read_metrics(workdir / "metrics.jsonl"), config.checkpoint.best_metric)
    parts += [_section("Learning curve", _picture(curve, "learning curve"))] if curve else []
    parts += map(_drawn, report.sections)
    settings = html.escape(json.dumps(config.to_dict(), indent=2))
    parts.append(f"<h2>Config</h2><details><summary>all keys</summary><pre>{settings}</pre></details>")
    title = html.escape(f"{config.task}: {workdir.name}")
    page = workdir / "report.html"
    page.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n" + "\n".join(parts) + "\n</body></html>\n",
        encoding="utf-8",
    )
    logging.info("report: %s", page)
    return page


def _summary(config: ConfigDict, metrics: Mapping[str, float], overrides: Mapping[str, Any]) -> str:
    settings = []
    for key in _KEYS:
        value = config
        for name in key.split("."):
            value = value[name]
        settings.append([key, str(value)])
    values = [[name, f"{value:.4f}"] for name, value in metrics.items()]
    command = " ".join(f"--config.{key}={value}" for key, value in overrides.items())
    text = f"<pre>{html.escape(command)}</pre>" if command else ""
    return (
        _section("Best checkpoint on validation", _table(Table(["metric", "value"], values, {1})))
        + _section("Run", _table(Table(["key", "value"], settings)))
        + (_section("Set on the command line", text) if text else "")
    )


def _drawn(section: Section) -> str:
    body, note = section.body, section.note
    if isinstance(body, Table):
        drawn = _table(body)
    elif isinstance(body, Confusions):
        png, explanation = report_plots.confusion_matrix(*body)
        drawn, note = _picture(png, "confusion matrix"), note or explanation
    elif isinstance(body, Scatter):
        drawn = _picture(report_plots.scatter(*body), "predicted against given numbers")
    elif isinstance(body, ThresholdCurve):
        drawn = _picture(report_plots.threshold_curve(*body), "threshold curve")
    else:
        drawn = ""
    return _section(section.title, drawn, note)


def _section(title: str, body: str, note: str = "") -> str:
    return f"<h2>{html.escape(title)}</h2>" + (f'<p class="note">{html.escape(note)}</p>' if note else "") + body


def _picture(png: bytes, description: str) -> str:
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _table(table: Table) -> str:
    def line(cells: Sequence[str | Marked], tag: str) -> str:
        kinds = (' class="number"' if column in table.numbers else "" for column in range(len(cells)))
        texts = (_marked(cell) if isinstance(cell, Marked) else html.escape(cell) for cell in cells)
        inside = "".join(f"<{tag}{kind}>{text}</{tag}>" for kind, text in zip(kinds, texts, strict=True))
        return f"<tr>{inside}</tr>"

    return f"<table>{line(table.header, 'th')}{''.join(line(row, 'td') for row in table.rows)}</table>"


def _marked(cell: Marked) -> str:
    return " ".join(
        html.escape(word)
        if tag == other
        else f"<mark>{html.escape(word)}/<b>{html.escape(tag)}</b>/{html.escape(other)}</mark>"
        for word, tag, other in zip(*cell, strict=True)
    )
