"""The page of results of a run with predictions: predictions/validation.jsonl and report.html.

The page is one file that needs no other and no network: style and pictures are inside.
"""

import base64
import functools
import html
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bert_jax.lab import plots
from bert_jax.tasks.sections import Confusions, Marked, Report, Scatter, Section, Table, ThresholdCurve
from bert_jax.training.metrics_log import read_metrics

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
    report: Report, metrics: Mapping[str, float], config: ConfigDict, workdir: Path, overrides: Mapping[str, Any] | None
) -> Path:
    """Writes the page of an evaluation of validation and returns its path. `overrides` are the keys set on the command
    line."""
    folder = workdir / "predictions"
    folder.mkdir(exist_ok=True)
    with (folder / "validation.jsonl").open("w", encoding="utf-8") as file:
        for record in report.records:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    values = [[name, f"{value:.4f}"] for name, value in metrics.items()]
    settings = [[key, str(functools.reduce(lambda group, name: group[name], key.split("."), config))] for key in _KEYS]
    command = " ".join(f"--config.{key}={value}" for key, value in (overrides or {}).items())
    curve = plots.learning_curve(read_metrics(workdir / "metrics.jsonl"), config.checkpoint.best_metric)
    parts = [
        _section("Best checkpoint on validation", _table(Table(["metric", "value"], values, {1}))),
        _section("Run", _table(Table(["key", "value"], settings))),
        _section("Set on the command line", f"<pre>{html.escape(command)}</pre>") if command else "",
        _section("Learning curve", _picture(curve, "learning curve")) if curve else "",
        *(_section(section.title, *_drawn(section)) for section in report.sections),
    ]
    resolved = html.escape(json.dumps(config.to_dict(), indent=2))
    parts.append(f"<h2>Config</h2><details><summary>all keys</summary><pre>{resolved}</pre></details>")
    title = html.escape(f"{config.task}: {workdir.name}")
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    body = "\n".join([f"<h1>{title}</h1>", *filter(None, parts)])
    page = workdir / "report.html"
    text = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}\n</body></html>\n'
    page.write_text(text, encoding="utf-8")
    logging.info("report: %s", page)
    return page


def _drawn(section: Section) -> tuple[str, str]:
    """Returns the HTML of a section's body, and its note."""
    match section.body:
        case Table() as table:
            return _table(table), section.note
        case Confusions() as counts:
            png, explanation = plots.confusion_matrix(*counts)
            return _picture(png, "confusion matrix"), section.note or explanation
        case Scatter() as points:
            return _picture(plots.scatter(*points), "predicted against given numbers"), section.note
        case ThresholdCurve() as curve:
            return _picture(plots.threshold_curve(*curve), "threshold curve"), section.note
        case _:
            return "", section.note


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
