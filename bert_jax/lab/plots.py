"""PNG curves of one run from its metrics.jsonl."""

import json
from collections import defaultdict
from pathlib import Path

TRAIN_COLOUR, EVAL_COLOUR, CHANCE_COLOUR = "#8aa4c8", "#c0392b", "#777777"

# One picture each: file name → title, names drawn for the training and the held-out split, dashed reference lines.
PICTURES = {
    "loss": ("Loss (nats)", ("mlm_loss", "nsp_loss"), ("unigram_entropy",)),
    "accuracy": ("Accuracy", ("mlm_accuracy", "nsp_accuracy"), ("majority_accuracy",)),
    "learning_rate": ("Learning rate", ("learning_rate",), ()),
    "throughput": ("Tokens per second", ("tokens_per_second",), ()),
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


def _picture(path, records, title, names, references):
    from matplotlib import pyplot as plt

    names = [name for name in names if any(name in record for record in records)]
    figure, axes = plt.subplots(1, max(len(names), 1), figsize=(5.2 * max(len(names), 1), 3.4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=False):
        styles = {"train": (TRAIN_COLOUR, "training", ""), "eval": (EVAL_COLOUR, "held out", ".")}
        for split, (colour, label, marker) in styles.items():
            steps, values = series(records, split, name)
            if steps:
                axis.plot(steps, values, color=colour, label=label, marker=marker, linewidth=1.5)
        for label, level in _levels(records, name, references).items():
            axis.axhline(level, color=CHANCE_COLOUR, linestyle="--", linewidth=1, label=label)
        axis.set(title=name.replace("_", " "), xlabel="step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _levels(records, name, references):
    levels = defaultdict(float)
    if name == "nsp_accuracy":
        levels["chance"] = 0.5
    if name == "nsp_loss":
        levels["chance"] = 0.6931
    if name.startswith("mlm"):
        for reference in references:
            _, values = series(records, "eval", reference)
            if values:
                levels[
                    {"unigram_entropy": "unigram entropy", "majority_accuracy": "most frequent token"}[reference]
                ] = values[-1]
    return levels
