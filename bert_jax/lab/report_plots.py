"""The pictures of a report, as PNG."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bert_jax.lab.plots import EVAL_COLOUR, TRAIN_COLOUR, series

_MOST_LABELS = 50
_WITH_NUMBERS = 20  # labels up to which the cells have room for their counts
_LONG_NAME = 24  # characters


def learning_curve(records: list[dict], metric: str) -> bytes | None:
    """Loss, and the metric that decides which checkpoint is best; None if nothing was logged."""
    names = [name for name in dict.fromkeys(("loss", metric)) if any(name in record for record in records)]
    if not names:
        return None
    figure, axes = _figure(5.2 * len(names), 3.4, len(names))
    for axis, name in zip(axes, names, strict=True):
        for split, colour, label in (("train", TRAIN_COLOUR, "training"), ("eval", EVAL_COLOUR, "validation")):
            steps, values = series(records, split, name)
            if steps:
                marker = "o" if len(steps) < 20 else ""
                axis.plot(steps, values, color=colour, label=label, marker=marker, markersize=4, linewidth=1.5)
        axis.set(title=name, xlabel="step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    return _png(figure)


def confusion_matrix(counts: Int[np.ndarray, "C C"], labels: Sequence[str]) -> tuple[bytes, str]:
    """The picture, and what is to be said of it. Rows are the right labels."""
    note = "A row is a label, a column a prediction; the darker, the larger the share of its row."
    if len(labels) > _MOST_LABELS:
        kept = np.sort(np.argsort(-counts.sum(axis=1), kind="stable")[:_MOST_LABELS])
        note += f" The {_MOST_LABELS} commonest of {len(labels)} labels."
    else:
        kept = np.arange(len(labels))
    counts, size = counts[np.ix_(kept, kept)], len(kept)
    shown = [labels[i] for i in kept.tolist()]
    names = [label if len(label) <= _LONG_NAME else f"{label[: _LONG_NAME - 1]}…" for label in shown]
    cell = 0.62 if size <= _WITH_NUMBERS else 0.22
    room = 0.8 + 0.075 * max(map(len, names))
    side = max(size * cell, 1.8)
    figure, [axis] = _figure(side + room + 0.4, side + room, 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)  # the root, so that a share of 2 % is seen
    font = 9 if size <= _WITH_NUMBERS else 7
    upright = max(map(len, names)) > 6 or size > _WITH_NUMBERS
    axis.set_xticks(range(size), names, rotation=90 if upright else 0, fontsize=font)
    axis.set_yticks(range(size), names, fontsize=font)
    axis.set(xlabel="predicted", ylabel="label")
    axis.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="#dddddd", linewidth=0.5)
    axis.tick_params(which="minor", length=0)
    if size <= _WITH_NUMBERS:
        for row, column in np.argwhere(counts):
            colour = "white" if shares[row, column] > 0.35 else "#222222"
            text = f"{counts[row, column]:,}"
            axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=9 if len(text) < 6 else 7)
    return _png(figure), note


def scatter(gold: Float[np.ndarray, " N"], predicted: Float[np.ndarray, " N"]) -> bytes:
    figure, [axis] = _figure(4.8, 4.4, 1)
    low, high = min(gold.min(), predicted.min()), max(gold.max(), predicted.max())
    axis.plot([low, high], [low, high], color="#999999", linewidth=1, linestyle="--")
    axis.scatter(gold, predicted, s=10, alpha=0.4, color=EVAL_COLOUR, linewidths=0)
    axis.set(xlabel="given", ylabel="predicted")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def threshold_curve(
    null_odds: Float[np.ndarray, " N"], answered: Float[np.ndarray, "N 2"], declined: Float[np.ndarray, "N 2"]
) -> bytes:
    """Exact match and F1 for every threshold; `answered` and `declined` have both figures of each question."""
    order = np.argsort(null_odds, kind="stable")
    odds = null_odds[order]
    gains = np.cumsum((answered - declined)[order], axis=0)
    last = np.append(odds[1:] > odds[:-1], True)  # of equal scores all questions are answered, or none
    curves = (declined.sum(axis=0) + gains[last]) / len(odds)
    figure, [axis] = _figure(6.4, 3.8, 1)
    for column, name, colour in ((0, "exact match", TRAIN_COLOUR), (1, "F1", EVAL_COLOUR)):
        axis.step(odds[last], curves[:, column], where="post", color=colour, label=name, linewidth=1.5)
    best = int(np.argmax(curves[:, 1]))
    label = f"best F1 {curves[best, 1]:.1f} at {odds[last][best]:.2f}"
    axis.axvline(odds[last][best], color="#777777", linestyle="--", linewidth=1, label=label)
    low, high = np.quantile(odds, (0.01, 0.99))  # a question without any answer has odds of its own
    if low < high:
        axis.set_xlim(low, high)
    axis.set(xlabel="threshold (score of no answer − score of the best answer)", ylabel="per cent")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    return _png(figure)


def _figure(width: float, height: float, columns: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False)
    return figure, axes[0]


def _png(figure: Any) -> bytes:
    from matplotlib import pyplot as plt

    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
