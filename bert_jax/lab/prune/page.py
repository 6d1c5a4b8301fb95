"""What pruning found, for readers and for programs: a page, its curves as SVG, and JSON."""

import numpy as np

from bert_jax.config import Json
from bert_jax.lab.prune.prune import Chosen, Left, Pruning
from bert_jax.lab.report.documents import Block, Document, Part, Picture, Text, to_html
from bert_jax.lab.report.study_figures import by_share
from bert_jax.tasks.sections import Table

_NEEDED = 5  # heads that are listed
_METHOD = (
    "Heads are ordered inside their layer by the mean absolute derivative of a row's loss by a factor of the head's "
    "output (Michel et al. 2019), and each layer keeps equally many; layers are left out one after another, each time "
    "the one without which the loss is lowest. Nothing was trained in between: fine-tuning the smaller model wins some "
    "of it back."
)


def curve(found: Pruning, what: str) -> bytes:
    """Draws the curve of `what`, "heads" or "layers", as SVG."""
    points: list[Left] = getattr(found, what)
    shares = [point.share for point in points]
    lines = {name: (shares, [point.metrics[name] for point in points]) for name in (found.metric, "loss")}
    return by_share(f"Without some of its {what}", f"share of {what} left out", lines, what)


def page(found: Pruning, title: str, kicker: str, written: Json | None) -> str:
    """Returns the page. `written` describes the smaller checkpoint, if one was made."""
    depth, count = found.importance.shape
    parts = [Part("The smaller model", _written(written, found))] if written else []
    for what in ("heads", "layers"):
        points: list[Left] = getattr(found, what)
        if len(points) > 1:
            drawn = Picture(curve(found, what), f"{found.metric} and loss by the share of {what} left out", what)
            parts.append(Part(what.capitalize(), [drawn, _table(points, found, what)]))
    order = np.argsort(-found.importance, axis=None, kind="stable")[:_NEEDED].tolist()
    rows = [[f"layer {i // count + 1}, head {i % count + 1}", f"{found.importance.flat[i]:.4g}"] for i in order]
    note = f"{depth} layers of {count} heads, on {found.examples}."
    parts.append(Part("Heads with the largest gradients", [Table(["head", "importance"], rows, {1})], note))
    parts.append(Part("How it was measured", [Text(_METHOD)]))
    return to_html(Document(title, parts, kicker))


def to_json(found: Pruning, chosen: Chosen | None, written: Json | None) -> Json:
    """Returns what was found; layers and heads are numbers from 0."""
    points = {what: [point._asdict() for point in getattr(found, what)] for what in ("heads", "layers")}
    result = {"examples": found.examples, "metric": found.metric, "importance": found.importance.tolist()} | points
    return result | ({} if chosen is None else {"kept": chosen._asdict(), "written": written})


def _written(written: Json, found: Pruning) -> list[Block]:
    whole = found.heads[0].metrics
    rows = [
        ["parameters", f"{written['parameters_before']:,}", f"{written['parameters']:,}"],
        ["layers × heads", written["shape_before"], written["shape"]],
        *([name, f"{whole[name]:.4f}", f"{written['metrics'][name]:.4f}"] for name in (found.metric, "loss")),
    ]
    return [Table(["", "whole", "smaller"], rows, {1, 2}), Text(f"The checkpoint: {written['to']}", "note")]


def _table(points: list[Left], found: Pruning, what: str) -> Table:
    header = [f"{what} left{' per layer' if what == 'heads' else ''}", "share left out", found.metric, "loss"]
    if what == "layers":
        header.append("which, from 0")
    rows = []
    for point in points:
        values = (f"{point.metrics[name]:.4f}" for name in (found.metric, "loss"))
        row = [str(point.number), f"{100 * point.share:.0f} %", *values]
        rows.append([*row, ", ".join(map(str, point.kept))] if what == "layers" else row)
    return Table(header, rows, {0, 1, 2, 3})
