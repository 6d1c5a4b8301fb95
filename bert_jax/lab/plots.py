"""PNG curves of one run from its metrics.jsonl."""

import io
import json
import logging
from pathlib import Path
from typing import Any

from bert_jax.files import write_atomically

Record = dict[str, Any]  # a line of metrics.jsonl: step, split and numbers

TRAIN_COLOUR, EVAL_COLOUR, CHANCE_COLOUR = "#8aa4c8", "#c0392b", "#777777"

# One picture each: file name → title and the names drawn, for the training and the held-out split.
PICTURES = {
    "learning_curve": ("What was learned", ("mlm_loss", "mlm_accuracy", "nsp_accuracy")),
    "loss": ("Loss (nats)", ("loss", "mlm_loss", "nsp_loss")),
    "accuracy": ("Accuracy", ("mlm_accuracy", "nsp_accuracy")),
    "learning_rate": ("Learning rate", ("learning_rate",)),
    "throughput": ("Tokens per second", ("tokens_per_second",)),
}

# The level of a guesser without a model: name drawn → label of a dashed line and its level, a number or the name of a
# metric of evaluation.
REFERENCES = {
    "mlm_loss": ("unigram entropy", "unigram_entropy"),
    "mlm_accuracy": ("most frequent token", "majority_accuracy"),
    "nsp_loss": ("chance", 0.6931),
    "nsp_accuracy": ("chance", 0.5),
}


def plot_run(workdir: Path) -> list[Path]:
    """Writes `plots/*.png` and returns their paths; none if there are no metrics yet, or no room: a picture is no
    reason for a run to fail."""
    import matplotlib

    matplotlib.use("Agg")
    records = read_metrics(workdir / "metrics.jsonl")
    folder, paths = workdir / "plots", []
    try:
        for name, (title, drawn) in PICTURES.items() if records else ():
            folder.mkdir(exist_ok=True)
            paths.append(folder / f"{name}.png")
            write_atomically(paths[-1], _picture(records, title, drawn))
    except OSError as problem:
        logging.warning("%s: the curves could not be drawn (%s)", folder, problem.strerror)
        return []
    return paths


def read_metrics(path: Path) -> list[Record]:
    """Returns the lines of a metrics.jsonl; [] if there is no file. Lines that are no metrics, such as half a line that
    is still being written, are left out with one warning."""
    if not path.exists():
        return []
    records, bad = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            if not (isinstance(record["step"], int) and isinstance(record["split"], str)):
                raise ValueError
            records.append(record)
        except (ValueError, KeyError, TypeError, RecursionError):
            bad += 1
    if bad:
        logging.warning("%s: %d lines are no metrics and were left out", path, bad)
    return records


def series(records: list[Record], split: str, name: str) -> tuple[list[int], list[float]]:
    """Returns the steps, sorted, and the values of a metric; of several values of one step the last."""
    points = {r["step"]: r[name] for r in records if r["split"] == split and isinstance(r.get(name), int | float)}
    return sorted(points), [points[step] for step in sorted(points)]


def _picture(records: list[Record], title: str, names: tuple[str, ...]) -> bytes:
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    drawn = [name for name in names if any(name in record for record in records)]
    figure, axes = plt.subplots(1, max(len(drawn), 1), figsize=(4.6 * max(len(drawn), 1), 3.4), squeeze=False)
    for axis, name in zip(axes[0], drawn, strict=False):
        styles = {"train": (TRAIN_COLOUR, "training", ""), "eval": (EVAL_COLOUR, "held out", ".")}
        for split, (colour, label, marker) in styles.items():
            steps, values = series(records, split, name)
            if steps:
                axis.plot(steps, values, color=colour, label=label, marker=marker, linewidth=1.5)
        label, level = _reference(records, name)
        if level is not None:
            axis.axhline(level, color=CHANCE_COLOUR, linestyle="--", linewidth=1, label=f"{label} ({level:.3g})")
        axis.set(title=name.replace("_", " ").replace("mlm", "MLM").replace("nsp", "NSP"), xlabel="step")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format="png")
    plt.close(figure)
    return content.getvalue()


def _reference(records: list[Record], name: str) -> tuple[str, float | None]:
    if name not in REFERENCES:
        return "", None
    label, level = REFERENCES[name]
    if isinstance(level, str):
        values = series(records, "eval", level)[1]
        return label, (values[-1] if values else None)
    return label, level
