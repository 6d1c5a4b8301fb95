"""PNG curves of one run from its metrics.jsonl."""

import json
from pathlib import Path

TRAIN_COLOUR, EVAL_COLOUR, CHANCE_COLOUR = "#8aa4c8", "#c0392b", "#777777"

# One picture each: file name → title and the names drawn, for the training and the held-out split.
PICTURES = {
    "learning_curve": ("What was learned", ("mlm_loss", "mlm_accuracy", "nsp_accuracy")),
    "loss": ("Loss (nats)", ("loss", "mlm_loss", "nsp_loss")),
    "accuracy": ("Accuracy", ("mlm_accuracy", "nsp_accuracy")),
    "learning_rate": ("Learning rate", ("learning_rate",)),
    "throughput": ("Tokens per second", ("tokens_per_second",)),
}

# What a guesser without a model would reach: name drawn → label of a dashed line and its level, a number or the
# name of an evaluation figure.
REFERENCES = {
    "mlm_loss": ("unigram entropy", "unigram_entropy"),
    "mlm_accuracy": ("most frequent token", "majority_accuracy"),
    "nsp_loss": ("chance", 0.6931),
    "nsp_accuracy": ("chance", 0.5),
}


def plot_run(workdir: Path) -> list[Path]:
    """Writes `plots/*.png` and gives their paths; nothing if there are no metrics yet."""
    import matplotlib

    matplotlib.use("Agg")
    records = read_metrics(workdir / "metrics.jsonl")
    if not records:
        return []
    folder = workdir / "plots"
    folder.mkdir(exist_ok=True)
    return [_picture(folder / f"{name}.png", records, *spec) for name, spec in PICTURES.items()]


def read_metrics(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def series(records: list[dict], split: str, name: str) -> tuple[list[int], list[float]]:
    points = {r["step"]: r[name] for r in records if r["split"] == split and name in r}
    return sorted(points), [points[step] for step in sorted(points)]


def _picture(path, records, title, names):
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    names = [name for name in names if any(name in record for record in records)]
    figure, axes = plt.subplots(1, max(len(names), 1), figsize=(4.6 * max(len(names), 1), 3.4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=False):
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
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _reference(records, name):
    if name not in REFERENCES:
        return "", None
    label, level = REFERENCES[name]
    if isinstance(level, str):
        values = series(records, "eval", level)[1]
        return label, (values[-1] if values else None)
    return label, level
